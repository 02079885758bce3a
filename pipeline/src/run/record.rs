//! One input record → one output record, on a worker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Message,
    message::{BorrowedMessage, Header, Headers, OwnedHeaders},
};
use tonearm_schemas::{
    prediction::{self, Prediction, Source},
    reject::{Reject, RejectClass, Stage},
};

use super::{
    outbox::{OutRecord, Value},
    shard::{Finished, Lease},
};
use crate::{
    config::Topics,
    telemetry::metrics,
    track::{Failure, Tagger, Track},
    workers::Pool,
};

/// Where results go, and how many partitions there are to keep an input's partition number.
pub struct Routes {
    pub predictions: Arc<str>,
    pub rejected: Arc<str>,
    /// As many partitions as the input topic has: results keep their input's partition number.
    pub predictions_keep_partition: bool,
    pub rejected_keep_partition: bool,
}

impl Routes {
    pub fn new(topics: &Topics, inputs: usize, predictions: usize, rejected: usize) -> Self {
        Self {
            predictions: topics.predictions.as_str().into(),
            rejected: topics.rejected.as_str().into(),
            predictions_keep_partition: predictions == inputs,
            rejected_keep_partition: rejected == inputs,
        }
    }
}

/// The `id` of the record's prediction.
pub fn id(message: &BorrowedMessage<'_>) -> String {
    format!("{}-{}-{}", message.topic(), message.partition(), message.offset())
}

/// Makes a record's prediction or reject. None where the shard was revoked before it was done.
pub fn process<'c>(
    tagger: &Tagger,
    pool: &Pool<'c>,
    routes: &Routes,
    lease: &Lease,
    message: BorrowedMessage<'c>,
    received: Instant,
) -> Option<Finished<'c>> {
    if !lease.may_start() {
        return None;
    }
    let content_type = message
        .headers()
        .and_then(|headers| headers.iter().find(|header| header.key == "content-type"))
        .and_then(|header| std::str::from_utf8(header.value?).ok());
    let track = Track {
        bytes: message.payload().unwrap_or_default(),
        content_type,
        id: id(&message),
        key: message.key().and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned),
        source: Source::Record {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
        },
        received,
    };
    let result = tagger.predict(pool, track, lease);
    let result = match result {
        Ok(prediction) => to_json(&prediction),
        Err(Failure::Abandoned) => return None,
        Err(Failure::Reject(reject)) => Err(reject),
    };
    let rejected = result.is_err();
    let record = match result {
        Ok(json) => prediction_record(routes, &message, json),
        Err(reject) => {
            metrics::rejected(&id(&message), &reject);
            reject_record(routes, message, &reject)
        }
    };
    Some(Finished { record, rejected, received, finished: Instant::now() })
}

fn to_json(prediction: &Prediction) -> Result<Vec<u8>, Reject> {
    serde_json::to_vec(prediction).map_err(|e| {
        Reject::new(Stage::Infer, RejectClass::ModelFailure, format!("the prediction has no JSON form: {e}"))
    })
}

fn prediction_record<'c>(routes: &Routes, message: &BorrowedMessage<'c>, json: Vec<u8>) -> OutRecord<'c> {
    let mut headers = OwnedHeaders::new().insert(Header { key: "content-type", value: Some(prediction::CONTENT_TYPE) });
    for header in message.headers().into_iter().flat_map(Headers::iter) {
        if header.key == "traceparent" || header.key.starts_with("ce_") {
            headers = headers.insert(header);
        }
    }
    OutRecord {
        topic: Arc::clone(&routes.predictions),
        partition: routes.predictions_keep_partition.then_some(message.partition()),
        key: message.key().map(<[u8]>::to_vec),
        value: Value::Bytes(json),
        headers,
        timestamp_ms: None,
    }
}

fn reject_record<'c>(routes: &Routes, message: BorrowedMessage<'c>, reject: &Reject) -> OutRecord<'c> {
    let mut headers = message.headers().map(|headers| headers.detach()).unwrap_or_default();
    for (key, value) in reject.headers(message.topic(), message.partition(), message.offset()) {
        headers = headers.insert(Header { key, value: Some(&value) });
    }
    OutRecord {
        topic: Arc::clone(&routes.rejected),
        partition: routes.rejected_keep_partition.then_some(message.partition()),
        key: message.key().map(<[u8]>::to_vec),
        headers,
        timestamp_ms: message.timestamp().to_millis(),
        value: Value::Original(message),
    }
}

/// Memory a record takes besides its value: the ledger's entry, its headers, a worker's buffers.
pub const OVERHEAD_BYTES: usize = 4096;

/// What a finished record weighs until it is committed.
pub fn held_bytes(finished: &Finished<'_>) -> usize {
    finished.record.value.bytes().map_or(0, <[u8]>::len) + OVERHEAD_BYTES
}

/// Tells metrics of a committed record.
pub fn committed(finished: &Finished<'_>, now: Instant) {
    let bytes = finished.record.value.bytes().map_or(0, <[u8]>::len);
    let since = |then: Instant| now.checked_duration_since(then).unwrap_or(Duration::ZERO);
    metrics::record_committed(finished.rejected, bytes, since(finished.received), since(finished.finished));
}

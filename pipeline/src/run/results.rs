//! What a track's stages made → records for the topics behind them.

use std::{sync::Arc, time::Instant};

use rdkafka::{
    Message,
    message::{BorrowedMessage, Header, Headers, OwnedHeaders, OwnedMessage},
};
use tonearm_schemas::{
    block::{self, BlockKind},
    prediction::{self, Prediction},
    reject::{Reject, RejectClass, Stage},
};

use super::outbox::{OutRecord, Value};
use crate::{
    config::Config,
    telemetry::metrics,
    track::{Block, Made},
};

/// An output of a record, and what its metrics need.
pub struct Output<'c> {
    pub record: OutRecord<'c>,
    /// How the track ended; None for outputs before its last.
    pub result: Option<TrackResult>,
    /// When the record it came of was read.
    pub received: Instant,
    pub finished: Instant,
    /// Room taken in the shard's lease.
    pub reserved: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackResult {
    Prediction,
    Reject,
    /// All its blocks are made.
    Blocks,
}

impl TrackResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Prediction => "prediction",
            Self::Reject => "reject",
            Self::Blocks => "blocks",
        }
    }
}

impl<'c> Output<'c> {
    pub fn new(record: OutRecord<'c>, result: Option<TrackResult>, received: Instant) -> Self {
        Self { record, result, received, finished: Instant::now(), reserved: 0 }
    }

    /// What it weighs until it is committed.
    pub fn bytes(&self) -> usize {
        self.record.value.bytes().map_or(0, <[u8]>::len) + OVERHEAD_BYTES
    }
}

/// Memory a record takes besides its value: the ledger's entry, its headers, a worker's buffers.
pub const OVERHEAD_BYTES: usize = 4096;

/// Where results go, and whether they keep their input's partition number: where topics have as many partitions.
pub struct Routes {
    output: Arc<str>,
    output_keeps_partition: bool,
    rejected: Arc<str>,
    rejected_keeps_partition: bool,
    blocks: BlockKind,
}

impl Routes {
    pub fn new(config: &Config, inputs: usize, outputs: usize, rejected: usize) -> Self {
        Self {
            output: config.output_topic().into(),
            output_keeps_partition: outputs == inputs,
            rejected: config.topics.rejected.as_str().into(),
            rejected_keeps_partition: rejected == inputs,
            blocks: config.runtime.stages.writes().unwrap_or(BlockKind::Pcm),
        }
    }
}

/// What outputs keep of the record they came of.
#[derive(Clone)]
pub struct Passed {
    partition: i32,
    key: Option<Vec<u8>>,
    /// Those that are passed on: `traceparent` and CloudEvents.
    headers: OwnedHeaders,
}

impl Passed {
    pub fn of(message: &BorrowedMessage<'_>) -> Self {
        let mut headers = OwnedHeaders::new();
        for header in message.headers().into_iter().flat_map(Headers::iter) {
            if header.key == "traceparent" || header.key.starts_with("ce_") {
                headers = headers.insert(header);
            }
        }
        Self { partition: message.partition(), key: message.key().map(<[u8]>::to_vec), headers }
    }
}

/// The record a reject is of, as it came.
pub struct Rejected<'c> {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Value<'c>,
    pub headers: OwnedHeaders,
    pub timestamp_ms: Option<i64>,
}

impl<'c> Rejected<'c> {
    pub fn of(message: BorrowedMessage<'c>) -> Self {
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            headers: message.headers().map(|headers| headers.detach()).unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis(),
            value: Value::Original(message),
        }
    }

    pub fn of_owned(message: OwnedMessage) -> Self {
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            headers: message.headers().cloned().unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis(),
            value: message.payload().map_or(Value::None, |bytes| Value::Bytes(bytes.to_vec())),
        }
    }
}

impl Rejected<'_> {
    /// A record that is no longer there.
    pub fn gone(topic: &str, partition: i32, offset: i64, timestamp_ms: Option<i64>, passed: &Passed) -> Self {
        let (key, value, headers) = (passed.key.clone(), Value::None, passed.headers.clone());
        Self { topic: topic.to_owned(), partition, offset, key, value, headers, timestamp_ms }
    }
}

/// A block that is not the track's last.
pub fn block<'c>(routes: &Routes, passed: &Passed, block: Block, received: Instant) -> Output<'c> {
    Output::new(block_record(routes, passed, block), None, received)
}

/// How a track ended. `rejected` finds the record for a reject.
pub fn end<'c>(
    routes: &Routes,
    passed: &Passed,
    made: Made,
    received: Instant,
    rejected: impl FnOnce() -> Option<Rejected<'c>>,
) -> Option<Vec<Output<'c>>> {
    let one = |record, result| Some(vec![Output::new(record, Some(result), received)]);
    match made {
        Made::Block(last) => one(block_record(routes, passed, last), TrackResult::Blocks),
        Made::Prediction(prediction) => match to_json(&prediction) {
            Ok(json) => one(prediction_record(routes, passed, json), TrackResult::Prediction),
            Err(reject) => one(reject_record(routes, rejected()?, &reject), TrackResult::Reject),
        },
        Made::Reject { reject, last } => {
            let last = last.map(|last| block(routes, passed, last, received));
            let reject = reject_record(routes, rejected()?, &reject);
            Some(last.into_iter().chain([Output::new(reject, Some(TrackResult::Reject), received)]).collect())
        }
    }
}

fn to_json(prediction: &Prediction) -> Result<Vec<u8>, Reject> {
    serde_json::to_vec(prediction).map_err(|e| {
        Reject::new(Stage::Infer, RejectClass::ModelFailure, format!("the prediction has no JSON form: {e}"))
    })
}

fn prediction_record<'c>(routes: &Routes, passed: &Passed, json: Vec<u8>) -> OutRecord<'c> {
    output_record(routes, passed, json, [("content-type", prediction::CONTENT_TYPE.to_owned())])
}

fn block_record<'c>(routes: &Routes, passed: &Passed, block: Block) -> OutRecord<'c> {
    let content_type = ("content-type", block::CONTENT_TYPE.to_owned());
    let headers = [content_type].into_iter().chain(block.head.headers(routes.blocks));
    output_record(routes, passed, block.value, headers)
}

fn output_record<'c>(
    routes: &Routes,
    passed: &Passed,
    value: Vec<u8>,
    own: impl IntoIterator<Item = (&'static str, String)>,
) -> OutRecord<'c> {
    let mut headers = OwnedHeaders::new();
    for (key, value) in own {
        headers = headers.insert(Header { key, value: Some(&value) });
    }
    for header in passed.headers.iter() {
        headers = headers.insert(header);
    }
    OutRecord {
        topic: Arc::clone(&routes.output),
        partition: routes.output_keeps_partition.then_some(passed.partition),
        key: passed.key.clone(),
        value: Value::Bytes(value),
        headers,
        timestamp_ms: None,
    }
}

fn reject_record<'c>(routes: &Routes, rejected: Rejected<'c>, reject: &Reject) -> OutRecord<'c> {
    let Rejected { topic, partition, offset, key, value, mut headers, timestamp_ms } = rejected;
    metrics::rejected(&id(&topic, partition, offset), reject);
    for (key, value) in reject.headers(&topic, partition, offset) {
        headers = headers.insert(Header { key, value: Some(&value) });
    }
    OutRecord {
        topic: Arc::clone(&routes.rejected),
        partition: routes.rejected_keeps_partition.then_some(partition),
        key,
        value,
        headers,
        timestamp_ms,
    }
}

/// The `id` of a record's prediction.
pub fn id(topic: &str, partition: i32, offset: i64) -> String {
    format!("{topic}-{partition}-{offset}")
}

/// Tells metrics of a committed output.
pub fn committed(output: &Output<'_>, now: Instant) {
    let bytes = output.record.value.bytes().map_or(0, <[u8]>::len);
    metrics::output_committed(bytes);
    if let Some(result) = output.result {
        let since = |then: Instant| now.saturating_duration_since(then);
        metrics::track_committed(result.as_str(), since(output.received), since(output.finished));
    }
}

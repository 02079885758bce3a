//! Encoded records: each is one track, a job for the engine.

use std::{sync::Arc, time::Instant};

use tonearm_engine::{Caller, Client, Engine, Job, Origin, Outcome};
use tonearm_schemas::prediction::Source;

use super::{
    receipt::Receipt,
    record::{self, Missing, Record},
    reply::Reply,
};
use crate::{
    kafka::headers::Header,
    run::commit::output::{Of, Routes},
};

/// Asks the engine for the track in a record.
pub fn submit(engine: &Engine, routes: &Arc<Routes>, record: Record, receipt: Receipt, received: Instant) {
    let source = Source::Record {
        topic: record.topic.to_string(),
        partition: record.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
    };
    let id = record::id(&record.topic, record.partition, record.offset);
    let origin = Origin { id, key: record.track(), source: source.clone(), received };
    let content_type = Header::text(&record.headers, "content-type").map(str::to_owned);
    let bytes = record.value.clone().unwrap_or_default();
    let of = Arc::new(Of { source, received, carried: routes.carried(&record) });
    if let Some(reject) = record.missing.as_ref().and_then(Missing::reject) {
        return receipt.complete(routes.reject(&of, record, reject, None));
    }
    let reply = Reply { receipt, routes: Arc::clone(routes), of };
    engine.submit(Job { origin, bytes, content_type, caller: Box::new(Whole { reply, record }) });
}

/// A record that is a track.
struct Whole {
    reply: Reply,
    record: Record,
}

impl Caller for Whole {
    fn client(&self) -> &dyn Client {
        &self.reply
    }

    fn end(self: Box<Self>, outcome: Outcome) {
        let Self { reply, record } = *self;
        let Reply { routes, of, .. } = &reply;
        let outputs = match outcome {
            Outcome::Prediction(prediction) => vec![routes.prediction(of, &prediction)],
            Outcome::Block(last) => vec![routes.last_block(of, last)],
            Outcome::Reject { reject, last } => routes.reject(of, record, reject, last),
        };
        reply.receipt.complete(outputs);
    }
}

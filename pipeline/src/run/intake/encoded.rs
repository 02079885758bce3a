//! Encoded records: each is one track, a job for the engine.

use std::{pin::Pin, sync::Arc, time::Instant};

use tonearm_engine::{Block, Client, Engine, Job, Origin, Outcome};
use tonearm_schemas::prediction::Source;

use super::{
    receipt::Receipt,
    record::{self, Missing, Record},
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
    let client = Box::new(Reply { receipt, routes: Arc::clone(routes), of, record });
    engine.submit(Job { origin, bytes, content_type, client });
}

/// Hears how a record's track ends.
struct Reply {
    receipt: Receipt,
    routes: Arc<Routes>,
    of: Arc<Of>,
    record: Record,
}

impl Client for Reply {
    fn may_begin(&self) -> bool {
        self.receipt.lease().may_begin()
    }

    fn is_wanted(&self) -> bool {
        self.receipt.lease().is_valid()
    }

    fn room(&self, bytes: usize) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(self.receipt.room(bytes))
    }

    fn take(&self, block: Block) {
        let bytes = block.bytes();
        self.receipt.output(self.routes.block(&self.of, block), bytes);
    }

    fn end(self: Box<Self>, outcome: Outcome) {
        let Self { receipt, routes, of, record } = *self;
        receipt.complete(match outcome {
            Outcome::Prediction(prediction) => vec![routes.prediction(&of, &prediction)],
            Outcome::Block(last) => vec![routes.last_block(&of, last)],
            Outcome::Reject { reject, last } => routes.reject(&of, record, reject, last),
        });
    }
}

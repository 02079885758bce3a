//! Encoded records: each is one track, worked on from its first byte to its end by one worker.

use std::{sync::Arc, time::Instant};

use rdkafka::{
    Message,
    message::{BorrowedMessage, Headers},
};
use tonearm_schemas::prediction::Source;

use super::{
    receipt::Receipt,
    results::{self, Passed, Rejected, Routes},
};
use crate::{
    track::{Block, Origin, Sink, Tagger},
    workers::Pool,
};

/// Works on one record. Where its shard is given up meanwhile, the record is abandoned.
pub fn work<'c>(
    tagger: &Arc<Tagger>,
    routes: &Routes,
    pool: &Pool<'c>,
    message: BorrowedMessage<'c>,
    receipt: Receipt<'c>,
    received: Instant,
) {
    if !receipt.lease().may_start() {
        return;
    }
    let passed = Passed::of(&message);
    let content_type = message
        .headers()
        .and_then(|headers| headers.iter().find(|header| header.key == "content-type"))
        .and_then(|header| std::str::from_utf8(header.value?).ok());
    let origin = Origin {
        id: results::id(message.topic(), message.partition(), message.offset()),
        key: message.key().and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned),
        source: Source::Record {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
        },
        received,
    };
    let sink = Outputs { receipt: &receipt, routes, passed: &passed, received };
    let bytes = message.payload().unwrap_or_default();
    let Some(made) = tagger.process(pool, origin, bytes, content_type, &sink) else { return };
    if let Some(outputs) = results::end(routes, &passed, made, received, || Some(Rejected::of(message))) {
        receipt.complete(outputs);
    }
}

/// Sends a track's blocks out as outputs of the record in `receipt`.
pub struct Outputs<'a, 'c> {
    pub receipt: &'a Receipt<'c>,
    pub routes: &'a Routes,
    pub passed: &'a Passed,
    pub received: Instant,
}

impl Sink for Outputs<'_, '_> {
    fn goes_on(&self) -> bool {
        self.receipt.lease().may_go_on()
    }

    fn take(&self, block: Block) -> bool {
        self.receipt.output(results::block(self.routes, self.passed, block, self.received))
    }
}

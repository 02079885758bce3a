//! What a track made → records for the topics behind it.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tonearm_engine::Block;
use tonearm_schemas::{
    block::{self, BlockHead, BlockKind, TrackEnd},
    prediction::{self, Prediction, Source},
    reject::{self, Reject, RejectClass, Stage},
};

use crate::{
    kafka::headers::Header,
    run::intake::record::{self, Missing, Record},
    telemetry::metrics,
};

/// Memory a record takes besides its bytes: the ledger's entry, a worker's buffers.
pub const OVERHEAD_BYTES: usize = 4096;

/// A record to be written.
#[derive(Clone, Debug)]
pub struct OutRecord {
    pub topic: Arc<str>,
    /// `None`: by key.
    pub partition: Option<i32>,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
    /// Milliseconds since 1970; `None`: now.
    pub timestamp_ms: Option<i64>,
}

impl OutRecord {
    /// What it takes in memory and, about, in a topic.
    pub fn bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        len(&self.key) + len(&self.value) + self.headers.iter().map(Header::bytes).sum::<usize>()
    }
}

/// An output of a record.
pub struct Output {
    pub record: OutRecord,
    pub what: What,
    pub of: Arc<Of>,
    pub finished: Instant,
    /// Room taken in the shard's lease.
    pub reserved: usize,
    /// It was refused among others, and goes in a transaction of its own to see whether it was the cause.
    pub alone: bool,
}

/// What an output is to its track.
pub enum What {
    /// A block that is not the last.
    Block(Box<BlockHead>),
    LastBlock(Box<BlockHead>),
    Prediction {
        seconds: f64,
    },
    Reject(Reject, Form),
}

/// In what form a reject is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// As its record came.
    Whole,
    /// Without what its topic did not take.
    Reduced,
}

/// What outputs are made of: a track, and the record it came in.
pub struct Of {
    /// The record it was encoded in.
    pub source: Source,
    /// When this process read it.
    pub received: Instant,
    pub carried: Carried,
}

impl Of {
    /// The `id` of its prediction.
    pub fn id(&self) -> String {
        match &self.source {
            Source::Record { topic, partition, offset, .. } => record::id(topic, *partition, *offset),
            Source::File { file } => file.clone(),
        }
    }
}

/// The parts of an input record that its outputs carry on.
#[derive(Clone)]
pub struct Carried {
    pub partition: i32,
    pub key: Option<Bytes>,
    /// Trace context, CloudEvents' attributes, and those named in `output.pass_headers`.
    pub headers: Vec<Header>,
}

impl Output {
    fn new(of: &Arc<Of>, what: What, record: OutRecord) -> Self {
        Self { record, what, of: Arc::clone(of), finished: Instant::now(), reserved: 0, alone: false }
    }

    /// What it weighs until it is committed.
    pub fn bytes(&self) -> usize {
        self.record.bytes() + OVERHEAD_BYTES
    }

    /// Tells metrics and the log that it is committed.
    pub fn committed(&self, now: Instant) {
        metrics::output_committed(self.record.value.as_ref().map_or(0, Bytes::len));
        let result = match &self.what {
            What::Block(_) => return,
            What::LastBlock(head) if head.track.end == Some(TrackEnd::Rejected) => return,
            What::LastBlock(_) => "blocks",
            What::Prediction { seconds } => {
                metrics::predicted(*seconds);
                "prediction"
            }
            What::Reject(reject, _) => {
                metrics::rejected(&self.of.id(), reject);
                "reject"
            }
        };
        let since = |then: Instant| now.saturating_duration_since(then);
        metrics::track_committed(result, since(self.of.received), since(self.finished));
    }
}

/// Where results go, and whether they keep their input's partition number: if topics have as many partitions.
#[derive(Clone, Debug)]
pub struct Routes {
    pub output: Arc<str>,
    pub output_keeps_partition: bool,
    pub rejected: Arc<str>,
    pub rejected_keeps_partition: bool,
    /// The kind of blocks that go out, if any do.
    pub blocks: BlockKind,
    /// Names of headers that outputs carry on, besides those of tracing and CloudEvents.
    pub pass_headers: Arc<[String]>,
}

impl Routes {
    /// What the outputs of a record carry on.
    pub fn carried(&self, record: &Record) -> Carried {
        let passes = |name: &[u8]| {
            matches!(name, b"traceparent" | b"tracestate" | b"baggage")
                || name.starts_with(b"ce_")
                || self.pass_headers.iter().any(|passed| passed.as_bytes() == name)
        };
        let headers = record.headers.iter().filter(|header| passes(&header.name)).cloned().collect();
        Carried { partition: record.partition, key: record.key.clone(), headers }
    }

    pub fn prediction(&self, of: &Arc<Of>, prediction: &Prediction) -> Output {
        let json = serde_json::to_vec(prediction).expect("every type in a prediction has a JSON form");
        let headers = vec![Header::new("content-type", prediction::CONTENT_TYPE)];
        let what = What::Prediction { seconds: prediction.audio.duration_s };
        Output::new(of, what, self.output(of, json, headers))
    }

    /// A block that is not the track's last.
    pub fn block(&self, of: &Arc<Of>, block: Block) -> Output {
        let (head, record) = self.block_record(of, block);
        Output::new(of, What::Block(head), record)
    }

    pub fn last_block(&self, of: &Arc<Of>, block: Block) -> Output {
        let (head, record) = self.block_record(of, block);
        Output::new(of, What::LastBlock(head), record)
    }

    /// The reject of a track, and before it the block that tells the next stage, if it has blocks of the track.
    pub fn reject(&self, of: &Arc<Of>, record: Record, reject: Reject, last: Option<Block>) -> Vec<Output> {
        let record = self.reject_record(of, record, &reject);
        let reject = Output::new(of, What::Reject(reject, Form::Whole), record);
        last.map(|last| self.last_block(of, last)).into_iter().chain([reject]).collect()
    }

    /// The reject of a track whose result its topic does not take.
    pub fn refused(&self, of: &Arc<Of>, record: Record, what: &What, message: String) -> Vec<Output> {
        let (stage, last) = match what {
            What::Block(head) | What::LastBlock(head) if head.index > 0 => {
                let mut head = head.clone();
                head.track.end = Some(TrackEnd::Rejected);
                let value = match self.blocks {
                    BlockKind::Pcm => block::write_pcm(&[]),
                    BlockKind::Features => block::write_features(&[], &[], 0, 0),
                };
                (self.stage(), Some(Block { head: *head, value }))
            }
            What::Block(_) | What::LastBlock(_) => (self.stage(), None),
            What::Prediction { .. } | What::Reject(..) => (Stage::Infer, None),
        };
        self.reject(of, record, Reject::new(stage, RejectClass::ResultRefused, message), last)
    }

    fn stage(&self) -> Stage {
        match self.blocks {
            BlockKind::Pcm => Stage::Decode,
            BlockKind::Features => Stage::Features,
        }
    }

    fn block_record(&self, of: &Arc<Of>, block: Block) -> (Box<BlockHead>, OutRecord) {
        let own = block.head.headers(self.blocks).map(|(name, value)| Header::new(name, value));
        let headers = [Header::new("content-type", block::CONTENT_TYPE)].into_iter().chain(own).collect();
        (Box::new(block.head), self.output(of, block.value, headers))
    }

    fn output(&self, of: &Of, value: Vec<u8>, mut headers: Vec<Header>) -> OutRecord {
        let Carried { partition, key, headers: carried } = &of.carried;
        headers.extend(carried.iter().cloned());
        OutRecord {
            topic: Arc::clone(&self.output),
            partition: self.output_keeps_partition.then_some(*partition),
            key: key.clone(),
            value: Some(value.into()),
            headers,
            timestamp_ms: None,
        }
    }

    fn reject_record(&self, of: &Of, record: Record, reject: &Reject) -> OutRecord {
        let mut headers = record.headers;
        // Those of an earlier round are replaced.
        headers.retain(|header| !reject::header::is_ours(&header.name));
        let own = reject.headers(&record.topic, record.partition, record.offset);
        headers.extend(own.map(|(name, value)| Header::new(name, value)));
        headers.extend(record.missing.iter().flat_map(Missing::headers));
        OutRecord {
            topic: Arc::clone(&self.rejected),
            partition: self.rejected_keeps_partition.then_some(of.carried.partition),
            key: record.key,
            value: record.value,
            headers,
            timestamp_ms: record.timestamp_ms,
        }
    }
}

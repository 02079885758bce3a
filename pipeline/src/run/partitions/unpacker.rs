//! Compressed batches on their way from librdkafka's queues to the loop: their records are unpacked as there is room for
//! them, on a thread of its own. What is packed in kilobytes may be gigabytes, so only one partition at a time is asked
//! for, and of a batch no more than one record, or some small ones, is unpacked ahead.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::{
    kafka::packed::{Batch, Records},
    run::intake::record::Record,
};

/// Small records are unpacked together, up to this many bytes.
const PIECE: usize = 1 << 20;
/// Batches that are begun keep their decoders, whose windows are megabytes, up to so many; others start over.
const DECODERS: usize = 16;
/// After this long, decoders of batches that nobody wants any more go.
const IDLE: Duration = Duration::from_secs(1);

pub struct Unpacker {
    topic: Arc<str>,
    open: BTreeMap<i32, Open>,
    asks: Sender<Ask>,
    pieces: Receiver<Piece>,
    /// The piece that is being unpacked.
    under_way: Option<u64>,
    /// The partition that was last asked for.
    last: i32,
    /// Batches so far.
    count: u64,
}

/// The batch that a partition is in.
struct Open {
    id: u64,
    batch: Arc<Batch>,
    /// The next offset that is wanted of it.
    next: i64,
    ready: VecDeque<Record>,
    rest: Rest,
}

/// What comes of a batch behind the records that are ready.
enum Rest {
    Packed,
    End,
    /// It cannot be read.
    Broken(Arc<str>),
}

/// The next record of a partition's batch.
pub enum Next {
    Record(Record),
    /// It is not unpacked yet.
    Later,
    /// The partition is in no batch.
    NoBatch,
}

struct Ask {
    id: u64,
    partition: i32,
    batch: Arc<Batch>,
    from: i64,
}

struct Piece {
    id: u64,
    partition: i32,
    records: Vec<Record>,
    rest: Rest,
}

impl Unpacker {
    /// Records of more than `keep` bytes are not kept as a whole. `wake` is sent to when there is a new piece.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(topic: &str, keep: usize, wake: Sender<()>) -> io::Result<Self> {
        let (asks, asked) = unbounded();
        let (unpacked, pieces) = unbounded();
        let topic: Arc<str> = topic.into();
        let work = Work { topic: Arc::clone(&topic), keep, decoders: VecDeque::new() };
        std::thread::Builder::new().name("unpacker".to_owned()).spawn(move || work.answer(&asked, &unpacked, &wake))?;
        Ok(Self { topic, open: BTreeMap::new(), asks, pieces, under_way: None, last: 0, count: 0 })
    }

    pub fn topic(&self) -> Arc<str> {
        Arc::clone(&self.topic)
    }

    /// The next records of `partition` are those of `batch` at `from` and behind it.
    pub fn open(&mut self, partition: i32, batch: Batch, from: i64) {
        self.count += 1;
        let next = from.max(batch.outline.first);
        let open = Open { id: self.count, batch: Arc::new(batch), next, ready: VecDeque::new(), rest: Rest::Packed };
        self.open.insert(partition, open);
    }

    /// What is left of a partition's batch is not wanted.
    pub fn close(&mut self, partition: i32) {
        self.open.remove(&partition);
    }

    /// Partitions that are in a batch.
    pub fn partitions(&self) -> impl Iterator<Item = i32> {
        self.open.keys().copied()
    }

    /// Whether the next record of a partition is still packed.
    pub fn is_packed(&self, partition: i32) -> bool {
        self.open.get(&partition).is_some_and(|open| open.ready.is_empty() && matches!(open.rest, Rest::Packed))
    }

    /// The partition that was last asked for: others come first.
    pub fn last(&self) -> i32 {
        self.last
    }

    pub fn next(&mut self, partition: i32) -> Next {
        let Some(open) = self.open.get_mut(&partition) else { return Next::NoBatch };
        if let Some(record) = open.ready.pop_front() {
            open.next = record.offset + 1;
            return Next::Record(record);
        }
        match &open.rest {
            Rest::Packed => {
                if self.under_way.is_none() {
                    let Open { id, ref batch, next: from, .. } = *open;
                    // Who answers ends with this.
                    let _ = self.asks.send(Ask { id, partition, batch: Arc::clone(batch), from });
                    (self.under_way, self.last) = (Some(id), partition);
                }
                Next::Later
            }
            Rest::Broken(why) if open.next <= open.batch.outline.last => {
                let record = Record::unreadable(&self.topic, partition, open.next, why);
                open.next += 1;
                Next::Record(record)
            }
            Rest::End | Rest::Broken(_) => {
                self.open.remove(&partition);
                Next::NoBatch
            }
        }
    }

    /// Takes what is unpacked. Returns whether there is something.
    pub fn serve(&mut self) -> bool {
        let mut served = false;
        for Piece { id, partition, records, rest } in self.pieces.try_iter() {
            served = true;
            self.under_way = None;
            // Partitions may have gone, or be read from elsewhere.
            if let Some(open) = self.open.get_mut(&partition).filter(|open| open.id == id) {
                open.ready.extend(records);
                open.rest = rest;
            }
        }
        served
    }
}

/// What the thread has.
struct Work {
    topic: Arc<str>,
    keep: usize,
    /// Of batches that are begun, the last used one last.
    decoders: VecDeque<Decoder>,
}

struct Decoder {
    id: u64,
    batch: Arc<Batch>,
    records: Records<'static>,
}

impl Work {
    fn answer(mut self, asked: &Receiver<Ask>, unpacked: &Sender<Piece>, wake: &Sender<()>) {
        loop {
            match asked.recv_timeout(IDLE) {
                Ok(ask) => {
                    let piece = self.piece(ask);
                    if unpacked.send(piece).is_err() {
                        return;
                    }
                    // A full channel means that the loop is about to look anyway.
                    let _ = wake.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.decoders.retain(|decoder| Arc::strong_count(&decoder.batch) > 1);
        }
    }

    fn piece(&mut self, ask: Ask) -> Piece {
        let Ask { id, partition, batch, from } = ask;
        let known = self.decoders.iter().position(|decoder| decoder.id == id);
        let known = known.and_then(|at| self.decoders.remove(at)).map(|decoder| decoder.records);
        let mut records = Vec::new();
        let ended = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut unpacked = known.map_or_else(|| batch.records(), Ok)?;
            let mut bytes = 0;
            while bytes < PIECE {
                let Some(next) = unpacked.next(from, self.keep)? else { return Ok(None) };
                let record = Record::of_batch(&self.topic, partition, next, self.keep);
                bytes += record.bytes();
                records.push(record);
            }
            io::Result::Ok(Some(unpacked))
        }));
        let rest = match ended {
            Ok(Ok(Some(unpacked))) => {
                self.decoders.push_back(Decoder { id, batch, records: unpacked });
                if self.decoders.len() > DECODERS {
                    self.decoders.pop_front();
                }
                Rest::Packed
            }
            Ok(Ok(None)) => Rest::End,
            Ok(Err(error)) => Rest::Broken(say_broken(&batch, partition, &error.to_string())),
            Err(_) => Rest::Broken(say_broken(&batch, partition, "its decoder panicked")),
        };
        Piece { id, partition, records, rest }
    }
}

/// Says that a batch is broken; returns what its rejects say.
fn say_broken(batch: &Batch, partition: i32, why: &str) -> Arc<str> {
    let outline = batch.outline;
    let (first, last, codec) = (outline.first, outline.last, outline.codec.name());
    tracing::warn!(
        partition,
        "the batch of offsets {first}..={last} cannot be read as {codec} ({why}): what cannot is rejected"
    );
    format!("the batch of offsets {first}..={last}, which is compressed with {codec}, cannot be read here").into()
}

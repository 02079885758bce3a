//! Tracks that come as blocks: those of one track are worked on in their order, different tracks side by side.
//!
//! The record of a track's first block stands for the track: it is complete when the track is, and its outputs are the
//! track's. So the group stays at the first block until everything that came of the track is committed, and whoever has
//! the partition next starts the track over.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_lite::{FutureExt, StreamExt};
use tonearm_engine::{Block, Chain, Client, Engine, Failure, Origin, Outcome, pool::Tag, track::guarded};
use tonearm_schemas::{
    block::{self, BlockError, BlockHead, BlockKind, TrackEnd},
    prediction::Source,
    reject::{Reject, RejectClass},
};
use tonearm_stages::windows::Window;

use super::{originals::Originals, receipt::Receipt, record::Record, reply::Reply};
use crate::{
    kafka::headers::Header,
    run::commit::output::{Of, Routes},
};

/// What the work on blocks needs besides the blocks.
#[derive(Clone)]
pub struct BlockWork {
    pub engine: Arc<Engine>,
    pub routes: Arc<Routes>,
    pub originals: Originals,
    pub kind: BlockKind,
}

/// The tracks of one shard, as the loop reads them.
#[derive(Default)]
pub struct OpenTracks {
    open: Option<OpenTrack>,
}

/// The track whose blocks come now.
struct OpenTrack {
    source: Source,
    next: u64,
    feed: UnboundedSender<Piece>,
}

/// What happens to a track, in order. Behind the last piece the rest is for others.
enum Piece {
    Block(Box<Arrived>),
    /// Another track comes before its end; where it stops.
    Cut {
        blocks: u64,
    },
    /// It starts over behind this.
    Superseded,
}

struct Arrived {
    head: BlockHead,
    /// The number the block should have.
    expected: u64,
    record: Record,
    receipt: Receipt,
    received: Instant,
}

impl OpenTracks {
    /// Takes the next record of the partition.
    pub fn take(&mut self, work: &BlockWork, record: Record, receipt: Receipt, received: Instant) {
        let head = match BlockHead::read(work.kind, |name| Header::text(&record.headers, name)) {
            Ok(head) => head,
            Err(error) => return reject_record(work, record, receipt, received, &error),
        };
        // Blocks that start over are a track of their own: the process before made the first ones in another way.
        let goes_on = self.open.as_ref().filter(|open| open.source == head.track.source && head.index > 0);
        let expected = goes_on.map_or(0, |open| open.next);
        if goes_on.is_none()
            && let Some(cut) = self.open.take()
        {
            let superseded = cut.source == head.track.source;
            cut.push(if superseded { Piece::Superseded } else { Piece::Cut { blocks: cut.next } });
        }
        let (index, last, source) = (head.index, head.track.end.is_some(), head.track.source.clone());
        let arrived = Box::new(Arrived { head, expected, record, receipt, received });
        match &mut self.open {
            Some(open) => {
                open.push(Piece::Block(arrived));
                open.next = index + 1;
            }
            None => {
                let (feed, pieces) = unbounded();
                let stage = work.engine.catalogue().stages().first();
                let tag = Tag::new(arrived.head.track.id.clone(), stage);
                let track = track(work.clone(), Arc::clone(&tag), *arrived, pieces);
                work.engine.pool().spawn_fed(tag, track);
                self.open = Some(OpenTrack { source, next: index + 1, feed });
            }
        }
        if last {
            self.open = None;
        }
    }

    /// No more blocks are read: the track that misses some is left to the partition's next owner.
    pub fn leave(&mut self) {
        self.open = None;
    }
}

impl OpenTrack {
    fn push(&self, piece: Piece) {
        // A track that was cancelled, or has ended early, takes no more; what is dropped here says so itself.
        let _ = self.feed.unbounded_send(piece);
    }
}

/// A record that is no block is rejected as it is.
fn reject_record(work: &BlockWork, record: Record, receipt: Receipt, received: Instant, error: &BlockError) {
    let stage = work.engine.catalogue().stages().first();
    let source = Source::Record {
        topic: record.topic.to_string(),
        partition: record.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
    };
    let of = Arc::new(Of { source, received, carried: work.routes.carried(&record) });
    let reject = Reject::new(stage, RejectClass::InvalidBlock, error.to_string());
    receipt.complete(work.routes.reject(&of, record, reject, None));
}

/// How far a track is.
enum Progress {
    Working(Box<Chain>),
    /// It failed. Its last block is waited for, so that all of them are behind it when it is committed.
    Failed {
        reject: Reject,
        last: Option<Box<Block>>,
    },
}

/// Works on a track, from its first block on.
async fn track(work: BlockWork, tag: Arc<Tag>, first: Arrived, mut pieces: UnboundedReceiver<Piece>) {
    let Arrived { head, expected, record, receipt, received } = first;
    let source = head.track.source.clone();
    let origin = Origin { id: head.track.id.clone(), key: record.track(), source: source.clone(), received };
    let of = Arc::new(Of { source, received, carried: work.routes.carried(&record) });
    let reply = Reply { receipt, routes: Arc::clone(&work.routes), of };
    if !reply.may_begin() {
        return;
    }
    let chain = Chain::new(Arc::clone(work.engine.catalogue()), work.engine.pool().clone(), Arc::clone(&tag), origin);
    let mut progress = Progress::Working(Box::new(chain));

    let mut next = (head, expected, record, None);
    loop {
        let (head, expected, record, receipt) = next;
        if let Progress::Working(chain) = &mut progress {
            let fed = feed(&work, chain, &head, expected, &record, &reply);
            let fed = AssertUnwindSafe(fed).catch_unwind().await;
            let failure = match fed {
                Ok(Ok(())) => None,
                Ok(Err(failure)) => Some(Ok(failure)),
                Err(panic) => Some(Err(panic)),
            };
            if let Some(failure) = failure {
                match failed(chain, &tag, failure) {
                    Some(failed) => progress = failed,
                    None => return,
                }
            }
        }
        if !reply.is_wanted() {
            return;
        }
        if let Some(receipt) = receipt {
            Receipt::complete(receipt, Vec::new());
        }
        if let Some(end) = head.track.end {
            return finish(&work, &tag, progress, end, reply).await;
        }
        match pieces.next().await {
            Some(Piece::Block(block)) => {
                let Arrived { head, expected, record, receipt, .. } = *block;
                next = (head, expected, record, Some(receipt));
            }
            Some(Piece::Cut { blocks }) => {
                if let Progress::Working(chain) = &mut progress {
                    let why = format!("its blocks end behind the first {blocks}, without a last one");
                    let Some(failed) = failed(chain, &tag, Ok(invalid(&work, why).into())) else { return };
                    progress = failed;
                }
                if let Progress::Failed { reject, last } = progress {
                    reject_track(&work, reply, reject, last.map(|last| *last)).await;
                }
                return;
            }
            Some(Piece::Superseded) => return reply.receipt.complete(Vec::new()),
            None => return,
        }
    }
}

/// Gives a block's values to the track's stages.
async fn feed(
    work: &BlockWork,
    chain: &mut Chain,
    head: &BlockHead,
    expected: u64,
    record: &Record,
    reply: &Reply,
) -> Result<(), Failure> {
    let BlockHead { index, track } = head;
    if track.end == Some(TrackEnd::Rejected) {
        return Ok(());
    }
    if *index != expected {
        return Err(invalid(work, format!("block {index} comes in place of block {expected}")).into());
    }
    if track.front_end != work.engine.catalogue().front_end_before() {
        return Err(invalid(work, format!("block {index} was made for another model's front end")).into());
    }
    let value = record.value.as_deref().unwrap_or_default();
    let broken = |error: BlockError| invalid(work, format!("block {index}: {error}"));
    match work.kind {
        BlockKind::Pcm => chain.pcm(&block::read_pcm(value).map_err(broken)?, reply).await,
        BlockKind::Features => {
            let [frames, bands] = work.engine.catalogue().window_shape();
            let windows = block::read_features(value, frames, bands).map_err(broken)?;
            let windows = windows.into_iter().map(|(start_frame, values)| Window { start_frame, values });
            chain.windows(windows.collect(), reply).await
        }
    }
}

/// `None` if it was cancelled.
fn failed(chain: &mut Chain, tag: &Tag, failure: std::thread::Result<Failure>) -> Option<Progress> {
    let ended = failure.map(|failure| chain.fail(failure));
    match guarded(chain, tag, ended)? {
        Outcome::Reject { reject, last } => Some(Progress::Failed { reject, last: last.map(Box::new) }),
        Outcome::Prediction(_) | Outcome::Block(_) => None,
    }
}

/// Ends a track behind its last block.
async fn finish(work: &BlockWork, tag: &Tag, progress: Progress, end: TrackEnd, reply: Reply) {
    match (progress, end) {
        (Progress::Working(mut chain), TrackEnd::Whole { audio, timing_ms }) => {
            let ended = AssertUnwindSafe(chain.end(audio, timing_ms, &reply)).catch_unwind().await;
            match guarded(&mut chain, tag, ended) {
                Some(Outcome::Prediction(prediction)) => {
                    let output = reply.routes.prediction(&reply.of, &prediction);
                    reply.receipt.complete(vec![output]);
                }
                Some(Outcome::Block(last)) => {
                    let output = reply.routes.last_block(&reply.of, last);
                    reply.receipt.complete(vec![output]);
                }
                Some(Outcome::Reject { reject, last }) => reject_track(work, reply, reject, last).await,
                None => {}
            }
        }
        (Progress::Failed { reject, last }, TrackEnd::Whole { .. }) => {
            reject_track(work, reply, reject, last.map(|last| *last)).await;
        }
        // An earlier stage has written its reject: only the next stage may have to know.
        (Progress::Working(mut chain), TrackEnd::Rejected) => pass_on(reply, chain.stop()),
        (Progress::Failed { last, .. }, TrackEnd::Rejected) => pass_on(reply, last.map(|last| *last)),
    }
}

/// Rejects the record that a track was encoded in, once that was read again.
async fn reject_track(work: &BlockWork, reply: Reply, reject: Reject, last: Option<Block>) {
    let lease = Arc::clone(reply.receipt.lease());
    if let Some(record) = work.originals.read(&reply.of, lease).await {
        let outputs = reply.routes.reject(&reply.of, record, reject, last);
        reply.receipt.complete(outputs);
    }
}

fn invalid(work: &BlockWork, why: String) -> Reject {
    Reject::new(work.engine.catalogue().stages().first(), RejectClass::InvalidBlock, why)
}

/// Ends a track that an earlier stage rejected.
fn pass_on(reply: Reply, last: Option<Block>) {
    let Reply { receipt, routes, of } = reply;
    receipt.complete(last.map(|last| routes.last_block(&of, last)).into_iter().collect());
}

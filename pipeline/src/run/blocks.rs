//! Tracks that come as blocks: those of one track are worked on in their order, different tracks side by side.
//!
//! The record of a track's first block stands for the track: it is complete when the track is, and its outputs are the
//! track's. So the group stays at the first block until everything that came of the track is committed, and whoever has
//! the partition next starts the track over.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rdkafka::{
    Message,
    message::{BorrowedMessage, Headers},
};
use tonearm_schemas::{
    block::{self, BlockError, BlockHead, BlockKind, TrackEnd},
    prediction::Source,
    reject::{Reject, RejectClass},
};
use tonearm_stages::windows::Window;

use super::{
    encoded::Outputs,
    originals::Originals,
    receipt::Receipt,
    results::{self, Passed, Rejected, Routes},
};
use crate::{
    track::{Block, Chain, Failure, Made, Origin, Sink, Tagger},
    workers::Pool,
};

/// What the work on blocks needs besides the blocks.
pub struct BlockWork {
    pub tagger: Arc<Tagger>,
    pub routes: Arc<Routes>,
    pub originals: Originals,
    pub kind: BlockKind,
}

/// The tracks of one shard, as the loop reads them.
#[derive(Default)]
pub struct Tracks<'c> {
    open: Option<OpenTrack<'c>>,
}

/// The track whose blocks come now.
struct OpenTrack<'c> {
    source: Source,
    next: u64,
    feed: Arc<Feed<'c>>,
}

impl<'c> Tracks<'c> {
    /// Takes the next record of the partition.
    pub fn take(
        &mut self,
        work: &Arc<BlockWork>,
        pool: &Pool<'c>,
        message: BorrowedMessage<'c>,
        receipt: Receipt<'c>,
        received: Instant,
    ) {
        let head = BlockHead::read(work.kind, |name| {
            let header = message.headers()?.iter().find(|header| header.key == name)?;
            std::str::from_utf8(header.value?).ok()
        });
        let head = match head {
            Ok(head) => head,
            Err(error) => return reject_record(work, message, receipt, received, &error),
        };
        // Blocks that start over are a track of their own: the process before made the first ones in another way.
        let goes_on = self.open.as_ref().filter(|open| open.source == head.track.source && head.index > 0);
        let expected = goes_on.map_or(0, |open| open.next);
        if goes_on.is_none()
            && let Some(cut) = self.open.take()
        {
            let end = if cut.source == head.track.source { Piece::Superseded } else { Piece::Cut { blocks: cut.next } };
            cut.feed.push(work, pool, end);
        }
        let open = self.open.get_or_insert_with(|| OpenTrack {
            source: head.track.source.clone(),
            next: 0,
            feed: Arc::default(),
        });
        let (index, last) = (head.index, head.track.end.is_some());
        open.feed.push(work, pool, Piece::Block(Box::new(Arrived { head, expected, message, receipt, received })));
        open.next = index + 1;
        if last {
            self.open = None;
        }
    }

    /// No more blocks are read: the track that misses some is left to the partition's next owner.
    pub fn leave(&mut self, work: &Arc<BlockWork>, pool: &Pool<'c>) {
        if let Some(open) = self.open.take() {
            open.feed.push(work, pool, Piece::Left);
        }
    }
}

/// A record that is no block is rejected as it is.
fn reject_record<'c>(
    work: &BlockWork,
    message: BorrowedMessage<'c>,
    receipt: Receipt<'c>,
    received: Instant,
    error: &BlockError,
) {
    let reject = Reject::new(work.tagger.stages().first(), RejectClass::InvalidBlock, error.to_string());
    let passed = Passed::of(&message);
    let made = Made::Reject { reject, last: None };
    if let Some(outputs) = results::end(&work.routes, &passed, made, received, || Some(Rejected::of(message))) {
        receipt.complete(outputs);
    }
}

/// What happens to a track, in order.
enum Piece<'c> {
    Block(Box<Arrived<'c>>),
    /// Another track comes before its end; where it stops.
    Cut {
        blocks: u64,
    },
    /// It starts over behind this.
    Superseded,
    /// The rest is for others.
    Left,
}

struct Arrived<'c> {
    head: BlockHead,
    /// The number the block should have.
    expected: u64,
    message: BorrowedMessage<'c>,
    receipt: Receipt<'c>,
    received: Instant,
}

/// The blocks of one track on their way to whichever worker has time; one at a time works on them.
#[derive(Default)]
struct Feed<'c> {
    queue: Mutex<Queue<'c>>,
    /// None before the first block and behind the end.
    track: Mutex<Option<TrackWork<'c>>>,
}

#[derive(Default)]
struct Queue<'c> {
    pieces: VecDeque<Piece<'c>>,
    running: bool,
}

/// A track being worked on.
struct TrackWork<'c> {
    first: First<'c>,
    state: State,
}

/// The record of a track's first block, which stands for it.
struct First<'c> {
    receipt: Receipt<'c>,
    passed: Passed,
    received: Instant,
    /// The record the track was in when it was encoded.
    source: Source,
}

enum State {
    Working(Box<Chain>),
    /// It failed. Its last block is waited for, so that all of them are behind it when it is committed.
    Failed(Box<Failed>),
}

struct Failed {
    reject: Reject,
    /// Tells the next stage.
    last: Option<Block>,
}

impl<'c> Feed<'c> {
    fn push(self: &Arc<Self>, work: &Arc<BlockWork>, pool: &Pool<'c>, piece: Piece<'c>) {
        let mut queue = self.lock();
        queue.pieces.push_back(piece);
        if !std::mem::replace(&mut queue.running, true) {
            let (feed, work) = (Arc::clone(self), Arc::clone(work));
            pool.submit(Box::new(move |pool| feed.run(&work, pool)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<'c>> {
        // No code that can panic runs under this lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, work: &BlockWork, pool: &Pool<'c>) {
        // Held by one run at a time, so it is never waited for.
        let mut track = self.track.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let piece = {
                let mut queue = self.lock();
                match queue.pieces.pop_front() {
                    Some(piece) => piece,
                    None => {
                        queue.running = false;
                        return;
                    }
                }
            };
            *track = work.go_on(pool, track.take(), piece);
        }
    }
}

impl BlockWork {
    /// None where the track has ended or is of no use any more.
    fn go_on<'c>(&self, pool: &Pool<'c>, track: Option<TrackWork<'c>>, piece: Piece<'c>) -> Option<TrackWork<'c>> {
        match piece {
            Piece::Block(block) => return self.take(pool, track, *block),
            Piece::Cut { blocks } => {
                let TrackWork { first, state } = track?;
                let state = match state {
                    State::Working(chain) => {
                        let why = format!("its blocks end behind the first {blocks}, without a last one");
                        self.failed(pool, *chain, self.invalid(why).into())?
                    }
                    failed @ State::Failed(_) => failed,
                };
                self.finish(first, state);
            }
            Piece::Superseded => track?.first.receipt.complete(Vec::new()),
            Piece::Left => {}
        }
        None
    }

    fn take<'c>(&self, pool: &Pool<'c>, track: Option<TrackWork<'c>>, block: Arrived<'c>) -> Option<TrackWork<'c>> {
        let Arrived { head, expected, message, receipt, received } = block;
        let (TrackWork { first, state }, receipt) = match track {
            Some(track) => (track, Some(receipt)),
            None => (self.begin(&head, &message, receipt, received)?, None),
        };
        // What is dropped here is abandoned.
        if !first.receipt.lease().may_go_on() {
            return None;
        }
        let state = match state {
            State::Working(chain) => self.feed(pool, &first, chain, &head, expected, &message)?,
            failed @ State::Failed(_) => failed,
        };
        drop(message);
        if let Some(receipt) = receipt {
            receipt.complete(Vec::new());
        }
        match head.track.end {
            Some(end) => self.end(pool, first, state, end),
            None => Some(TrackWork { first, state }),
        }
    }

    fn begin<'c>(
        &self,
        head: &BlockHead,
        message: &BorrowedMessage<'c>,
        receipt: Receipt<'c>,
        received: Instant,
    ) -> Option<TrackWork<'c>> {
        if !receipt.lease().may_start() {
            return None;
        }
        let source = head.track.source.clone();
        let origin = Origin {
            id: head.track.id.clone(),
            key: message.key().and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned),
            source: source.clone(),
            received,
        };
        let first = First { receipt, passed: Passed::of(message), received, source };
        let state = State::Working(Box::new(Chain::new(Arc::clone(&self.tagger), origin)));
        Some(TrackWork { first, state })
    }

    /// Gives a block's values to the track's stages. None where the track is of no use any more.
    fn feed(
        &self,
        pool: &Pool<'_>,
        first: &First<'_>,
        mut chain: Box<Chain>,
        head: &BlockHead,
        expected: u64,
        message: &BorrowedMessage<'_>,
    ) -> Option<State> {
        let value = message.payload().unwrap_or_default();
        let sink = self.sink(first);
        let fed = catch_unwind(AssertUnwindSafe(|| self.values(pool, &mut chain, head, expected, value, &sink)));
        match fed.unwrap_or_else(|_| Err(self.invalid("the stages panicked on its values".to_owned()).into())) {
            Ok(()) => Some(State::Working(chain)),
            Err(failure) => self.failed(pool, *chain, failure),
        }
    }

    fn values(
        &self,
        pool: &Pool<'_>,
        chain: &mut Chain,
        head: &BlockHead,
        expected: u64,
        value: &[u8],
        sink: &dyn Sink,
    ) -> Result<(), Failure> {
        let BlockHead { index, track } = head;
        if track.end == Some(TrackEnd::Rejected) {
            return Ok(());
        }
        if *index != expected {
            return Err(self.invalid(format!("block {index} comes in place of block {expected}")).into());
        }
        if track.front_end != self.tagger.front_end_before() {
            return Err(self.invalid(format!("block {index} was made for another model's front end")).into());
        }
        let invalid = |error: BlockError| self.invalid(format!("block {index}: {error}"));
        match self.kind {
            BlockKind::Pcm => chain.pcm(pool, &block::read_pcm(value).map_err(invalid)?, sink),
            BlockKind::Features => {
                let [frames, bands] = self.tagger.window_shape();
                let windows = block::read_features(value, frames, bands).map_err(invalid)?;
                let windows = windows.into_iter().map(|(start_frame, values)| Window { start_frame, values });
                chain.windows(pool, windows.collect(), sink)
            }
        }
    }

    fn failed(&self, pool: &Pool<'_>, chain: Chain, failure: Failure) -> Option<State> {
        match chain.fail(pool, failure)? {
            Made::Reject { reject, last } => Some(State::Failed(Box::new(Failed { reject, last }))),
            Made::Prediction(_) | Made::Block(_) => None,
        }
    }

    fn end<'c>(&self, pool: &Pool<'c>, first: First<'c>, state: State, end: TrackEnd) -> Option<TrackWork<'c>> {
        match (state, end) {
            (State::Working(chain), TrackEnd::Whole { audio, timing_ms }) => {
                let made = chain.end(pool, audio, timing_ms, &self.sink(&first))?;
                self.hand_over(first, made);
            }
            (failed @ State::Failed(_), TrackEnd::Whole { .. }) => self.finish(first, failed),
            // An earlier stage has written its reject.
            (State::Working(chain), TrackEnd::Rejected) => self.pass_on(first, chain.drop_rejected(pool)),
            (State::Failed(failed), TrackEnd::Rejected) => self.pass_on(first, failed.last),
        }
        None
    }

    fn finish(&self, first: First<'_>, state: State) {
        if let State::Failed(failed) = state {
            let Failed { reject, last } = *failed;
            self.hand_over(first, Made::Reject { reject, last });
        }
    }

    fn hand_over(&self, first: First<'_>, made: Made) {
        let First { receipt, passed, received, source } = first;
        let rejected = || self.original(&source, &receipt, &passed);
        if let Some(outputs) = results::end(&self.routes, &passed, made, received, rejected) {
            receipt.complete(outputs);
        }
    }

    fn pass_on(&self, first: First<'_>, last: Option<Block>) {
        let First { receipt, passed, received, .. } = first;
        let last = last.map(|last| results::block(&self.routes, &passed, last, received));
        receipt.complete(last.into_iter().collect());
    }

    fn sink<'a, 'c>(&'a self, first: &'a First<'c>) -> Outputs<'a, 'c> {
        Outputs { receipt: &first.receipt, routes: &self.routes, passed: &first.passed, received: first.received }
    }

    /// The record a track was in when it was encoded. None where its shard is given up meanwhile.
    fn original<'c>(&self, source: &Source, receipt: &Receipt<'_>, passed: &Passed) -> Option<Rejected<'c>> {
        let Source::Record { topic, partition, offset, timestamp_ms } = source else { return None };
        let wanted = || receipt.lease().may_go_on();
        match self.originals.read(topic, *partition, *offset, &wanted).ok()? {
            Some(message) => Some(Rejected::of_owned(message)),
            None => {
                tracing::warn!("record {topic}-{partition}-{offset} is no longer there; its reject has no value");
                Some(Rejected::gone(topic, *partition, *offset, *timestamp_ms, passed))
            }
        }
    }

    fn invalid(&self, why: String) -> Reject {
        Reject::new(self.tagger.stages().first(), RejectClass::InvalidBlock, why)
    }
}

//! A shard: one assigned partition, its queue, its ledger, and the records of it that workers have.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    blocks::Tracks,
    group::PartitionQueue,
    ledger::{Ledger, Position},
    results::Output,
};

/// One assigned partition.
pub struct Shard<'c> {
    /// Tells this assignment from an earlier one of the same partition, whose records may still be with workers.
    pub epoch: u64,
    pub queue: &'c PartitionQueue,
    pub ledger: Ledger<Output<'c>>,
    pub lease: Arc<Lease>,
    /// Of an input of blocks.
    pub tracks: Tracks<'c>,
    /// Where the group was when the partition came; None until that is known, and nothing is read before.
    pub start: Option<Option<Position>>,
    /// Not read for now, because its share of the bytes in flight is used up.
    pub full: bool,
    /// Set while the shard drains: when to stop waiting for records being worked on.
    pub deadline: Option<Instant>,
}

impl<'c> Shard<'c> {
    pub fn new(epoch: u64, queue: &'c PartitionQueue) -> Self {
        Self {
            epoch,
            queue,
            ledger: Ledger::default(),
            lease: Arc::default(),
            tracks: Tracks::default(),
            start: None,
            full: false,
            deadline: None,
        }
    }

    /// Consuming → draining: no record is started any more, those started may finish until `deadline`.
    pub fn drain(&mut self, deadline: Instant) {
        self.lease.end(Term::NoNew);
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    /// True where records may be taken from its queue.
    pub fn wants_more(&self) -> bool {
        self.deadline.is_none() && self.start.is_some() && !self.full
    }

    /// True where its results may be sent: what is late belongs to the partition's next owner.
    pub fn may_send(&self, now: Instant) -> bool {
        self.deadline.is_none_or(|deadline| now < deadline)
    }

    /// Draining → done: nothing more will come of it, and nothing of it is sent and not committed.
    pub fn is_done(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| (self.ledger.is_drained() || now >= deadline) && !self.ledger.has_sent())
    }
}

/// What the workers that have records of a shard may do; the loop sets it.
#[derive(Default)]
pub struct Lease {
    terms: Mutex<Terms>,
    changed: Condvar,
}

#[derive(Default)]
struct Terms {
    term: Term,
    /// The first record that is not complete: its blocks may take all the room there is.
    head: Option<i64>,
    /// Bytes of blocks made and not yet committed.
    held: usize,
    /// Bytes of blocks that may be held.
    room: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Term {
    #[default]
    Running,
    NoNew,
    Over,
}

impl Lease {
    fn lock(&self) -> MutexGuard<'_, Terms> {
        // No code that can panic runs under this lock.
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, term: Term) {
        let mut terms = self.lock();
        terms.term = terms.term.max(term);
        drop(terms);
        self.changed.notify_all();
    }

    /// Records being worked on are of no use any more.
    pub fn revoke(&self) {
        self.end(Term::Over);
    }

    pub fn may_start(&self) -> bool {
        self.lock().term < Term::NoNew
    }

    pub fn may_go_on(&self) -> bool {
        self.lock().term < Term::Over
    }

    /// Says which record is the head, and how many bytes of blocks may be held.
    pub fn allow(&self, head: Option<i64>, room: usize) {
        let mut terms = self.lock();
        if terms.head != head || terms.room != room {
            (terms.head, terms.room) = (head, room);
            drop(terms);
            self.changed.notify_all();
        }
    }

    /// Waits for room for a block of the record at `offset`. False where the lease ended.
    ///
    /// Records behind the head leave half of the room to it. So the head always goes on: its blocks are sent and committed
    /// whatever the others do, and a worker has it, as records are started in order.
    pub fn reserve(&self, offset: i64, bytes: usize) -> bool {
        let mut terms = self.lock();
        loop {
            if terms.term == Term::Over {
                return false;
            }
            let room = if terms.head.is_none_or(|head| offset <= head) { terms.room } else { terms.room / 2 };
            if terms.held + bytes <= room || terms.held == 0 {
                terms.held += bytes;
                return true;
            }
            terms = self.changed.wait(terms).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives the room of a block back.
    pub fn release(&self, bytes: usize) {
        let mut terms = self.lock();
        terms.held = terms.held.saturating_sub(bytes);
        drop(terms);
        self.changed.notify_all();
    }
}

//! A shard: one assigned partition, its ledger, and the records of it that workers have.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use super::{ledger::Ledger, outbox::OutRecord};

/// A finished record: its result, and what its metrics need.
pub struct Finished<'c> {
    pub record: OutRecord<'c>,
    pub rejected: bool,
    pub received: Instant,
    pub finished: Instant,
}

/// One assigned partition.
pub struct Shard<'c> {
    /// Tells this assignment from an earlier one of the same partition, whose records may still be with workers.
    pub epoch: u64,
    pub ledger: Ledger<Finished<'c>>,
    pub lease: Arc<Lease>,
    /// Not read for now, because its share of the bytes in flight is used up.
    pub paused: bool,
    /// Set while the shard drains: when to stop waiting for records being worked on.
    pub deadline: Option<Instant>,
}

impl Shard<'_> {
    pub fn new(epoch: u64) -> Self {
        Self { epoch, ledger: Ledger::default(), lease: Arc::default(), paused: false, deadline: None }
    }

    /// Consuming → draining: no record is started any more, those started may finish until `deadline`.
    pub fn drain(&mut self, deadline: Instant) {
        self.lease.set(Lease::NO_NEW);
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    /// Draining, and nothing more will come of it.
    pub fn is_done(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| self.ledger.is_drained() || now >= deadline)
    }
}

/// How long the records of a shard may still be worked on; read by the workers that have them.
#[derive(Default)]
pub struct Lease(AtomicU8);

impl Lease {
    const NO_NEW: u8 = 1;
    const NONE: u8 = 2;

    fn set(&self, level: u8) {
        self.0.fetch_max(level, Ordering::Relaxed);
    }

    /// Records being worked on are of no use any more.
    pub fn revoke(&self) {
        self.set(Self::NONE);
    }

    pub fn may_start(&self) -> bool {
        self.0.load(Ordering::Relaxed) < Self::NO_NEW
    }

    pub fn may_go_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) < Self::NONE
    }
}

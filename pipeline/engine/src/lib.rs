//! The engine: tracks on their way from encoded bytes to results, on one pool of CPU threads. It knows neither Kafka
//! nor HTTP; `run`, `predict` and whoever comes next ask it for [`Job`]s.
//!
//! A track is a future, read from top to bottom in [`track`]. One that waits (for room, for scores, for its next block)
//! is put down, and taken up by what it waits for: no CPU thread ever waits.

pub mod catalogue;
pub mod chain;
pub mod events;
pub mod job;
pub mod pool;
mod prediction;
mod scores;
pub mod stages;
pub mod track;

use std::{io, num::NonZeroUsize, sync::Arc, time::Duration};

use self::pool::{Occupied, Pool, Tag, Workers};
pub use self::{
    catalogue::Catalogue,
    chain::Chain,
    job::{Block, Caller, Client, Failure, Job, Origin, Outcome},
    stages::Stages,
};

/// A pool of workers, and what they do with a track.
pub struct Engine {
    catalogue: Arc<Catalogue>,
    workers: Workers,
}

impl Engine {
    /// # Errors
    /// A thread cannot be started.
    pub fn start(catalogue: Arc<Catalogue>, workers: NonZeroUsize) -> io::Result<Self> {
        Ok(Self { catalogue, workers: Workers::start(workers)? })
    }

    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    pub fn pool(&self) -> &Pool {
        self.workers.pool()
    }

    /// Queues an encoded track; its caller hears how it ends. The caller bounds how many there are.
    pub fn submit(&self, job: Job) {
        let tag = Tag::new(job.origin.id.clone(), self.catalogue.stages().first());
        let track = track::work(Arc::clone(&self.catalogue), self.pool().clone(), Arc::clone(&tag), job);
        self.pool().spawn_record(tag, track);
    }

    /// Tracks that have made no progress on a worker for longer than `bound`.
    pub fn stuck(&self, bound: Duration) -> Vec<Occupied> {
        self.workers.occupied().into_iter().filter(|occupied| occupied.still >= bound).collect()
    }

    /// Waits until every track has ended, and lets the workers go. A dropped engine lets them go without waiting.
    pub fn finish(self) {
        self.workers.finish();
    }
}

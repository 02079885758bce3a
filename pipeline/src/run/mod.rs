//! `tonearm run`: the loop that reads records, hands them to the workers, and writes what they make of them.
//!
//! One thread owns the consumer and all shards, so there is nothing to lock: it takes what has happened (rebalances,
//! records, results, commits), then does what is due (send, commit, pause, give partitions back). It neither computes nor
//! waits for brokers, so membership in the group does not depend on how long records or commits take.

mod group;
mod ledger;
mod outbox;
mod record;
mod shard;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
};

use self::{
    group::{Change, GroupConsumer},
    outbox::{Closed, Outbox, OutboxError},
    record::Routes,
    shard::{Finished, Shard},
};
use crate::{
    config::{Config, Delivery},
    kafka::{self, ClientError},
    telemetry::{admin::Health, metrics},
    track::Tagger,
    workers::{CloseOnDrop, Pool},
};
pub use shard::Lease;

/// The loop looks for what is due at least this often.
const TICK: Duration = Duration::from_millis(100);
/// A transaction is committed before its interval is over once it holds this much.
const COMMIT_BYTES: usize = 16 << 20;
/// With no time at all, rdkafka returns after every log line and statistic without looking for what lies behind it.
const POLL: Duration = Duration::from_millis(1);
/// After the drain's deadline, the last commit gets this long.
const COMMIT_GRACE: Duration = Duration::from_secs(2);
/// Records taken per turn, so that results are not kept waiting by a full queue.
const READ_AHEAD: usize = 256;

/// Why `run` ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error("the consumer cannot go on: {0}")]
    Consumer(KafkaError),
}

/// Works until `stop` is set, then drains and leaves the group.
///
/// # Errors
/// Kafka cannot be reached at the start, topics are missing, or another process took this instance's place.
pub fn run(config: &Config, tagger: &Arc<Tagger>, health: &Health, stop: &AtomicBool) -> Result<(), RunError> {
    let (wake, woken) = bounded(1);
    let mut consumer = group::consumer(config, health, wake.clone())?;
    consumer.set_nonempty_callback(move || _ = wake.try_send(()));
    let inputs = kafka::partitions(consumer.client(), &config.kafka, &config.topics.audio)?;
    let outbox = Outbox::open(config)?;
    let predictions = outbox.partitions(config, &config.topics.predictions)?;
    let rejected = outbox.partitions(config, &config.topics.rejected)?;
    let routes = Arc::new(Routes::new(&config.topics, inputs, predictions, rejected));
    consumer.subscribe(&[&config.topics.audio]).map_err(RunError::Consumer)?;
    tracing::info!(
        group = config.kafka.group_id,
        instance = config.kafka.instance_id,
        topic = config.topics.audio,
        partitions = inputs,
        workers = config.runtime.workers,
        "joining the group"
    );

    let pool = Pool::new();
    let result = std::thread::scope(|scope| {
        let _close = CloseOnDrop(&pool);
        for worker in 0..config.runtime.workers.get() {
            let work = || pool.work();
            if let Err(error) = std::thread::Builder::new().name(format!("worker-{worker}")).spawn_scoped(scope, work) {
                tracing::error!("worker {worker} cannot be started: {error}");
            }
        }
        let (results_in, results) = unbounded();
        let mut runtime = Runtime {
            config,
            consumer: &consumer,
            pool: &pool,
            tagger,
            routes,
            outbox,
            shards: BTreeMap::new(),
            revoked: Vec::new(),
            epochs: 0,
            results_in,
            results,
            woken,
            stopping: None,
        };
        let result = runtime.work(stop);
        runtime.abandon();
        result
    });
    consumer.context().close();
    drop(pool);
    drop(consumer);
    tracing::info!("left the group");
    result
}

/// What a worker says of a record it had.
struct Worked<'c> {
    epoch: u64,
    partition: i32,
    offset: i64,
    /// None: abandoned.
    finished: Option<Finished<'c>>,
}

struct Runtime<'c, 'r> {
    config: &'r Config,
    consumer: &'c GroupConsumer,
    pool: &'r Pool<'c>,
    tagger: &'r Arc<Tagger>,
    routes: Arc<Routes>,
    outbox: Outbox,
    /// By partition.
    shards: BTreeMap<i32, Shard<'c>>,
    /// Partitions that go back to the group once their shards are done.
    revoked: Vec<TopicPartitionList>,
    epochs: u64,
    results_in: Sender<Worked<'c>>,
    results: Receiver<Worked<'c>>,
    woken: Receiver<()>,
    /// Set once the process is to end: when to stop waiting for what is not committed.
    stopping: Option<Instant>,
}

impl<'c> Runtime<'c, '_> {
    fn work(&mut self, stop: &AtomicBool) -> Result<(), RunError> {
        loop {
            self.wait()?;
            if stop.load(Ordering::Relaxed) && self.stopping.is_none() {
                self.stop();
            }
            self.take_changes();
            self.take_messages()?;
            self.take_results();
            self.send()?;
            self.commit_if_due()?;
            self.finish_drains();
            self.balance();
            if let Some(deadline) = self.stopping {
                let now = Instant::now();
                let done = self.outbox.is_idle() && self.shards.values().all(|shard| shard.is_done(now));
                // With the brokers gone a commit may never end; whoever comes next starts over from the last one.
                if done || now >= deadline + COMMIT_GRACE {
                    return Ok(());
                }
            }
        }
    }

    /// Until something happened or is due.
    fn wait(&mut self) -> Result<(), RunError> {
        let until_commit = match self.outbox.pending() {
            Some((since, _)) => self.config.runtime.commit_interval.saturating_sub(since.elapsed()),
            None => TICK,
        };
        let (mut worked, mut closed) = (None, None);
        select! {
            recv(self.results) -> result => worked = result.ok(),
            recv(self.outbox.answers()) -> answer => closed = answer.ok(),
            recv(self.woken) -> _ => {}
            default(until_commit.min(TICK)) => {}
        }
        worked.into_iter().for_each(|worked| self.take_result(worked));
        closed.map_or(Ok(()), |closed| self.take_closed(closed?))
    }

    fn stop(&mut self) {
        let deadline = Instant::now() + self.config.runtime.drain_timeout;
        self.stopping = Some(deadline);
        tracing::info!(
            records = self.shards.values().map(|shard| shard.ledger.len()).sum::<usize>(),
            "stopping: finishing the records being worked on"
        );
        let partitions: Vec<i32> = self.shards.keys().copied().collect();
        self.pause(&partitions);
        self.shards.values_mut().for_each(|shard| shard.drain(deadline));
    }

    fn take_changes(&mut self) {
        while let Some(change) = self.consumer.context().next_change() {
            match change {
                Change::Assigned(partitions) => self.assigned(&partitions),
                Change::Revoked(partitions) => self.revoked(partitions),
            }
        }
    }

    fn assigned(&mut self, partitions: &TopicPartitionList) {
        if let Err(error) = group::assign(self.consumer, partitions) {
            tracing::error!("the group's assignment cannot be taken up: {error}");
            return;
        }
        for partition in numbers(partitions) {
            self.epochs += 1;
            let mut shard = Shard::new(self.epochs);
            if self.stopping.is_some() {
                shard.drain(Instant::now());
            }
            self.shards.insert(partition, shard);
        }
        metrics::rebalanced("assigned", &numbers(partitions), self.shards.len());
    }

    fn revoked(&mut self, partitions: TopicPartitionList) {
        let lost = self.consumer.assignment_lost();
        let now = Instant::now();
        // Another process already owns lost partitions: what is held of them is void, and may not be committed.
        let deadline = if lost { now } else { now + self.config.runtime.drain_timeout };
        let numbers = numbers(&partitions);
        if lost && !self.outbox.is_idle() {
            self.outbox.abort("partitions were lost to another process");
        }
        for partition in &numbers {
            if let Some(shard) = self.shards.get_mut(partition) {
                shard.drain(deadline);
            }
        }
        self.pause(&numbers);
        metrics::rebalanced(if lost { "lost" } else { "revoked" }, &numbers, self.shards.len() - numbers.len());
        self.revoked.push(partitions);
    }

    fn take_messages(&mut self) -> Result<(), RunError> {
        for _ in 0..READ_AHEAD {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => self.take_message(message),
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(RunError::Consumer(error)),
                Some(Err(error)) => kafka::log_error(&error, "the consumer goes on"),
                None => break,
            }
            if self.in_flight() >= self.config.runtime.in_flight_bytes {
                break;
            }
        }
        self.take_changes();
        Ok(())
    }

    fn take_message(&mut self, message: BorrowedMessage<'c>) {
        let (partition, offset) = (message.partition(), message.offset());
        // A draining shard takes nothing on; the partition's next owner reads the record again.
        let Some(shard) = self.shards.get_mut(&partition).filter(|shard| shard.deadline.is_none()) else {
            return;
        };
        let bytes = message.payload_len();
        if !shard.ledger.accept(offset, bytes + record::OVERHEAD_BYTES) {
            tracing::warn!(partition, offset, "a record was delivered twice and is taken once");
            return;
        }
        metrics::record_read(bytes);
        let received = Instant::now();
        let (tagger, routes) = (Arc::clone(self.tagger), Arc::clone(&self.routes));
        let (lease, results, epoch) = (Arc::clone(&shard.lease), self.results_in.clone(), shard.epoch);
        self.pool.submit(Box::new(move |pool| {
            let finished = record::process(&tagger, pool, &routes, &lease, message, received);
            // The loop ends before its workers only when it no longer wants results.
            let _ = results.send(Worked { epoch, partition, offset, finished });
        }));
    }

    fn take_results(&mut self) {
        while let Ok(worked) = self.results.try_recv() {
            self.take_result(worked);
        }
    }

    fn take_result(&mut self, worked: Worked<'c>) {
        let shard = self.shards.get_mut(&worked.partition).filter(|shard| shard.epoch == worked.epoch);
        match (shard, worked.finished) {
            (Some(shard), Some(finished)) => {
                shard.ledger.finish(worked.offset, record::held_bytes(&finished), finished);
            }
            (Some(shard), None) => shard.ledger.abandon(worked.offset),
            (None, _) => {}
        }
    }

    fn send(&mut self) -> Result<(), RunError> {
        if !self.outbox.is_open() {
            return Ok(());
        }
        for shard in self.shards.values_mut() {
            while let Some(finished) = shard.ledger.next_to_send() {
                if !self.outbox.send(&finished.record)? {
                    return Ok(());
                }
                shard.ledger.mark_sent();
            }
        }
        Ok(())
    }

    fn commit_if_due(&mut self) -> Result<(), RunError> {
        let Some((since, bytes)) = self.outbox.pending() else {
            return Ok(());
        };
        let draining = self.shards.values().any(|shard| shard.deadline.is_some());
        if since.elapsed() < self.config.runtime.commit_interval && bytes < COMMIT_BYTES && !draining {
            return Ok(());
        }
        let mut positions = TopicPartitionList::new();
        for (&partition, shard) in &self.shards {
            if let Some(position) = shard.ledger.position() {
                positions
                    .add_partition_offset(&self.config.topics.audio, partition, Offset::Offset(position))
                    .map_err(RunError::Consumer)?;
            }
        }
        self.outbox.commit(positions, self.consumer.group_metadata());
        Ok(())
    }

    fn take_closed(&mut self, closed: Closed) -> Result<(), RunError> {
        let took = self.outbox.closed();
        match closed {
            Closed::Committed(positions) => {
                self.note_positions(&positions);
                let now = Instant::now();
                let mut records = 0;
                for shard in self.shards.values_mut() {
                    for finished in shard.ledger.commit() {
                        record::committed(&finished, now);
                        records += 1;
                    }
                }
                metrics::committed(records, took);
            }
            Closed::Aborted(reason) => {
                metrics::aborted(&reason);
                self.shards.values_mut().for_each(|shard| shard.ledger.rewind());
            }
        }
        Ok(())
    }

    /// Tells librdkafka where the group is: for the lag in its statistics, and with at-least-once for the group itself.
    fn note_positions(&self, positions: &TopicPartitionList) {
        if let Err(error) = self.consumer.store_offsets(positions) {
            tracing::debug!("the lag is stale: {error}");
        }
        if self.config.runtime.delivery == Delivery::AtLeastOnce {
            // Results are written: what of this is lost is repeated, as promised.
            if let Err(error) = self.consumer.commit(positions, CommitMode::Async) {
                tracing::warn!("offsets are not committed, their records may be repeated: {error}");
            }
        }
    }

    /// Gives revoked partitions back whose shards are done.
    fn finish_drains(&mut self) {
        let now = Instant::now();
        for shard in self.shards.values().filter(|shard| shard.deadline.is_some_and(|deadline| now >= deadline)) {
            shard.lease.revoke();
        }
        // What is sent of a shard must be committed or void before another process may read on.
        if !self.outbox.is_idle() {
            return;
        }
        let shards = &mut self.shards;
        let consumer = self.consumer;
        self.revoked.retain(|partitions| {
            let numbers = numbers(partitions);
            let done = numbers.iter().filter_map(|number| shards.get(number)).all(|shard| shard.is_done(now));
            if done {
                for number in &numbers {
                    if let Some(shard) = shards.remove(number) {
                        shard.lease.revoke();
                        metrics::in_flight(*number, 0);
                    }
                }
                if let Err(error) = group::unassign(consumer, partitions) {
                    tracing::error!("partitions cannot be given back: {error}");
                }
            }
            !done
        });
    }

    fn in_flight(&self) -> usize {
        self.shards.values().map(|shard| shard.ledger.bytes()).sum()
    }

    /// Pauses shards that used their share of the bytes in flight up, and resumes those that have room again.
    fn balance(&mut self) {
        let limit = self.config.runtime.in_flight_bytes;
        let share = limit / self.shards.len().max(1);
        let full = self.in_flight() >= limit;
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for (&partition, shard) in &mut self.shards {
            let bytes = shard.ledger.bytes();
            metrics::in_flight(partition, bytes);
            if shard.deadline.is_some() {
                continue;
            }
            if !shard.paused && (full || bytes >= share) {
                pause.push(partition);
            } else if shard.paused && !full && bytes <= share / 2 {
                shard.paused = false;
                resume.push(partition);
            }
        }
        if !pause.is_empty() {
            self.pause(&pause);
        }
        if !resume.is_empty() {
            let done = self.consumer.resume(&self.list(&resume));
            done.unwrap_or_else(|error| tracing::warn!("partitions {resume:?} cannot be resumed: {error}"));
        }
        metrics::paused(self.shards.values().filter(|shard| shard.paused).count());
    }

    fn pause(&mut self, partitions: &[i32]) {
        match self.consumer.pause(&self.list(partitions)) {
            Ok(()) => {
                for partition in partitions {
                    if let Some(shard) = self.shards.get_mut(partition) {
                        shard.paused = true;
                    }
                }
            }
            Err(error) => tracing::warn!("partitions {partitions:?} cannot be paused: {error}"),
        }
    }

    fn list(&self, partitions: &[i32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            list.add_partition(&self.config.topics.audio, partition);
        }
        list
    }

    /// The end: whatever workers still have is of no use.
    fn abandon(&mut self) {
        let records: usize = self.shards.values().map(|shard| shard.ledger.len()).sum();
        if records > 0 {
            tracing::info!(records, "not finished in time; the partitions' next owner starts over with these records");
        }
        self.shards.values().for_each(|shard| shard.lease.revoke());
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(|element| element.partition()).collect()
}

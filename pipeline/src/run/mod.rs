//! `tonearm run`: the loop that reads records, hands them to the workers, and writes what they make of them.
//!
//! One thread owns the consumer and all shards, so there is nothing to lock: it takes what has happened (rebalances,
//! records, results, commits), then does what is due (send, commit, give partitions back). It neither computes nor waits
//! for brokers, so membership in the group does not depend on how long records or commits take.

mod blocks;
mod committer;
mod encoded;
mod group;
mod ledger;
mod offsets;
mod originals;
mod outbox;
mod rebalance;
mod receipt;
mod results;
mod shard;
mod transaction;

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
    Message, TopicPartitionList,
    consumer::{CommitMode, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
};
use typed_arena::Arena;

use self::{
    blocks::BlockWork,
    group::{GroupConsumer, PartitionQueue},
    offsets::Positions,
    originals::Originals,
    outbox::Outbox,
    receipt::{News, Receipt, Worked},
    results::Routes,
    shard::Shard,
    transaction::{Closed, End, TransactionsError},
};
use crate::{
    config::{Config, Delivery},
    kafka::{self, ClientError},
    telemetry::{admin::Health, metrics},
    track::Tagger,
    workers::{CloseOnDrop, Pool},
};

/// The loop looks for what is due at least this often.
const TICK: Duration = Duration::from_millis(100);
/// A transaction is committed before its interval is over once it holds this much.
const COMMIT_BYTES: usize = 16 << 20;
/// With no time at all, rdkafka returns after every log line and statistic without looking for what lies behind it.
const POLL: Duration = Duration::from_millis(1);
/// After the drain's deadline, the last commit gets this long.
const COMMIT_GRACE: Duration = Duration::from_secs(2);
/// Records taken from a shard per turn, so that results are not kept waiting by full queues.
const READ_AHEAD: usize = 64;
/// A member without partitions may still wait for those of one that died: longer than the session timeout of the brokers
/// that `scripts/kafka` starts.
const SPARE_AFTER: Duration = Duration::from_secs(15);

/// Why `run` ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Transactions(#[from] TransactionsError),
    #[error("the consumer cannot go on: {0}")]
    Consumer(KafkaError),
    #[error(
        "topic {input} has {inputs} partitions and {output} has {outputs}: \
         blocks keep their partition, so give both topics as many"
    )]
    Partitions { input: String, inputs: usize, output: String, outputs: usize },
    #[error("topic {topic} has grown to more than {known} partitions; start again to work on the new ones")]
    Grown { topic: String, known: usize },
}

/// Works until `stop` is set, then drains and leaves the group.
///
/// # Errors
/// Kafka cannot be reached at the start, topics are missing or do not fit, or another process took this instance's place.
pub fn run(config: &Config, tagger: &Arc<Tagger>, health: &Health, stop: &AtomicBool) -> Result<(), RunError> {
    let (wake, woken) = bounded(1);
    let mut consumer = group::consumer(config, wake.clone())?;
    consumer.set_nonempty_callback({
        let wake = wake.clone();
        move || _ = wake.try_send(())
    });
    let consumer = Arc::new(consumer);
    let input = config.input_topic();
    let inputs = kafka::partitions(consumer.client(), &config.kafka, input)?;
    let fingerprint = tagger.fingerprint();
    let outbox = Outbox::open(config, &fingerprint)?;
    let outputs = outbox.partitions(config, config.output_topic())?;
    let rejected = outbox.partitions(config, &config.topics.rejected)?;
    if config.runtime.stages.writes().is_some() && outputs != inputs {
        let (input, output) = (input.to_owned(), config.output_topic().to_owned());
        return Err(RunError::Partitions { input, inputs, output, outputs });
    }
    let routes = Arc::new(Routes::new(config, inputs, outputs, rejected));
    let blocks = config.runtime.stages.reads().map(|kind| {
        let originals = Originals::new(&config.kafka);
        Arc::new(BlockWork { tagger: Arc::clone(tagger), routes: Arc::clone(&routes), originals, kind })
    });
    consumer.subscribe(&[input]).map_err(RunError::Consumer)?;
    tracing::info!(
        group = config.kafka.group_id,
        instance = config.kafka.instance_id,
        stages = %config.runtime.stages,
        topic = input,
        partitions = inputs,
        workers = config.runtime.workers,
        "joining the group"
    );

    let queues = Arena::new();
    let pool = Pool::new();
    let result = std::thread::scope(|scope| {
        let _close = CloseOnDrop(&pool);
        for worker in 0..config.runtime.workers.get() {
            let work = || pool.work();
            if let Err(error) = std::thread::Builder::new().name(format!("worker-{worker}")).spawn_scoped(scope, work) {
                tracing::error!("worker {worker} cannot be started: {error}");
            }
        }
        let (questions, asked) = unbounded();
        let (answer, positions) = unbounded();
        let (asker, known) = (Arc::clone(&consumer), fingerprint.as_str());
        scope.spawn(move || offsets::answer(&asker, input, known, &asked, &answer));

        let (results_in, results) = unbounded();
        let mut runtime = Runtime {
            config,
            health,
            consumer: &consumer,
            inputs,
            queues: &queues,
            queue_of: BTreeMap::new(),
            wake,
            pool: &pool,
            tagger,
            fingerprint: &fingerprint,
            routes,
            blocks,
            outbox,
            shards: BTreeMap::new(),
            assigned: Vec::new(),
            revoked: Vec::new(),
            questions,
            positions,
            epochs: 0,
            results_in,
            results,
            woken,
            stopping: None,
        };
        let result = runtime.work(stop);
        runtime.leave();
        result
    });
    health.group_joined.store(false, Ordering::Relaxed);
    drop(pool);
    drop(queues);
    drop(consumer);
    tracing::info!("left the group");
    result
}

struct Runtime<'c, 'r> {
    config: &'r Config,
    health: &'r Health,
    consumer: &'r Arc<GroupConsumer>,
    /// Partitions the input topic had at the start.
    inputs: usize,
    /// Queues that partitions have had: records borrow from them, so they stay.
    queues: &'c Arena<PartitionQueue>,
    queue_of: BTreeMap<i32, &'c PartitionQueue>,
    wake: Sender<()>,
    pool: &'r Pool<'c>,
    tagger: &'r Arc<Tagger>,
    fingerprint: &'r str,
    routes: Arc<Routes>,
    /// Where the input is blocks.
    blocks: Option<Arc<BlockWork>>,
    outbox: Outbox,
    /// By partition.
    shards: BTreeMap<i32, Shard<'c>>,
    /// Partitions that are ours once it is known where the group is, in the order of the questions.
    assigned: Vec<TopicPartitionList>,
    /// Partitions that go back to the group once their shards are done.
    revoked: Vec<TopicPartitionList>,
    questions: Sender<Vec<i32>>,
    positions: Receiver<Positions>,
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
            self.take_changes()?;
            self.take_messages()?;
            self.take_results();
            self.outbox.watch()?;
            self.send();
            self.commit_if_due();
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

    /// Until something happens or is due.
    fn wait(&mut self) -> Result<(), RunError> {
        let until_commit = self.until_commit().unwrap_or(TICK);
        let (mut worked, mut closed, mut positions) = (None, None, None);
        select! {
            recv(self.results) -> result => worked = result.ok(),
            recv(self.outbox.answers()) -> answer => closed = answer.ok(),
            recv(self.positions) -> answer => positions = answer.ok(),
            recv(self.woken) -> _ => {}
            default(until_commit.min(TICK)) => {}
        }
        worked.into_iter().for_each(|worked| self.take_result(worked));
        positions.into_iter().for_each(|positions| self.start(&positions));
        closed.into_iter().try_for_each(|closed| self.take_closed(closed?))
    }

    fn stop(&mut self) {
        let deadline = Instant::now() + self.config.runtime.drain_timeout;
        self.stopping = Some(deadline);
        tracing::info!(
            records = self.shards.values().map(|shard| shard.ledger.len()).sum::<usize>(),
            "stopping: finishing the records being worked on"
        );
        let partitions: Vec<i32> = self.shards.keys().copied().collect();
        self.drain(&partitions, deadline);
        // The group waits for these to be taken up before it takes them back.
        for partitions in std::mem::take(&mut self.assigned) {
            self.take_up(&partitions);
        }
    }

    fn drain(&mut self, partitions: &[i32], deadline: Instant) {
        for partition in partitions {
            if let Some(shard) = self.shards.get_mut(partition) {
                shard.drain(deadline);
                if let Some(work) = &self.blocks {
                    shard.tracks.leave(work, self.pool);
                }
            }
        }
    }

    fn take_messages(&mut self) -> Result<(), RunError> {
        // The consumer's own queue has the group's changes.
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    // A record from before its partition had a queue; it is read again from there.
                    tracing::debug!("offset {} of partition {} came early", message.offset(), message.partition());
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(RunError::Consumer(error)),
                Some(Err(error)) => kafka::log_error(&error, "the consumer goes on"),
                None => break,
            }
        }
        self.take_changes()?;
        let partitions: Vec<i32> = self.shards.keys().copied().collect();
        for partition in partitions {
            for _ in 0..READ_AHEAD {
                let Some(shard) = self.shards.get_mut(&partition).filter(|shard| shard.wants_more()) else { break };
                match shard.queue.poll(Duration::ZERO) {
                    Some(Ok(message)) => self.take_message(message),
                    Some(Err(error)) => kafka::log_error(&error, "the consumer goes on"),
                    None => break,
                }
                self.balance_one(partition);
            }
        }
        Ok(())
    }

    fn take_message(&mut self, message: BorrowedMessage<'c>) {
        let (partition, offset) = (message.partition(), message.offset());
        let Some(shard) = self.shards.get_mut(&partition) else { return };
        let bytes = message.payload_len();
        let committed = shard.start.flatten().filter(|start| start.offset == offset).map_or(0, |start| start.outputs);
        if !shard.ledger.accept(offset, bytes + results::OVERHEAD_BYTES, committed) {
            tracing::warn!(partition, offset, "a record was delivered twice and is taken once");
            return;
        }
        metrics::record_read(bytes);
        let received = Instant::now();
        let receipt = Receipt::new(shard.epoch, partition, offset, Arc::clone(&shard.lease), self.results_in.clone());
        if let Some(work) = &self.blocks {
            shard.tracks.take(work, self.pool, message, receipt, received);
            return;
        }
        let (tagger, routes) = (Arc::clone(self.tagger), Arc::clone(&self.routes));
        self.pool.submit(Box::new(move |pool| encoded::work(&tagger, &routes, pool, message, receipt, received)));
    }

    fn take_results(&mut self) {
        while let Ok(worked) = self.results.try_recv() {
            self.take_result(worked);
        }
    }

    fn take_result(&mut self, worked: Worked<'c>) {
        let Worked { epoch, partition, offset, news } = worked;
        let Some(shard) = self.shards.get_mut(&partition).filter(|shard| shard.epoch == epoch) else { return };
        let mut add = |output: results::Output<'c>| {
            let reserved = output.reserved;
            if !shard.ledger.add(offset, output.bytes(), output) {
                shard.lease.release(reserved);
            }
        };
        match news {
            News::Output(output) => add(output),
            News::Complete(outputs) => {
                outputs.into_iter().for_each(add);
                shard.ledger.complete(offset);
            }
            News::Abandoned => shard.ledger.abandon(offset),
        }
    }

    fn send(&mut self) {
        let now = Instant::now();
        for shard in self.shards.values_mut().filter(|shard| shard.may_send(now)) {
            while let Some(output) = shard.ledger.next_to_send() {
                if !self.outbox.send(&output.record) {
                    return;
                }
                shard.ledger.mark_sent();
            }
        }
    }

    fn commit_if_due(&mut self) {
        if self.outbox.is_idle() && self.shards.values_mut().any(|shard| shard.ledger.position().is_some()) {
            // Records that have no outputs of their own move the group on as well.
            self.outbox.begin();
        }
        if self.until_commit() != Some(Duration::ZERO) {
            return;
        }
        let positions: Positions = self
            .shards
            .iter_mut()
            .filter_map(|(&partition, shard)| Some((partition, shard.ledger.position()?)))
            .collect();
        self.outbox.commit(positions, self.consumer.group_metadata());
    }

    /// How long until what was sent is to be committed.
    ///
    /// Commits begin an interval apart, so that the first result after a pause does not wait for others.
    fn until_commit(&self) -> Option<Duration> {
        let bytes = self.outbox.pending()?;
        let draining = self.shards.values().any(|shard| shard.deadline.is_some());
        if bytes >= COMMIT_BYTES || draining {
            return Some(Duration::ZERO);
        }
        Some(self.config.runtime.commit_interval.saturating_sub(self.outbox.last_commit().elapsed()))
    }

    fn take_closed(&mut self, closed: Closed) -> Result<(), RunError> {
        let took = self.outbox.closed(closed.producer, matches!(closed.end, End::Aborted(_)));
        match closed.end {
            End::Committed(positions) => {
                self.note_positions(&positions);
                let now = Instant::now();
                let mut outputs = 0;
                for shard in self.shards.values_mut() {
                    for output in shard.ledger.commit() {
                        results::committed(&output, now);
                        shard.lease.release(output.reserved);
                        outputs += 1;
                    }
                }
                metrics::committed(outputs, took);
            }
            End::Aborted(reason) => {
                metrics::aborted(&reason);
                self.shards.values_mut().for_each(|shard| shard.ledger.rewind());
            }
        }
        Ok(())
    }

    /// Tells librdkafka where the group is: for the lag in its statistics, and with at-least-once for the group itself.
    fn note_positions(&self, positions: &Positions) {
        let list = match offsets::to_list(self.config.input_topic(), self.fingerprint, positions) {
            Ok(list) => list,
            Err(error) => return tracing::error!("positions {positions:?}: {error}"),
        };
        if let Err(error) = self.consumer.store_offsets(&list) {
            tracing::debug!("the lag is stale: {error}");
        }
        if self.config.runtime.delivery == Delivery::AtLeastOnce {
            // Results are written: what of this is lost is repeated, as promised.
            if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
                tracing::warn!("offsets are not committed, their records may be repeated: {error}");
            }
        }
    }

    /// Shards that used their share of the bytes in flight up are not read until they have room again.
    fn balance(&mut self) {
        let partitions: Vec<i32> = self.shards.keys().copied().collect();
        for partition in partitions {
            self.balance_one(partition);
        }
        for (partition, shard) in &self.shards {
            metrics::in_flight(*partition, shard.ledger.bytes());
        }
        metrics::paused(self.shards.values().filter(|shard| shard.full).count());
        let works = self.shards.values().any(|shard| shard.start.is_some());
        let is_spare = || self.consumer.context().member_for().is_some_and(|since| since >= SPARE_AFTER);
        self.health.group_joined.store(self.stopping.is_none() && (works || is_spare()), Ordering::Relaxed);
    }

    fn balance_one(&mut self, partition: i32) {
        let limit = self.config.runtime.in_flight_bytes;
        let share = limit / self.shards.len().max(1);
        let all: usize = self.shards.values().map(|shard| shard.ledger.bytes()).sum();
        if let Some(shard) = self.shards.get_mut(&partition) {
            // The rest of the share is for the records that blocks are made of.
            shard.lease.allow(shard.ledger.head(), share / 2);
            let bytes = shard.ledger.bytes();
            shard.full = bytes > 0 && (bytes >= share || all >= limit);
        }
    }
}

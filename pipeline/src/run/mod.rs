//! `tonearm run`: the loop that reads records, has the engine work on them, and writes what comes of them.
//!
//! One thread owns the consumer and all shards, so there is nothing to lock: it takes what has happened (rebalances,
//! records, reports, commits), then does what is due (send, commit, give partitions back). It neither computes nor waits
//! for brokers, so membership in the group does not depend on how long records or commits take.

mod commit;
mod intake;
mod partitions;
mod pulse;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use rdkafka::{
    consumer::Consumer,
    error::{KafkaError, RDKafkaErrorCode},
};
use tonearm_engine::Engine;
use tonearm_schemas::block::BlockKind;

use self::{
    commit::{
        ladder::{self, Step},
        outbox::{Ended, Outbox, Refused, Sending, Sent},
        output::{OVERHEAD_BYTES, Output, Routes, What},
        transaction::{Attempt, Closed, End, Settings, TransactionsError},
    },
    intake::{
        blocks::BlockWork,
        encoded,
        originals::Originals,
        receipt::{Event, Receipt, Report},
        record::Record,
    },
    partitions::{
        assignment::{NoPosition, NoQueue, Partitions, numbers},
        input::Input,
        ledger::Place,
        membership::{self, Change},
        positions::{Coordinates, Positions},
        recover::{self, Results},
        shard::{Dropped, Stop},
        watch::watch,
        whereabouts::{Answer, Counts, Whereabouts},
        window::Window,
    },
    pulse::Commits,
};
use crate::{
    config::{Config, Delivery, GroupProtocol},
    kafka::{self, ClientError, Cluster},
    telemetry::{
        health::{Check, Health},
        metrics,
    },
};

/// The loop looks for what is due at least this often.
const TICK: Duration = Duration::from_millis(100);
/// How often gauges and health are brought up to date.
const PULSE: Duration = Duration::from_secs(1);
/// A transaction is committed before its interval is over once it holds this much.
const COMMIT_BYTES: usize = 16 << 20;
/// After the drain's deadline, the last commit gets this long.
pub const COMMIT_GRACE: Duration = Duration::from_millis(1500);
/// Records taken from a shard per turn, so that results are not kept waiting by full queues.
const READ_AHEAD: usize = 64;
/// What librdkafka reads ahead of each partition, within these bounds.
const LEAST_READ_AHEAD: usize = 64 << 10;
const MOST_READ_AHEAD: usize = 1 << 20;
/// Between two questions for a right that was withdrawn.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// A result that is held is tried again this often, and named in the log this often.
const TRY_AGAIN: Duration = Duration::from_secs(5);
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Why `run` ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Transactions(#[from] TransactionsError),
    #[error("the consumer cannot go on: {0}")]
    Consumer(KafkaError),
    #[error("the right to read as a member of group {group} was withdrawn")]
    Expelled { group: String },
    #[error(
        "topic {input} has {inputs} partitions and {output} has {outputs}: \
         blocks keep their partition, so give both topics as many"
    )]
    Partitions { input: String, inputs: usize, output: String, outputs: usize },
    #[error(
        "the group has no position in partition {partition} of topic {topic}, and kafka.missing_offsets = \"stop\"; say where \
         to begin with `tonearm offsets reset`, or with another kafka.missing_offsets"
    )]
    NoPosition { topic: String, partition: i32 },
    #[error("a thread cannot be started: {0}; the system or its container allows too few")]
    Thread(#[from] io::Error),
    #[error("librdkafka has no queue for partition {0} of the input topic")]
    NoQueue(i32),
    #[error(
        "the work on offset {offset} of partition {partition} of topic {topic} ended without a result, which is a bug of \
         Tonearm's; a new start takes the record up again"
    )]
    Dropped { topic: String, partition: i32, offset: i64 },
}

impl RunError {
    /// Whether it stays until a person has changed something.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Client(error) | Self::Transactions(TransactionsError::Client(error)) => error.needs_a_person(),
            Self::Transactions(TransactionsError::Fenced { .. })
            | Self::Partitions { .. }
            | Self::NoPosition { .. } => true,
            Self::Consumer(error) => is(error, &UNSUPPORTED) || is(error, &FORBIDDEN),
            _ => false,
        }
    }
}

impl From<NoQueue> for RunError {
    fn from(NoQueue(partition): NoQueue) -> Self {
        Self::NoQueue(partition)
    }
}

/// Works until `stop` is set, then drains and leaves the group.
///
/// # Errors
/// Kafka cannot be reached at the start, topics are missing or do not fit, or another process took this instance's place.
pub fn run(config: &Config, engine: &Arc<Engine>, health: &Health, stop: &AtomicBool) -> Result<(), RunError> {
    let mut protocol = config.kafka.group_protocol;
    loop {
        let ended = run_as(protocol, config, engine, health, stop);
        health.ended();
        match ended {
            Err(RunError::Consumer(error)) if protocol == GroupProtocol::Auto && is(&error, &UNSUPPORTED) => {
                tracing::info!(
                    "the brokers do not have the group protocol \"consumer\" (Kafka 4.0 and later): \"classic\" it is"
                );
                protocol = GroupProtocol::Classic;
            }
            Err(RunError::Expelled { .. }) => wait_to_be_admitted(config, health, stop),
            ended => return ended,
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// The brokers do not know the group's protocol.
const UNSUPPORTED: [RDKafkaErrorCode; 2] = [RDKafkaErrorCode::UnsupportedVersion, RDKafkaErrorCode::UnsupportedFeature];
/// We may not read as a member of the group.
const FORBIDDEN: [RDKafkaErrorCode; 1] = [RDKafkaErrorCode::GroupAuthorizationFailed];

fn is(error: &KafkaError, codes: &[RDKafkaErrorCode]) -> bool {
    error.rdkafka_error_code().is_some_and(|code| codes.contains(&code))
}

/// Waits until the right is back to read as a member of the group, which was there before.
fn wait_to_be_admitted(config: &Config, health: &Health, stop: &AtomicBool) {
    let admits = || Cluster::connect(&config.kafka)?.admits(&config.kafka.group_id);
    let mut asked: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        if asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            std::thread::sleep(TICK);
            continue;
        }
        match admits() {
            Ok(()) => return,
            Err(error) => {
                if asked.is_none() {
                    tracing::error!("the process left the group, and waits until it may join it again: {error}");
                }
                health.report(vec![Check::new("group", false, || error.to_string())]);
            }
        }
        asked = Some(Instant::now());
    }
}

fn run_as(
    protocol: GroupProtocol,
    config: &Config,
    engine: &Arc<Engine>,
    health: &Health,
    stop: &AtomicBool,
) -> Result<(), RunError> {
    let topic = config.input_topic();
    let at =
        Coordinates { topic: topic.to_owned(), id: "".into(), fingerprint: engine.catalogue().fingerprint().into() };
    let outbox = Outbox::open(Settings {
        kafka: config.kafka.clone(),
        delivery: config.runtime.delivery,
        transactional_id: config.transactional_id(),
        commit_interval: config.runtime.commit_interval,
        topics: [config.output_topic().to_owned(), config.topics.rejected.clone()],
    })
    .map_err(|error| match error {
        TransactionsError::Client(ClientError::Unreachable { source, .. }) | TransactionsError::Fatal(source) => {
            kafka::why_no_transactions(config, source).into()
        }
        error => RunError::from(error),
    })?;
    let counts = Counts {
        inputs: outbox.partitions(&config.kafka, topic)?,
        outputs: outbox.partitions(&config.kafka, config.output_topic())?,
        rejected: outbox.partitions(&config.kafka, &config.topics.rejected)?,
    };
    let routes = Arc::new(routes(config, counts)?);
    // A quarter for what is read ahead, so that as much again is left for the largest record of each partition.
    let half = config.runtime.in_flight_bytes / 2;
    let read_ahead = (half / 2 / counts.inputs.max(1)).clamp(LEAST_READ_AHEAD, MOST_READ_AHEAD);
    let (wake, woken) = bounded(1);
    let mut consumer = membership::consumer(&config.kafka, protocol, read_ahead, wake.clone())?;
    consumer.set_nonempty_callback({
        let wake = wake.clone();
        move || _ = wake.try_send(())
    });
    let consumer = Arc::new(consumer);
    consumer.subscribe(&[topic]).map_err(RunError::Consumer)?;
    tracing::info!(
        group = config.kafka.group_id,
        instance = config.kafka.instance_id,
        stages = %config.runtime.stages,
        topic,
        partitions = counts.inputs,
        workers = config.runtime.workers,
        "joining the group"
    );

    let (questions, asked) = unbounded();
    let (answer, answers) = unbounded();
    let topics = [(&routes.output, routes.output_keeps_partition), (&routes.rejected, routes.rejected_keeps_partition)];
    let whereabouts = Whereabouts {
        consumer: Arc::clone(&consumer),
        at: at.clone(),
        topics: topics.map(|(topic, _)| topic.to_string()),
        missing: config.kafka.missing_offsets,
        results: Results {
            client: recover::client(&config.kafka),
            input: topic.to_owned(),
            topics: topics.map(|(topic, keeps_partition)| (topic.to_string(), keeps_partition)).to_vec(),
        },
    };
    let asking = std::thread::Builder::new()
        .name("whereabouts".to_owned())
        .spawn(move || whereabouts.answer(&asked, &answer))?;
    let (watching, until) = bounded::<()>(0);
    let watched = {
        let (consumer, kafka, topic) = (Arc::clone(&consumer), config.kafka.clone(), topic.to_owned());
        std::thread::Builder::new().name("watch".to_owned()).spawn(move || watch(&consumer, &kafka, &topic, &until))?
    };
    let originals = Originals::start(&config.kafka)?;
    let reads = config.runtime.stages.reads().map(|kind| {
        let (engine, routes) = (Arc::clone(engine), Arc::clone(&routes));
        BlockWork { engine, routes, originals: originals.clone(), kind }
    });
    let (reports_in, reports) = unbounded();
    let (reread_in, reread) = unbounded();

    let mut work = Loop {
        config,
        health,
        at,
        counts,
        input: Input::new(Arc::clone(&consumer), topic, wake, Window::new(half, read_ahead)),
        partitions: Partitions::new(questions, answers),
        intake: Intake { engine: Arc::clone(engine), routes, reads, originals, reports: reports_in, reread: reread_in },
        outbox,
        news: News { reports, reread, woken },
        times: Times {
            stopping: None,
            pulse: Instant::now(),
            turn: Instant::now(),
            more: false,
            stuck: None,
            void: String::new(),
        },
    };
    let result = work.work(stop);
    work.leave();
    drop(work);
    drop(watching);
    // Both hold the consumer: they end with the questions, and with who watches.
    let _ = (asking.join(), watched.join());
    drop(consumer);
    tracing::info!("left the group");
    result
}

/// # Errors
/// Blocks need topics with as many partitions.
fn routes(config: &Config, counts: Counts) -> Result<Routes, RunError> {
    let Counts { inputs, outputs, rejected } = counts;
    let writes = config.runtime.stages.writes();
    if writes.is_some() && outputs != inputs {
        let (input, output) = (config.input_topic().to_owned(), config.output_topic().to_owned());
        return Err(RunError::Partitions { input, inputs, output, outputs });
    }
    Ok(Routes {
        output: config.output_topic().into(),
        output_keeps_partition: outputs == inputs,
        rejected: config.topics.rejected.as_str().into(),
        rejected_keeps_partition: rejected == inputs,
        blocks: writes.unwrap_or(BlockKind::Pcm),
        pass_headers: config.pass_headers.clone().into(),
    })
}

struct Loop<'r> {
    config: &'r Config,
    health: &'r Health,
    at: Coordinates,
    counts: Counts,
    input: Input,
    partitions: Partitions,
    intake: Intake,
    outbox: Outbox,
    news: News,
    times: Times,
}

/// What works on records.
struct Intake {
    engine: Arc<Engine>,
    routes: Arc<Routes>,
    /// If the input is blocks.
    reads: Option<BlockWork>,
    originals: Originals,
    reports: Sender<Report>,
    reread: Sender<Reread>,
}

/// What wakes the loop up.
struct News {
    reports: Receiver<Report>,
    reread: Receiver<Reread>,
    woken: Receiver<()>,
}

struct Times {
    /// Set once the process is to end: when to stop waiting for what is not committed.
    stopping: Option<Instant>,
    pulse: Instant,
    /// When partitions last took turns.
    turn: Instant,
    /// Records wait that the last turn left.
    more: bool,
    /// When the log last named a worker that is stuck.
    stuck: Option<Instant>,
    /// Why the last transaction was aborted.
    void: String,
}

/// The record of a refused result, read again for its reject.
struct Reread {
    sent: Sent,
    record: Record,
    message: String,
}

impl Loop<'_> {
    fn work(&mut self, stop: &AtomicBool) -> Result<(), RunError> {
        loop {
            self.health.turned();
            self.wait()?;
            if stop.load(Ordering::Relaxed) && self.times.stopping.is_none() {
                self.stop();
            }
            self.take_changes()?;
            self.take_records()?;
            self.take_reports()?;
            self.outbox.watch()?;
            self.send();
            self.commit_if_due();
            self.finish_drains();
            self.balance();
            if self.times.turn.elapsed() >= TICK {
                self.times.turn = Instant::now();
                self.input.turn();
            }
            if self.times.pulse.elapsed() >= PULSE {
                self.pulse();
            }
            if let Some(deadline) = self.times.stopping {
                let now = Instant::now();
                let done = self.outbox.is_idle() && self.partitions.shards.values().all(|shard| shard.is_done(now));
                // With the brokers gone a commit may never end; whoever comes next starts over from the last one.
                if done || now >= deadline + COMMIT_GRACE {
                    return Ok(());
                }
            }
        }
    }

    /// Until something happens or is due.
    fn wait(&mut self) -> Result<(), RunError> {
        let due = if self.times.more { Duration::ZERO } else { self.until_commit().unwrap_or(TICK).min(TICK) };
        let (mut report, mut closed, mut answer, mut reread) = (None, None, None, None);
        select! {
            recv(self.news.reports) -> event => report = event.ok(),
            recv(self.outbox.answers()) -> event => closed = event.ok(),
            recv(self.partitions.answers()) -> event => answer = event.ok(),
            recv(self.news.reread) -> event => reread = event.ok(),
            recv(self.news.woken) -> _ => {}
            default(due) => self.input.look_again(),
        }
        report.into_iter().try_for_each(|report| self.take_report(report))?;
        answer.into_iter().try_for_each(|answer| self.take_answer(answer))?;
        reread.into_iter().for_each(|reread| self.take_reread(reread));
        closed.into_iter().try_for_each(|closed| {
            self.take_closed(closed?);
            Ok(())
        })
    }

    fn stop(&mut self) {
        let deadline = Instant::now() + self.config.runtime.drain_timeout;
        self.times.stopping = Some(deadline);
        tracing::info!(
            records = self.partitions.shards.values().map(|shard| shard.ledger.len()).sum::<usize>(),
            "stopping: finishing the records being worked on"
        );
        self.partitions.stop(&mut self.input, deadline);
    }

    /// The end: changes that are not carried out yet are.
    fn leave(&mut self) {
        self.input.consumer().context().close();
        self.partitions.leave(&mut self.input);
        while let Some(change) = self.input.next_change() {
            let done = match change {
                Change::Assigned(partitions) => self.input.take_up(&partitions),
                Change::Revoked(partitions) => self.input.give_back(&partitions),
            };
            if let Err(error) = done {
                tracing::debug!("a rebalance at the end: {error}");
            }
        }
    }

    /// What it means that the consumer cannot go on.
    fn end(&self, error: KafkaError) -> RunError {
        match self.partitions.were_assigned() && is(&error, &FORBIDDEN) {
            true => RunError::Expelled { group: self.config.kafka.group_id.clone() },
            false => RunError::Consumer(error),
        }
    }

    fn take_changes(&mut self) -> Result<(), RunError> {
        self.input.serve(|error| kafka::log_error(error, "the consumer goes on")).map_err(|error| self.end(error))?;
        while let Some(change) = self.input.next_change() {
            match change {
                Change::Assigned(partitions) => {
                    self.partitions.assign(&mut self.input, partitions, self.times.stopping.is_some())?;
                }
                Change::Revoked(partitions) if self.input.consumer().assignment_lost() => {
                    self.partitions.lose(&mut self.input, &partitions);
                    numbers(&partitions).into_iter().for_each(|number| self.outbox.unreserve(number));
                    // A commit that is under way the broker decides on.
                    self.outbox.abort("partitions were lost to another process");
                }
                Change::Revoked(partitions) => {
                    self.partitions.revoke(partitions, Instant::now() + self.config.runtime.drain_timeout);
                }
            }
        }
        Ok(())
    }

    /// It is known where partitions are to be read from, and what the topics are like now.
    fn take_answer(&mut self, answer: Answer) -> Result<(), RunError> {
        if self.at.id != answer.topic_id {
            if !self.at.id.is_empty() {
                self.replaced();
            }
            self.at.id = Arc::clone(&answer.topic_id);
        }
        if let Some(counts) = answer.counts.filter(|counts| *counts != self.counts) {
            tracing::info!("topics have other numbers of partitions: {counts:?} were {:?}", self.counts);
            self.counts = counts;
            let Counts { inputs, outputs, rejected } = counts;
            let mut routes = Routes::clone(&self.intake.routes);
            // Blocks keep their partition in any case: one that is missing is waited for.
            routes.output_keeps_partition = outputs == inputs || self.config.runtime.stages.writes().is_some();
            routes.rejected_keeps_partition = rejected == inputs;
            self.intake.routes = Arc::new(routes);
            if let Some(work) = &mut self.intake.reads {
                work.routes = Arc::clone(&self.intake.routes);
            }
        }
        let topic = self.at.topic.clone();
        self.partitions
            .start(&mut self.input, answer)
            .map_err(|NoPosition(partition)| RunError::NoPosition { topic, partition })
    }

    /// The input topic is another of the same name.
    fn replaced(&mut self) {
        tracing::warn!(
            topic = self.at.topic,
            "the topic was deleted and made again; what was left of the old one is void"
        );
        self.partitions.start_over();
        self.partitions.shards.keys().for_each(|partition| self.outbox.unreserve(*partition));
        self.outbox.abort("the input topic was deleted and made again");
    }

    fn take_records(&mut self) -> Result<(), RunError> {
        self.times.more = false;
        for partition in self.input.readable() {
            for taken in 0.. {
                if !self.partitions.shards.get(&partition).is_some_and(|shard| shard.wants_more()) {
                    break;
                }
                if taken == READ_AHEAD {
                    self.times.more = true;
                    break;
                }
                match self.input.next(partition) {
                    Some(Ok(record)) => self.take_record(record),
                    Some(Err(KafkaError::PartitionEOF(_))) => {}
                    Some(Err(error)) if is_elsewhere(&error) => self.partitions.ask_again(partition),
                    Some(Err(error)) => kafka::log_error(&error, "the consumer goes on"),
                    None => break,
                }
                self.balance_one(partition);
            }
        }
        Ok(())
    }

    fn take_record(&mut self, record: Record) {
        let (partition, offset) = (record.partition, record.offset);
        let Some(shard) = self.partitions.shards.get_mut(&partition) else { return };
        if !shard.ledger.accept(offset, record.bytes() + OVERHEAD_BYTES, shard.committed_of(offset)) {
            tracing::warn!(partition, offset, "a record was delivered twice and is taken once");
            return;
        }
        metrics::record_read(record.value.as_ref().map_or(0, bytes::Bytes::len));
        let received = Instant::now();
        let (lease, reports) = (Arc::clone(&shard.lease), self.intake.reports.clone());
        let receipt = Receipt::new(shard.epoch, partition, offset, lease, reports);
        match &self.intake.reads {
            Some(work) => shard.tracks.take(work, record, receipt, received),
            None => encoded::submit(&self.intake.engine, &self.intake.routes, record, receipt, received),
        }
    }

    fn take_reports(&mut self) -> Result<(), RunError> {
        while let Ok(report) = self.news.reports.try_recv() {
            self.take_report(report)?;
        }
        Ok(())
    }

    fn take_report(&mut self, report: Report) -> Result<(), RunError> {
        let Report { epoch, partition, offset, event } = report;
        let Some(shard) = self.partitions.shards.get_mut(&partition).filter(|shard| shard.epoch == epoch) else {
            return Ok(());
        };
        let mut add = |output: Output| {
            let reserved = output.reserved;
            if !shard.ledger.add(offset, output.bytes(), output) {
                shard.lease.release(reserved);
            }
        };
        match event {
            Event::Output(output) => add(output),
            Event::Complete(outputs) => {
                outputs.into_iter().for_each(add);
                shard.ledger.complete(offset);
            }
            Event::Cancelled => shard.cancel(offset).map_err(|Dropped| RunError::Dropped {
                topic: self.at.topic.clone(),
                partition,
                offset,
            })?,
        }
        Ok(())
    }

    fn send(&mut self) {
        let now = Instant::now();
        for (&partition, shard) in &mut self.partitions.shards {
            if matches!(shard.stop, Some(Stop::Held { again, .. }) if now >= again) {
                self.intake.try_again(shard, &mut self.outbox, partition, now);
            }
            if !shard.may_send(now) {
                continue;
            }
            while let Some((place, output)) = shard.ledger.next_to_send() {
                match self.outbox.send(output, Sent { partition, epoch: shard.epoch, place }) {
                    Sending::Taken => shard.ledger.mark_sent(),
                    Sending::NotNow => break,
                    Sending::Full => return,
                }
            }
        }
    }

    fn commit_if_due(&mut self) {
        if self.outbox.is_idle() && self.partitions.shards.values_mut().any(|shard| shard.ledger.position().is_some()) {
            // Records that have no outputs of their own move the group on as well.
            self.outbox.begin();
        }
        if self.until_commit() != Some(Duration::ZERO) {
            return;
        }
        let shards = self.partitions.shards.iter_mut();
        let positions: Positions =
            shards.filter_map(|(&partition, shard)| Some((partition, shard.ledger.position()?))).collect();
        self.outbox.commit(Attempt { at: self.at.clone(), positions }, self.input.consumer().group_metadata());
    }

    /// How long until what was sent is to be committed.
    ///
    /// Commits begin an interval apart, so that the first result after a pause does not wait for others.
    fn until_commit(&self) -> Option<Duration> {
        let bytes = self.outbox.pending()?;
        let draining = self.partitions.shards.values().any(|shard| shard.is_draining());
        if bytes >= COMMIT_BYTES || draining || self.outbox.is_due() {
            return Some(Duration::ZERO);
        }
        Some(self.config.runtime.commit_interval.saturating_sub(self.outbox.last_commit().elapsed()))
    }

    fn take_closed(&mut self, closed: Closed) {
        let Ended { end, took, refused } = self.outbox.closed(closed);
        match end {
            End::Committed(positions) => {
                self.note_positions(&positions);
                let now = Instant::now();
                let mut outputs = 0;
                for (partition, shard) in &mut self.partitions.shards {
                    for output in shard.ledger.commit() {
                        output.committed(now);
                        shard.lease.release(output.reserved);
                        outputs += 1;
                    }
                    if let Some(position) = positions.get(partition) {
                        shard.ledger.commit_end(position.offset);
                        shard.gauges.committed(position.offset, 0);
                        shard
                            .stop
                            .take_if(|stop| matches!(stop, Stop::Held { place, .. } if place.offset < position.offset));
                    }
                }
                metrics::committed(outputs, took);
            }
            End::NotBegun => {}
            End::Replaced => {
                self.replaced();
                // Which topic that is, is told with where the group is in it.
                self.at.id = "".into();
            }
            End::Aborted { reason, .. } => {
                metrics::aborted(&reason);
                self.times.void = reason;
                self.partitions.shards.values_mut().for_each(|shard| shard.ledger.rewind());
                refused.into_iter().for_each(|refused| self.step_down(refused));
            }
        }
    }

    /// With at-least-once the group hears of it here.
    fn note_positions(&self, positions: &Positions) {
        if self.config.runtime.delivery == Delivery::AtLeastOnce
            && let Err(error) = self.input.commit(&self.at, positions)
        {
            // Results are written: what of this is lost is repeated, as promised.
            tracing::warn!("offsets are not committed, their records may be repeated: {error}");
        }
    }

    /// A result was refused for good: something else takes its place, once it is sure that it was this one.
    fn step_down(&mut self, refused: Refused) {
        let Refused { sent, code, proven } = refused;
        let Sent { partition, epoch, place } = sent;
        let Some(shard) = self.partitions.shards.get_mut(&partition).filter(|shard| shard.epoch == epoch) else {
            return;
        };
        let Some(output) = shard.ledger.output(place) else { return };
        if !proven {
            output.alone = true;
            return;
        }
        match ladder::next(output, code) {
            Step::Write(record, form) => {
                tracing::info!(record = output.of.id(), topic = &*record.topic, "a reject is written plainer: {code}");
                if let What::Reject(_, written) = &mut output.what {
                    *written = form;
                }
                output.record = *record;
                output.alone = true;
            }
            Step::Reject(message) => {
                let (of, lease, reread) =
                    (Arc::clone(&output.of), Arc::clone(&shard.lease), self.intake.reread.clone());
                shard.stop = Some(Stop::Rereading { place });
                self.intake.originals.ask(&of, lease, move |record| _ = reread.send(Reread { sent, record, message }));
            }
            Step::Hold(reason) => self.intake.hold(shard, partition, place, reason),
        }
    }

    /// The record of a refused result is here: its reject takes the result's place.
    fn take_reread(&mut self, reread: Reread) {
        let Reread { sent: Sent { partition, epoch, place }, record, message } = reread;
        let Some(shard) = self.partitions.shards.get_mut(&partition).filter(|shard| shard.epoch == epoch) else {
            return;
        };
        shard.stop = None;
        let Some(output) = shard.ledger.output(place) else { return };
        let outputs = self.intake.routes.refused(&output.of, record, &output.what, message);
        let outputs = outputs.into_iter().map(|output| {
            let bytes = output.bytes();
            (output, bytes)
        });
        for gone in shard.ledger.replace(place, outputs.collect()) {
            shard.lease.release(gone.reserved);
        }
    }

    fn finish_drains(&mut self) {
        for partition in self.partitions.finish_drains(&mut self.input) {
            self.outbox.unreserve(partition);
        }
    }

    /// Shards that used their share of the bytes in flight up are not read until they have room again.
    fn balance(&mut self) {
        let partitions: Vec<i32> = self.partitions.shards.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.balance_one(partition));
    }

    fn balance_one(&mut self, partition: i32) {
        // What librdkafka may hold of it is taken off, up to the half that its window has.
        let limit = self.config.runtime.in_flight_bytes;
        let limit = limit - self.input.read_ahead().min(limit / 2);
        let share = limit / self.partitions.shards.len().max(1);
        let all = self.partitions.tally.bytes();
        if let Some(shard) = self.partitions.shards.get_mut(&partition) {
            // The rest of the share is for the records that blocks are made of.
            shard.lease.allow(shard.ledger.head(), share / 2);
            let bytes = shard.ledger.bytes();
            shard.full = bytes > 0 && (bytes >= share || all >= limit);
            shard.gauges.in_flight(bytes);
        }
    }

    /// Brings gauges and health up to date.
    fn pulse(&mut self) {
        self.times.pulse = Instant::now();
        let seen = self.input.consumer().context().seen().clone();
        let commits = Commits {
            aborts: self.outbox.aborts(),
            reason: self.times.void.clone(),
            busy: self.outbox.busy_since().map(|since| since.elapsed()),
            granted: self.outbox.granted(),
        };
        pulse::gauges(&mut self.partitions.shards, &seen);
        let mut checks = pulse::checks(&mut self.partitions.shards, &seen, &commits);
        checks.push(pulse::workers(&self.intake.engine, &mut self.times.stuck));
        checks.push(Check::new("running", self.times.stopping.is_none(), || "the process is stopping".to_owned()));
        self.health.report(checks);
    }
}

/// Whether a partition has no record at the offset where it is read.
fn is_elsewhere(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset))
}

impl Intake {
    /// Holds a shard: nothing of it is sent until a topic takes the result at `place`.
    fn hold(&self, shard: &mut partitions::shard::Shard, partition: i32, place: Place, reason: String) {
        let now = Instant::now();
        let since = match &shard.stop {
            Some(Stop::Held { since, .. }) => *since,
            _ => now,
        };
        if now.duration_since(since) >= SAY_AGAIN || since == now {
            tracing::error!(
                partition,
                offset = place.offset,
                "held: {reason}; mend the topic, or stop the group's processes and pass over the record with `tonearm \
                 offsets skip --partition {partition}`"
            );
        }
        let since = if now.duration_since(since) >= SAY_AGAIN { now } else { since };
        shard.stop = Some(Stop::Held { place, reason, since, again: now + TRY_AGAIN });
    }

    /// Tries a held result once more, in a transaction of its own.
    fn try_again(&self, shard: &mut partitions::shard::Shard, outbox: &mut Outbox, partition: i32, now: Instant) {
        let epoch = shard.epoch;
        let Some((place, _)) = shard.ledger.next_to_send() else { return };
        if let Some(output) = shard.ledger.output(place) {
            output.alone = true;
        }
        let Some((_, output)) = shard.ledger.next_to_send() else { return };
        if outbox.send(output, Sent { partition, epoch, place }) == Sending::Taken {
            shard.ledger.mark_sent();
            if let Some(Stop::Held { again, .. }) = &mut shard.stop {
                *again = now + TRY_AGAIN;
            }
        }
    }
}

//! The loop: each turn takes what has happened, then does what is due.

use std::{
    ops::Bound::{Excluded, Included, Unbounded},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, select};
use rdkafka::{
    consumer::Consumer,
    error::{KafkaError, RDKafkaErrorCode},
};
use tonearm_engine::Engine;

use super::{
    commit::{
        outbox::{Ended, Outbox, Refused, Sending, Sent},
        output::{OVERHEAD_BYTES, Output, Routes},
        transaction::{Attempt, Closed, End},
    },
    error::{RunError, is_forbidden},
    intake::{
        blocks::BlockWork,
        encoded,
        originals::Originals,
        receipt::{Event, Receipt, Report},
        record::Record,
    },
    partitions::{
        assignment::{NoPosition, Partitions, numbers},
        input::Input,
        membership::Change,
        positions::{Coordinates, Positions},
        shard::{Dropped, Shard, Stop},
        whereabouts::{Answer, Counts},
    },
    pulse::{self, Commits},
    refusal::{self, Reread},
};
use crate::{
    config::{Config, Delivery},
    kafka,
    telemetry::{
        health::{Check, Health},
        metrics,
    },
};

/// The loop looks for what is due at least this often.
pub const TICK: Duration = Duration::from_millis(100);
/// How often gauges and health are brought up to date.
const PULSE: Duration = Duration::from_secs(1);
/// A transaction is committed before its interval is over once it holds this much.
const COMMIT_BYTES: usize = 16 << 20;
/// After the drain's deadline, the last commit gets this long.
pub const COMMIT_GRACE: Duration = Duration::from_millis(1500);
/// Records taken from a shard per turn, so that results are not kept waiting by full queues.
const READ_AHEAD: usize = 64;
pub struct Loop<'r> {
    pub config: &'r Config,
    pub health: &'r Health,
    pub at: Coordinates,
    pub counts: Counts,
    pub input: Input,
    pub partitions: Partitions,
    pub intake: Intake,
    pub outbox: Outbox,
    pub news: News,
    pub times: Times,
}

/// What works on records.
pub struct Intake {
    pub engine: Arc<Engine>,
    pub routes: Arc<Routes>,
    /// If the input is blocks.
    pub reads: Option<BlockWork>,
    pub originals: Originals,
    pub reports: Sender<Report>,
    pub reread: Sender<Reread>,
}

/// What wakes the loop up.
pub struct News {
    pub reports: Receiver<Report>,
    pub reread: Receiver<Reread>,
    pub woken: Receiver<()>,
}

pub struct Times {
    /// Set once the process is to end: when to stop waiting for what is not committed.
    pub stopping: Option<Instant>,
    pub pulse: Instant,
    /// When partitions last took turns.
    pub turn: Instant,
    /// Records wait that the last turn left.
    pub more: bool,
    /// When the log last named a worker that is stuck.
    pub stuck: Option<Instant>,
    /// Why the last transaction was aborted.
    pub void: String,
}

impl Loop<'_> {
    /// Works until `stop` is set, and what was begun then is done.
    ///
    /// # Errors
    /// The process cannot go on.
    pub fn work(&mut self, stop: &AtomicBool) -> Result<(), RunError> {
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
    pub fn leave(&mut self) {
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
        match self.partitions.were_assigned() && is_forbidden(&error) {
            true => RunError::Expelled { group: self.config.kafka.group_id.clone() },
            false => RunError::Consumer(error),
        }
    }

    fn take_changes(&mut self) -> Result<(), RunError> {
        let mut forbidden = false;
        let trouble = |error: &KafkaError| match is_forbidden(error) {
            true => forbidden = true,
            false => kafka::log_error(error, "the consumer goes on"),
        };
        self.input.serve(trouble).map_err(|error| self.end(error))?;
        if forbidden {
            self.input.consumer().context().exclude(&self.config.kafka);
        }
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
        // Whoever had a transaction for one output is the last to be asked, or it would keep the others from theirs.
        let last = self.outbox.last_alone();
        for partitions in [(Excluded(last), Unbounded), (Unbounded, Included(last))] {
            for (&partition, shard) in self.partitions.shards.range_mut(partitions) {
                if matches!(shard.stop, Some(Stop::Held { again, .. }) if now >= again) {
                    refusal::try_again(shard, &mut self.outbox, partition, now);
                }
                if shard.may_send(now) && send_from(shard, &mut self.outbox, partition) == Sending::Full {
                    return;
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
                metrics::aborted(&reason, refused.len());
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
        let Sent { partition, epoch, .. } = refused.sent;
        if let Some(shard) = self.partitions.shards.get_mut(&partition).filter(|shard| shard.epoch == epoch) {
            refusal::step_down(shard, refused, &self.intake.originals, &self.intake.reread);
        }
    }

    /// The record of a refused result is here.
    fn take_reread(&mut self, reread: Reread) {
        let Sent { partition, epoch, .. } = reread.sent;
        if let Some(shard) = self.partitions.shards.get_mut(&partition).filter(|shard| shard.epoch == epoch) {
            refusal::reject(shard, reread, &self.intake.routes);
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
        // What is packed may wait for others, but not for results that a topic does not take.
        let waits = all >= limit && self.input.is_packed(partition) && all - self.partitions.held_bytes() >= limit;
        if let Some(shard) = self.partitions.shards.get_mut(&partition) {
            // The rest of the share is for the records that blocks are made of.
            shard.lease.allow(shard.ledger.head(), share / 2);
            let bytes = shard.ledger.bytes();
            shard.full = waits || (bytes > 0 && (bytes >= share || all >= limit));
            shard.gauges.in_flight(bytes);
        }
    }

    /// Brings gauges and health up to date.
    fn pulse(&mut self) {
        self.times.pulse = Instant::now();
        let mut seen = self.input.consumer().context().seen().clone();
        self.input.unpacking().for_each(|partition| seen.not_read_up(partition));
        let commits = Commits {
            aborts: self.outbox.aborts(),
            reason: self.times.void.clone(),
            obstacle: self.outbox.obstacle(),
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

/// Sends what a shard has, as far as it can be sent.
fn send_from(shard: &mut Shard, outbox: &mut Outbox, partition: i32) -> Sending {
    while let Some((place, output)) = shard.ledger.next_to_send() {
        match outbox.send(output, Sent { partition, epoch: shard.epoch, place }) {
            Sending::Taken => shard.ledger.mark_sent(),
            other => return other,
        }
    }
    Sending::Taken
}

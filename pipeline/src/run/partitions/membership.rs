//! Membership in the consumer group: rebalances are noted here and carried out by the loop in `run`, which first lets
//! revoked shards finish.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crossbeam_channel::Sender;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    statistics::Broker,
    types::RDKafkaRespErr,
};

use crate::{
    config::{GroupProtocol, Kafka},
    kafka::{self, ClientError},
};

pub type GroupConsumer = BaseConsumer<Membership>;
pub type PartitionQueue = rdkafka::consumer::base_consumer::PartitionQueue<Membership>;

/// A change of the assignment that the loop has yet to carry out.
#[derive(Debug)]
pub enum Change {
    Assigned(TopicPartitionList),
    Revoked(TopicPartitionList),
}

/// The consumer's context.
pub struct Membership {
    changes: Mutex<VecDeque<Change>>,
    /// While the consumer closes, nobody carries changes out any more.
    closing: AtomicBool,
    seen: Mutex<Seen>,
    wake: Sender<()>,
}

/// A broker that leaves a request without an answer for this long is as good as gone, in microseconds. The connection
/// stays until librdkafka's `socket.timeout.ms` of a minute.
const SILENT_AFTER_US: i64 = 8_000_000;

/// What librdkafka's last statistics said.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whether a broker was connected and answered; `None` before the first statistics.
    pub connected: Option<bool>,
    /// Why the input cannot be read; see [`watch`](super::watch).
    pub unreadable: Option<String>,
    /// Why the group's coordinator does not let this process join again.
    pub excluded: Option<String>,
    /// Partitions whose leader does not answer, or that have none, and since when.
    pub leaderless: BTreeMap<i32, Instant>,
    /// Since when the group's coordinator counts this process in without a break.
    pub member_since: Option<Instant>,
    /// By partition.
    pub ends: BTreeMap<i32, Ends>,
}

/// Ends of a partition, as the last fetch saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Offset behind the last record.
    pub log: i64,
    /// Offset behind the last record that readers of committed records may see: an open transaction ends it early.
    pub stable: i64,
    /// Offset that everything was read up to, if nothing read waits in a queue.
    pub read: Option<i64>,
}

impl Seen {
    /// What was read of a partition is not all taken.
    pub fn not_read_up(&mut self, partition: i32) {
        if let Some(ends) = self.ends.get_mut(&partition) {
            ends.read = None;
        }
    }
}

impl Membership {
    fn new(wake: Sender<()>) -> Self {
        Self { changes: Mutex::default(), closing: AtomicBool::new(false), seen: Mutex::default(), wake }
    }

    pub fn next_change(&self) -> Option<Change> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group may not be joined. In a classic group librdkafka tries again each second; it does not say so before
    /// the session has timed out.
    pub fn exclude(&self, kafka: &Kafka) {
        let error = ClientError::forbidden_group(kafka, &kafka.group_id).to_string();
        if self.seen().excluded.replace(error.clone()).is_none() {
            tracing::error!("the process has left the group, and waits until it may join it again: {error}");
        }
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }
}

/// The group's consumer, not yet subscribed.
///
/// # Errors
/// librdkafka refuses the configuration.
pub fn consumer(
    kafka: &Kafka,
    protocol: GroupProtocol,
    read_ahead: usize,
    wake: Sender<()>,
) -> Result<GroupConsumer, ClientError> {
    let mut client = kafka::client_config(kafka);
    client
        .set("group.id", &kafka.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Where to go on if an offset is not there is asked and said, not taken for granted.
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        // An end that markers of transactions make is one to be behind as well.
        .set("enable.partition.eof", "true")
        .set("statistics.interval.ms", "1000")
        // Below the first bound it asks for up to the second, or one record that is larger. When there is room again it
        // looks soon: its default of 1 s would starve large records.
        .set("queued.max.messages.kbytes", (read_ahead >> 10).to_string())
        .set("max.partition.fetch.bytes", read_ahead.to_string())
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.max.bytes", "16777216")
        .set("receive.message.max.bytes", kafka::MAX_RESPONSE_BYTES)
        .set("fetch.wait.max.ms", "100")
        // Partitions added to the topic are found within seconds, not minutes.
        .set("topic.metadata.refresh.interval.ms", "10000")
        // The loop polls while records are worked on, so this only ends a process that hangs.
        .set("max.poll.interval.ms", "300000");
    match protocol {
        GroupProtocol::Auto | GroupProtocol::Consumer => client.set("group.protocol", "consumer"),
        GroupProtocol::Classic => client
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky")
            // The least that brokers allow by default.
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "1000"),
    };
    kafka::with_properties(client, kafka)
        .create_with_context::<_, BaseConsumer<_>>(Membership::new(wake))
        .map_err(ClientError::Config)
}

/// Takes partitions up, as the group's protocol wants it.
pub fn assign(consumer: &GroupConsumer, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(partitions),
        _ => consumer.assign(partitions),
    }
}

/// Gives partitions back, as the group's protocol wants it.
pub fn unassign(consumer: &GroupConsumer, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
        _ => consumer.unassign(),
    }
}

fn answers(broker: &Broker) -> bool {
    let is_silent = broker.waitresp_cnt > 0 && broker.rxidle >= SILENT_AFTER_US;
    broker.nodeid >= 0 && broker.state == "UP" && !is_silent
}

impl ConsumerContext for Membership {
    fn rebalance(&self, consumer: &GroupConsumer, error: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let assigned = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::SeqCst) {
            let done = if assigned { assign(consumer, partitions) } else { unassign(consumer, partitions) };
            if let Err(error) = done {
                tracing::debug!("a rebalance while closing: {error}");
            }
            return;
        }
        let change = if assigned { Change::Assigned(partitions.clone()) } else { Change::Revoked(partitions.clone()) };
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push_back(change);
        // A full channel means that the loop is about to look anyway.
        let _ = self.wake.try_send(());
    }
}

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition is no trouble, and comes with every record that is the last one for a while.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            kafka::log_error(&error, reason);
        }
    }

    fn stats(&self, statistics: Statistics) {
        // librdkafka's words for a member that has its assignment.
        let steady = statistics.cgrp.as_ref().is_some_and(|group| group.join_state == "steady" && group.state == "up");
        let answering = statistics.brokers.values().filter(|broker| answers(broker)).map(|broker| broker.nodeid);
        let answering: BTreeSet<i32> = answering.collect();
        let partitions = || statistics.topics.values().flat_map(|topic| &topic.partitions);
        let leaderless = partitions().filter(|(_, state)| !answering.contains(&state.leader));
        let ends = partitions().filter(|(partition, state)| **partition >= 0 && state.hi_offset >= 0);
        let ends = ends.map(|(&partition, state)| {
            let stable = if state.ls_offset >= 0 { state.ls_offset } else { state.hi_offset };
            let read = (state.eof_offset >= 0 && state.fetchq_cnt == 0).then_some(state.eof_offset);
            (partition, Ends { log: state.hi_offset, stable, read })
        });
        let mut seen = self.seen();
        if steady {
            seen.excluded = None;
        }
        seen.member_since = steady.then(|| seen.member_since.unwrap_or_else(Instant::now));
        seen.connected = Some(!answering.is_empty());
        let before = std::mem::take(&mut seen.leaderless);
        let since = |partition| before.get(partition).copied().unwrap_or_else(Instant::now);
        seen.leaderless = leaderless.map(|(partition, _)| (*partition, since(partition))).collect();
        seen.ends = ends.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(nodeid: i32, state: &str, waiting: i64, idle_us: i64) -> Broker {
        Broker { nodeid, state: state.to_owned(), waitresp_cnt: waiting, rxidle: idle_us, ..Broker::default() }
    }

    #[test]
    fn a_broker_that_leaves_requests_unanswered_is_gone() {
        assert!(answers(&broker(1, "UP", 1, SILENT_AFTER_US - 1)));
        assert!(answers(&broker(1, "UP", 0, 10 * SILENT_AFTER_US)), "nobody asked it anything");
        assert!(!answers(&broker(1, "UP", 1, SILENT_AFTER_US)));
        assert!(!answers(&broker(1, "TRY_CONNECT", 0, 0)));
        assert!(!answers(&broker(-1, "UP", 0, 0)), "it is an address, and no broker yet");
    }
}

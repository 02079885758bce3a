//! Membership in the consumer group: rebalances are noted here and carried out by the loop in `run`, which first lets
//! revoked shards finish.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};

use crate::{
    config::{Config, GroupProtocol},
    kafka::{self, ClientError},
    telemetry::metrics,
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
    /// Since when the group's coordinator counts this process in.
    member_since: Mutex<Option<Instant>>,
    wake: Sender<()>,
}

impl Membership {
    fn new(wake: Sender<()>) -> Self {
        Self { changes: Mutex::default(), closing: AtomicBool::new(false), member_since: Mutex::default(), wake }
    }

    pub fn next_change(&self) -> Option<Change> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// How long this process has been a member without a break.
    pub fn member_for(&self) -> Option<Duration> {
        let since = *self.member_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
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
pub fn consumer(config: &Config, wake: Sender<()>) -> Result<GroupConsumer, ClientError> {
    let kafka = &config.kafka;
    let mut client = kafka::client_config(kafka);
    client
        .set("group.id", &kafka.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // A new group takes what is there: nobody publishes music to have it ignored.
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("statistics.interval.ms", "500")
        // What librdkafka reads ahead of each shard: below the first bound it asks for up to the second, or one record
        // that is larger. When there is room again it looks soon: its default of 1 s would starve large records.
        .set("queued.max.messages.kbytes", "1024")
        .set("max.partition.fetch.bytes", "1048576")
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.max.bytes", "16777216")
        .set("receive.message.max.bytes", kafka::MAX_RESPONSE_BYTES)
        .set("fetch.wait.max.ms", "100")
        // The loop polls while records are worked on, so this only ends a process that hangs.
        .set("max.poll.interval.ms", "300000");
    match kafka.group_protocol {
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
        kafka::log_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        // librdkafka's words for a member that has its assignment.
        let steady = statistics.cgrp.is_some_and(|group| group.join_state == "steady" && group.state == "up");
        let mut since = self.member_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = steady.then(|| since.unwrap_or_else(Instant::now));
        drop(since);
        for topic in statistics.topics.values() {
            for (&partition, state) in &topic.partitions {
                // The stored position is that of our last commit; before the first one there is only the broker's.
                let lag = if state.consumer_lag_stored >= 0 { state.consumer_lag_stored } else { state.consumer_lag };
                if partition >= 0 && lag >= 0 {
                    metrics::lag(partition, lag);
                }
            }
        }
    }
}

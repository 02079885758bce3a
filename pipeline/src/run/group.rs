//! Membership in the consumer group: rebalances are noted here and carried out by the loop in `run`, which first lets
//! revoked shards finish.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crossbeam_channel::Sender;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};

use crate::{kafka, telemetry::metrics};

pub type GroupConsumer = BaseConsumer<Membership>;

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
    joined: Arc<AtomicBool>,
    wake: Sender<()>,
}

impl Membership {
    pub fn new(joined: Arc<AtomicBool>, wake: Sender<()>) -> Self {
        Self { changes: Mutex::default(), closing: AtomicBool::new(false), joined, wake }
    }

    pub fn next_change(&self) -> Option<Change> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.joined.store(false, Ordering::Relaxed);
    }
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
        if !self.closing.load(Ordering::SeqCst) {
            self.joined.store(steady, Ordering::Relaxed);
        }
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

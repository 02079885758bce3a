//! Whether the input can be read at all. librdkafka says once that a topic is gone or a right withdrawn, and never that
//! it is back: so the brokers are asked.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rdkafka::consumer::Consumer;

use super::{membership::GroupConsumer, positions::STEP};
use crate::{
    config,
    kafka::{self, ClientError},
};

/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Keeps what the consumer has [`seen`](super::membership::Membership::seen) of the input true, until `until` has no
/// sender any more.
pub fn watch(consumer: &GroupConsumer, kafka: &config::Kafka, topic: &str, until: &Receiver<()>) {
    while until.recv_timeout(ASK_AGAIN) == Err(RecvTimeoutError::Timeout) {
        let found = match kafka::readable(consumer.client(), kafka, topic, STEP) {
            // Nothing is known of the topic; the connection has a check of its own.
            Err(ClientError::Unreachable { .. }) => continue,
            found => found.err().map(|error| error.to_string()),
        };
        let before = std::mem::replace(&mut consumer.context().seen().unreadable, found.clone());
        match (before, found) {
            (None, Some(error)) => tracing::warn!("the input cannot be read: {error}"),
            (Some(_), None) => tracing::info!(topic, "the input can be read again"),
            _ => {}
        }
    }
}

//! Where log lines and errors of clients go.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Statistics,
    client::Client,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    util::Timeout,
};

use super::{error::ClientError, properties::FIRST_ANSWER};
use crate::config::Kafka;

/// When it was last said that no broker can be reached, and after how long it is worth saying again.
static UNREACHABLE_SAID: Mutex<Option<Instant>> = Mutex::new(None);
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// The number of partitions of `topic`.
///
/// # Errors
/// No broker answers, there is no such topic, or it may not be described.
pub fn partitions<C: ClientContext>(client: &Client<C>, kafka: &Kafka, topic: &str) -> Result<usize, ClientError> {
    let metadata = client
        .fetch_metadata(Some(topic), Timeout::After(FIRST_ANSWER))
        .map_err(|source| ClientError::Unreachable { brokers: kafka.brokers.clone(), source })?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let partitions = found.map_or(0, |found| found.partitions().len());
    match found.and_then(|found| found.error()) {
        Some(error) => Err(ClientError::of_topic(kafka, topic, "DESCRIBE", error.into())),
        None if partitions == 0 => Err(ClientError::of_topic(kafka, topic, "DESCRIBE", RDKafkaErrorCode::UnknownTopic)),
        None => Ok(partitions),
    }
}

/// The context of clients that are in no group: it sends librdkafka's own log lines to ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Logged;

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka looks for the coordinator of a group all the same.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::GroupAuthorizationFailed) {
            log_error(&error, reason);
        }
    }

    fn stats(&self, _: Statistics) {}
}

impl rdkafka::consumer::ConsumerContext for Logged {}

/// A line of librdkafka's log, at our levels.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!("librdkafka {facility}: {message}");
        }
        // Lost connections are retried; what matters of them comes as an error event.
        _ => tracing::debug!("librdkafka {facility}: {message}"),
    }
}

/// An error event of a client; the client itself goes on.
pub fn log_error(error: &KafkaError, reason: &str) {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::AllBrokersDown) => {
            // It comes with every attempt of every client.
            let mut said = UNREACHABLE_SAID.lock().unwrap_or_else(PoisonError::into_inner);
            if said.is_none_or(|said| said.elapsed() > SAY_AGAIN) {
                *said = Some(Instant::now());
                tracing::warn!("no broker can be reached; waiting for one");
            }
        }
        // It comes to those only who ask for it, and as what they read, too.
        Some(RDKafkaErrorCode::PartitionEOF) => {}
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => {
            tracing::debug!("connection: {reason}");
        }
        _ => tracing::warn!("Kafka: {error}: {reason}"),
    }
}

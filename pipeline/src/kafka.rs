//! Clients of Kafka: how they are configured, and how their troubles are said.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Statistics,
    client::Client,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    util::Timeout,
};

use crate::config::Kafka;

/// How long a command waits for a broker's first answer.
pub const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// When it was last said that no broker can be reached, and after how long it is worth saying again.
static UNREACHABLE_SAID: Mutex<Option<Instant>> = Mutex::new(None);
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Why a command cannot go on with Kafka.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no broker answers at {brokers} (kafka.brokers) within {} s: {source}", FIRST_ANSWER.as_secs())]
    Unreachable { brokers: String, source: KafkaError },
    #[error("topic {topic} does not exist on {brokers}; `tonearm topics create` makes the topics that are missing")]
    NoTopic { topic: String, brokers: String },
    #[error("librdkafka refuses the configuration (kafka.properties): {0}")]
    Config(KafkaError),
    #[error("topic {topic} on {brokers}: {source}")]
    Topic { topic: String, brokers: String, source: RDKafkaErrorCode },
}

/// librdkafka's highest limit for a record: whether a record is too large is for the topic to say when it is written, and
/// for `limits.max_record_mib` when it is read. A reject is as large as its input, and must never be refused by us.
pub const MAX_RECORD_BYTES: &str = "1000000000";
/// What a consumer takes in one response; librdkafka wants it above the largest record.
pub const MAX_RESPONSE_BYTES: &str = "1100000000";

/// What every client has in common.
pub fn client_config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", format!("tonearm-{}", kafka.instance_id))
        // A broker that is back is found within a second, not within librdkafka's default of ten.
        .set("reconnect.backoff.max.ms", "1000")
        // One line of ours says what a lost connection means; librdkafka's own lines come at debug level.
        .set("log.connection.close", "false");
    config
}

/// The user's properties go over ours, so they are set last.
pub fn with_properties(mut config: ClientConfig, kafka: &Kafka) -> ClientConfig {
    for (name, value) in &kafka.properties {
        config.set(name, value.reveal());
    }
    config
}

/// The number of partitions of `topic`.
///
/// # Errors
/// No broker answers, or there is no such topic.
pub fn partitions<C: ClientContext>(client: &Client<C>, kafka: &Kafka, topic: &str) -> Result<usize, ClientError> {
    let brokers = || kafka.brokers.clone();
    let metadata = client
        .fetch_metadata(Some(topic), Timeout::After(FIRST_ANSWER))
        .map_err(|source| ClientError::Unreachable { brokers: brokers(), source })?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let error = found.and_then(|found| found.error()).map(RDKafkaErrorCode::from);
    match (found, error) {
        (_, Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) | (None, _) => {
            Err(ClientError::NoTopic { topic: topic.to_owned(), brokers: brokers() })
        }
        (_, Some(source)) => Err(ClientError::Topic { topic: topic.to_owned(), brokers: brokers(), source }),
        (Some(found), None) if found.partitions().is_empty() => {
            Err(ClientError::NoTopic { topic: topic.to_owned(), brokers: brokers() })
        }
        (Some(found), None) => Ok(found.partitions().len()),
    }
}

/// Sends librdkafka's own log lines to ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Logged;

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
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

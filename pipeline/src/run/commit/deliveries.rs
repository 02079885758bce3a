//! What of a transaction's results was not delivered, and why.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::ProducerContext,
};

use crate::kafka;

/// The context of a producer of results: it notes what could not be delivered.
pub struct Deliveries {
    failures: Mutex<Failures>,
    /// Of the producer's transactions.
    pub timeout: Duration,
}

#[derive(Default)]
struct Failures {
    /// The first failure: it says most, those behind it are its consequences.
    first: Option<KafkaError>,
    /// Records that were refused for good, by their number in the transaction.
    refused: Vec<(usize, RDKafkaErrorCode)>,
    /// Topics that are not there, whatever librdkafka says of what was sent to them.
    missing: Vec<String>,
}

impl Deliveries {
    pub fn new(timeout: Duration) -> Self {
        Self { failures: Mutex::default(), timeout }
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those records that were refused since the last call, each by its number, and why.
    pub fn take_refused(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        std::mem::take(&mut *self.failures()).refused
    }

    pub fn note_missing(&self, topics: Vec<String>) {
        self.failures().missing = topics;
    }

    /// Notes that the record with this number in the transaction was not delivered.
    pub fn note_failure(&self, error: &KafkaError, number: usize) {
        let mut failures = self.failures();
        failures.first.get_or_insert_with(|| error.clone());
        if let Some(code) = error.rdkafka_error_code().filter(|code| is_for_good(*code)) {
            failures.refused.push((number, code));
        }
        tracing::debug!("result {number} of a transaction was not delivered: {error}");
    }

    pub fn all_delivered(&self) -> Result<(), KafkaError> {
        self.failures().first.clone().map_or(Ok(()), Err)
    }
}

/// Whether the same record would be refused again.
fn is_for_good(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidTimestamp
            | RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::InvalidTopic
    )
}

impl ClientContext for Deliveries {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        // What is fatal to a producer is not to us: the line that says what was done about it comes from us.
        tracing::debug!("librdkafka {facility}: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => kafka::log_error(&error, reason),
            _ => tracing::debug!("producer: {error}: {reason}"),
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let Err((error, record)) = result else { return };
        let is_missing = self.failures().missing.iter().any(|topic| topic == record.topic());
        match is_missing {
            true => {
                let unknown = KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopicOrPartition);
                self.note_failure(&unknown, number);
            }
            false => self.note_failure(error, number),
        }
    }
}

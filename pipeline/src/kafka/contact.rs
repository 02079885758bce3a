//! The first contact, by a client of its own: whoever comes after it meets brokers that answer, or is told at once why
//! not.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseProducer, Producer, ProducerContext},
};

use super::{
    error::ClientError,
    properties::{FIRST_ANSWER, client_config, with_properties},
    trouble::{Cause, Troubles},
};
use crate::config::Kafka;

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A host may have several addresses and its first one nobody listening: by then each was tried more than once.
const ALL_TRIED: Duration = Duration::from_secs(1);
/// Between two log lines that say what is waited for.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Returns once a broker has answered.
///
/// # Errors
/// No broker answers; the cause is told as soon as it is known, after [`FIRST_ANSWER`] at the latest.
pub fn reach(kafka: &Kafka) -> Result<(), ClientError> {
    let contact = Contact::begin(kafka)?;
    let begun = Instant::now();
    while !contact.made() {
        match contact.failure() {
            Some(cause) => return Err(cause.into()),
            None if begun.elapsed() >= FIRST_ANSWER => return Err(contact.silence(begun.elapsed()).into()),
            None => {}
        }
    }
    Ok(())
}

/// Waits until a broker answers, or `stop` is set. It says what it waits for.
///
/// # Errors
/// What is wrong stays until a person has changed something; or, with `exit_if_unreachable`, no broker has answered
/// within [`FIRST_ANSWER`].
pub fn wait_for_brokers(kafka: &Kafka, exit_if_unreachable: bool, stop: &AtomicBool) -> Result<(), ClientError> {
    let contact = Contact::begin(kafka)?;
    let begun = Instant::now();
    let mut said: Option<Instant> = None;
    while !contact.made() && !stop.load(Ordering::Relaxed) {
        let late = begun.elapsed() >= FIRST_ANSWER;
        let cause = match contact.failure() {
            Some(cause) => cause,
            None if late => contact.silence(begun.elapsed()),
            None => continue,
        };
        if cause.needs_a_person() || (late && exit_if_unreachable) {
            return Err(cause.into());
        }
        if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            said = Some(Instant::now());
            tracing::warn!("{cause}; waiting for it");
        }
    }
    if said.is_some() && !stop.load(Ordering::Relaxed) {
        tracing::info!("a broker answers");
    }
    Ok(())
}

struct Contact<'a> {
    kafka: &'a Kafka,
    client: BaseProducer<Listener>,
    begun: Instant,
}

impl<'a> Contact<'a> {
    fn begin(kafka: &'a Kafka) -> Result<Self, ClientError> {
        let mut config = with_properties(client_config(kafka), kafka);
        config
            // The brokers are tried at the same time, and connections they close are reported.
            .set("enable.sparse.connections", "false")
            .set("log.connection.close", "true")
            .set_log_level(RDKafkaLogLevel::Info);
        let client = config.create_with_context(Listener::default()).map_err(ClientError::Config)?;
        Ok(Self { kafka, client, begun: Instant::now() })
    }

    /// Whether a broker has told about its cluster. It takes a moment.
    fn made(&self) -> bool {
        self.client.poll(LOOK_AGAIN);
        self.client.client().fetch_cluster_id(Duration::ZERO).is_some()
    }

    /// Why it does not come to anything, as soon as that is certain.
    fn failure(&self) -> Option<Cause> {
        let troubles = &self.client.context().troubles;
        let cause = troubles.all_down().then(|| troubles.cause(self.kafka)).flatten();
        cause.filter(|cause| cause.needs_a_person() || self.begun.elapsed() >= ALL_TRIED)
    }

    /// The cause if librdkafka has none.
    fn silence(&self, waited: Duration) -> Cause {
        let reason = format!("no answer within {} s", waited.as_secs());
        Cause::Unreachable { broker: self.kafka.brokers.clone(), reason }
    }
}

/// The context of a client that only listens for what goes wrong.
#[derive(Default)]
struct Listener {
    troubles: Troubles,
}

impl ClientContext for Listener {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!("librdkafka {facility}: {message}");
        self.troubles.log(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("first contact: {error}: {reason}");
        self.troubles.error(&error, reason);
    }
}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

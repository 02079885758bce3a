//! Hands records to librdkafka, and hears what became of them.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rdkafka::{
    ClientConfig, ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, ProducerContext, ThreadedProducer},
};

use super::{parcels::Parcel, tally::Tally};
use crate::{
    config::Config,
    kafka::{self, ClientError},
};

/// What is in memory at once, besides the file being read; more only for a single larger file.
const QUEUE_BYTES: u64 = 128 << 20;
/// Between two looks at whether a full queue has room.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub struct Courier {
    pub producer: ThreadedProducer<Deliveries>,
    topic: String,
    answers: Receiver<Answer>,
    unanswered: usize,
}

/// What became of a record.
pub struct Answer {
    pub parcel: Parcel,
    /// Its partition and offset; the offset is negative if the broker does not say it.
    pub result: Result<(i32, i64), KafkaError>,
}

impl Answer {
    /// Whether the same record would be refused again.
    pub fn is_refusal(&self) -> bool {
        use RDKafkaErrorCode::{
            InvalidMessageSize, InvalidRecord, InvalidTimestamp, MessageSizeTooLarge, PolicyViolation,
        };
        let code = self.result.as_ref().err().and_then(KafkaError::rdkafka_error_code);
        matches!(
            code,
            Some(InvalidMessageSize | InvalidRecord | InvalidTimestamp | MessageSizeTooLarge | PolicyViolation)
        )
    }

    /// Why it was not delivered, unless it was taken back.
    pub fn failure(&self) -> Option<&KafkaError> {
        let is_taken_back = |error: &KafkaError| {
            let code = error.rdkafka_error_code();
            matches!(code, Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight))
        };
        self.result.as_ref().err().filter(|error| !is_taken_back(error))
    }

    /// Counts it; a record that was taken back is left.
    pub fn tell(&self, tally: &mut Tally) {
        match (&self.result, self.failure()) {
            (Ok(_), _) => tally.publish(self.parcel.bytes),
            (Err(_), None) => {}
            (Err(_), Some(error)) => {
                tally.fail(&self.parcel.path, format_args!("was not taken by the broker: {error}"));
            }
        }
    }
}

/// Why a record is not handed over.
pub enum Refusal {
    File(String),
    Producer(KafkaError),
    Stopped,
}

/// The properties of a producer of records of up to `largest` bytes.
pub fn client(config: &Config, largest: u64) -> ClientConfig {
    let mut client = kafka::client_config(&config.kafka);
    client
        .set("enable.idempotence", "true")
        .set("message.max.bytes", kafka::MAX_RECORD_BYTES)
        // A batch counts as one record against the topic's limit, so that two that fit might not fit together.
        .set("batch.num.messages", "1")
        // A record that is larger than the queue would wait for room for ever. librdkafka counts its own bytes too.
        .set("queue.buffering.max.kbytes", ((QUEUE_BYTES.max(largest) >> 10) + 1024).to_string());
    client
}

impl Courier {
    /// # Errors
    /// librdkafka refuses one of the properties.
    pub fn new(client: ClientConfig, config: &Config) -> Result<Self, ClientError> {
        let (told, answers) = unbounded();
        let client = kafka::with_properties(client, &config.kafka);
        let producer = client.create_with_context(Deliveries(told)).map_err(ClientError::Config)?;
        Ok(Self { producer, topic: config.topics.audio.clone(), answers, unanswered: 0 })
    }

    /// Reads a file and hands it to the producer, once there is room.
    ///
    /// # Errors
    /// It was not handed over.
    pub fn hand_over(&mut self, parcel: Parcel, stop: &AtomicBool) -> Result<(), (Box<Parcel>, Refusal)> {
        let bytes = match parcel.read() {
            Ok(bytes) => bytes,
            Err(reason) => return Err((Box::new(parcel), Refusal::File(reason))),
        };
        let (key, media_type) = (parcel.key.clone(), parcel.media_type());
        let mut record = BaseRecord::with_opaque_to(&self.topic, Box::new(parcel)).key(&key).payload(&bytes);
        if let Some(media_type) = media_type {
            let header = Header { key: "content-type", value: Some(media_type) };
            record = record.headers(OwnedHeaders::new().insert(header));
        }
        while let Err((error, back)) = self.producer.send(record) {
            let refusal = match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) if stop.load(Ordering::Relaxed) => Refusal::Stopped,
                Some(RDKafkaErrorCode::QueueFull) => {
                    std::thread::sleep(LOOK_AGAIN);
                    record = back;
                    continue;
                }
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => Refusal::File(format!("cannot be published: {error}")),
                _ => Refusal::Producer(error),
            };
            return Err((back.delivery_opaque, refusal));
        }
        self.unanswered += 1;
        Ok(())
    }

    /// How many records have no answer yet.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// The next answer, if one comes within `patience`.
    pub fn answer(&mut self, patience: Duration) -> Option<Answer> {
        let answer = self.answers.recv_timeout(patience).ok()?;
        self.unanswered -= 1;
        Some(answer)
    }
}

/// Passes on what the broker says of records.
pub struct Deliveries(Sender<Answer>);

impl ClientContext for Deliveries {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        // What is fatal to a producer is said by the command.
        tracing::debug!("librdkafka {facility}: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode::{Fatal, Fenced, InvalidTransactionTimeout, TransactionalIdAuthorizationFailed};
        match error.rdkafka_error_code() {
            Some(Fatal | Fenced | InvalidTransactionTimeout | TransactionalIdAuthorizationFailed) => {
                tracing::debug!("producer: {reason}");
            }
            _ => kafka::log_error(&error, reason),
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Parcel>;

    fn delivery(&self, result: &DeliveryResult<'_>, parcel: Box<Parcel>) {
        let result = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        // Nobody hears it any more once the command has ended.
        let _ = self.0.send(Answer { parcel: *parcel, result });
    }
}

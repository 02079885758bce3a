//! Records of the audio topic, read again: a track that a later stage rejects is rejected as it first came.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedMessage,
};

use super::offsets;
use crate::{
    config::Kafka,
    kafka::{self, Logged},
};

/// How long to wait for the record before asking anew.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look whether it is still wanted.
const STEP: Duration = Duration::from_millis(100);

/// Reads single records, one at a time: rejects behind the decoder are rare.
pub struct Originals {
    client: ClientConfig,
    /// Made when it is first needed.
    reader: Mutex<Option<BaseConsumer<Logged>>>,
}

impl Originals {
    pub fn new(kafka: &Kafka) -> Self {
        let mut client = offsets::observer(kafka, kafka::client_config(kafka));
        client
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("receive.message.max.bytes", kafka::MAX_RESPONSE_BYTES);
        Self { client: kafka::with_properties(client, kafka), reader: Mutex::default() }
    }

    /// The record; `Ok(None)` where it is no longer there. It is waited for as long as it takes.
    ///
    /// # Errors
    /// It is not `wanted` any more.
    pub fn read(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Option<OwnedMessage>, Unwanted> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        while wanted() {
            if reader.is_none() {
                *reader = self.client.create_with_context(Logged).ok();
            }
            match reader.as_ref().map(|reader| self.ask(reader, topic, partition, offset, wanted)) {
                Some(Ok(Answer::Found(message))) => return Ok(Some(message)),
                Some(Ok(Answer::Gone)) => return Ok(None),
                Some(Ok(Answer::Later)) | None => {}
                Some(Err(error)) => tracing::debug!("record {topic}-{partition}-{offset} is read again: {error}"),
            }
        }
        Err(Unwanted)
    }

    fn ask(
        &self,
        reader: &BaseConsumer<Logged>,
        topic: &str,
        partition: i32,
        offset: i64,
        wanted: &dyn Fn() -> bool,
    ) -> KafkaResult<Answer> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        reader.assign(&list)?;
        let asked = Instant::now();
        while wanted() && asked.elapsed() < PATIENCE {
            match reader.poll(STEP) {
                Some(Ok(message)) if message.offset() == offset => return Ok(Answer::Found(message.detach())),
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(Answer::Gone),
                Some(Err(error)) if is_gone(&error) => return Ok(Answer::Gone),
                Some(Err(error)) => tracing::debug!("reading {topic}-{partition}-{offset}: {error}"),
                None => {}
            }
        }
        Ok(Answer::Later)
    }
}

/// Nobody waits for the record any more.
pub struct Unwanted;

enum Answer {
    Found(OwnedMessage),
    Gone,
    Later,
}

fn is_gone(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}

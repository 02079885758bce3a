//! Records of the audio topic, read again: a track that is rejected behind the decoder is rejected as it first came.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Sender, unbounded};
use futures_channel::oneshot;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tonearm_schemas::prediction::Source;

use super::record::{Missing, Record};
use crate::{
    config::Kafka,
    kafka::{self, Logged},
    run::{
        commit::output::Of,
        partitions::{lease::Lease, positions},
    },
};

/// How long to wait for the record before asking anew.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look whether it is still wanted.
const STEP: Duration = Duration::from_millis(100);

/// Reads single records, one at a time, on a thread of its own: rejects behind the decoder are rare.
#[derive(Clone)]
pub struct Originals(Sender<Question>);

struct Question {
    of: Arc<Of>,
    /// Whose record is wanted as long as this is valid.
    lease: Arc<Lease>,
    answer: Box<dyn FnOnce(Record) + Send>,
}

impl Originals {
    /// # Errors
    /// The thread cannot be started.
    pub fn start(kafka: &Kafka) -> io::Result<Self> {
        let mut client = positions::observer(kafka, kafka::client_config(kafka));
        client
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("receive.message.max.bytes", kafka::MAX_RESPONSE_BYTES);
        let mut reader = Reader { client: kafka::with_properties(client, kafka), consumer: None };
        let (ask, asked) = unbounded::<Question>();
        std::thread::Builder::new().name("originals".to_owned()).spawn(move || {
            for Question { of, lease, answer } in asked {
                // What is not wanted any more is dropped, and its receipt says so.
                if let Some(record) = reader.read(&of, &lease) {
                    answer(record);
                }
            }
        })?;
        Ok(Self(ask))
    }

    /// The record that a track was encoded in; without its value if it is no longer there. `None` if the lease ends
    /// before it is read, which takes as long as it takes.
    pub async fn read(&self, of: &Arc<Of>, lease: Arc<Lease>) -> Option<Record> {
        let (answer, answered) = oneshot::channel();
        self.ask(of, lease, move |record| _ = answer.send(record));
        answered.await.ok()
    }

    /// [`read`](Self::read) for those that do not wait.
    pub fn ask(&self, of: &Arc<Of>, lease: Arc<Lease>, answer: impl FnOnce(Record) + Send + 'static) {
        // The thread ends with the last question.
        let _ = self.0.send(Question { of: Arc::clone(of), lease, answer: Box::new(answer) });
    }
}

struct Reader {
    client: ClientConfig,
    /// Made when it is first needed.
    consumer: Option<BaseConsumer<Logged>>,
}

impl Reader {
    fn read(&mut self, of: &Of, lease: &Lease) -> Option<Record> {
        let Source::Record { topic, partition, offset, timestamp_ms } = &of.source else { return None };
        while lease.is_valid() {
            if self.consumer.is_none() {
                self.consumer = self.client.create_with_context(Logged).ok();
            }
            match self.consumer.as_ref().map(|consumer| fetch(consumer, topic, *partition, *offset, lease)) {
                Some(Ok(Fetched::Found(record))) => return Some(record),
                Some(Ok(Fetched::Gone)) => {
                    tracing::warn!("record {} is no longer there; its reject has no value", of.id());
                    return Some(Record {
                        topic: topic.as_str().into(),
                        partition: *partition,
                        offset: *offset,
                        key: of.carried.key.clone(),
                        value: None,
                        headers: of.carried.headers.clone(),
                        timestamp_ms: *timestamp_ms,
                        missing: Some(Missing::Gone),
                    });
                }
                Some(Ok(Fetched::Later)) | None => {}
                Some(Err(error)) => tracing::debug!("record {} is read again: {error}", of.id()),
            }
        }
        None
    }
}

enum Fetched {
    Found(Record),
    Gone,
    Later,
}

fn fetch(
    consumer: &BaseConsumer<Logged>,
    topic: &str,
    partition: i32,
    offset: i64,
    lease: &Lease,
) -> KafkaResult<Fetched> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&list)?;
    let asked = Instant::now();
    while lease.is_valid() && asked.elapsed() < PATIENCE {
        match consumer.poll(STEP) {
            Some(Ok(message)) => {
                let first = Record::all_of(&topic.into(), &message, offset).next();
                return Ok(match first.filter(|record| record.offset == offset) {
                    Some(record) => Fetched::Found(record),
                    None => Fetched::Gone,
                });
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Fetched::Gone),
            Some(Err(error)) if is_gone(&error) => return Ok(Fetched::Gone),
            Some(Err(error)) => tracing::debug!("reading {topic}-{partition}-{offset}: {error}"),
            None => {}
        }
    }
    Ok(Fetched::Later)
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

//! A stranger's Kafka client: it knows the topics, and nothing of Tonearm's code.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, DeliveryResult},
    producer::{Producer, ProducerContext, ThreadedProducer},
    topic_partition_list::TopicPartitionListElem,
};
use tonearm_schemas::{
    prediction::{Prediction, Source},
    reject::header,
};

use super::{
    broker::brokers,
    headers::{self, Headers},
};
use crate::PATIENCE;

/// When its record was published, in a reject that its topic takes with no such time.
pub const TIMESTAMP: &str = "tonearm.timestamp";

/// A record to publish.
#[derive(Clone, Debug, Default)]
pub struct Input {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Headers,
    pub timestamp_ms: Option<i64>,
}

impl Input {
    pub fn new(partition: i32, key: &str, value: Vec<u8>) -> Self {
        Self { partition, key: Some(key.as_bytes().to_vec()), value: Some(value), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.as_bytes().to_vec(), Some(value.as_bytes().to_vec())));
        self
    }
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Headers,
    pub timestamp_ms: Option<i64>,
}

impl Record {
    fn of(mut message: BorrowedMessage<'_>) -> Self {
        Self {
            headers: headers::of(&mut message),
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }

    /// Every value of the header `name`, as text.
    pub fn header(&self, name: &str) -> Vec<String> {
        let named = self.headers.iter().filter(|(key, _)| key == name.as_bytes());
        named.map(|(_, value)| String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into_owned()).collect()
    }

    pub fn prediction(&self) -> Prediction {
        let value = self.value.as_deref().unwrap_or_default();
        serde_json::from_slice(value)
            .unwrap_or_else(|e| panic!("{} is no prediction: {e}", String::from_utf8_lossy(value)))
    }

    /// Partition and offset of the record that this result is of.
    pub fn source(&self) -> (i32, i64) {
        // Those of an earlier life come first.
        let header = |name| self.header(name).last().and_then(|text| text.parse::<i64>().ok());
        match (header(header::PARTITION), header(header::OFFSET)) {
            (Some(partition), Some(offset)) => (partition as i32, offset),
            _ => match self.prediction().source {
                Source::Record { partition, offset, .. } => (partition, offset),
                Source::File { .. } => panic!("a prediction of a record has no file"),
            },
        }
    }

    /// When the record was published that this result is of, in milliseconds since 1970; 0 where nobody knows.
    pub fn published_ms(&self) -> i64 {
        let at = match self.header(header::OFFSET).is_empty() {
            // A reject has its record's time, or says it.
            false => self.header(TIMESTAMP).last().and_then(|at| at.parse().ok()).or(self.timestamp_ms),
            true => match self.prediction().source {
                Source::Record { timestamp_ms, .. } => timestamp_ms,
                Source::File { .. } => None,
            },
        };
        at.unwrap_or(0)
    }

    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }
}

/// The time, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is right").as_millis() as i64
}

/// Publishes `inputs` in their order and returns the offset of each, once the broker has all of them.
pub fn publish(topic: &str, inputs: &[Input]) -> Vec<i64> {
    let mut publisher = Publisher::new(topic);
    inputs.iter().for_each(|input| publisher.send(input));
    publisher.finish()
}

/// Publishes records one by one, each once and in order, whatever happens to brokers.
pub struct Publisher {
    topic: String,
    producer: ThreadedProducer<Deliveries>,
    sent: usize,
}

impl Publisher {
    pub fn new(topic: &str) -> Self {
        Self::with(topic, &[("message.max.bytes", "70000000")])
    }

    /// Packs all that is sent up to the end into one batch per partition, if it is less than 950 MiB.
    pub fn packing(topic: &str, codec: &str) -> Self {
        const MOST: &str = "1000000000";
        let all = [("batch.size", MOST), ("message.max.bytes", MOST), ("batch.num.messages", "1000000")];
        let patient = [("linger.ms", "900000"), ("message.timeout.ms", "1000000"), ("compression.type", codec)];
        Self::with(topic, &[&all[..], &patient].concat())
    }

    fn with(topic: &str, properties: &[(&str, &str)]) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers()).set("enable.idempotence", "true");
        properties.iter().for_each(|(name, value)| _ = config.set(*name, *value));
        let producer = config.create_with_context(Deliveries::default()).expect("a producer");
        Self { topic: topic.to_owned(), producer, sent: 0 }
    }

    pub fn send(&mut self, input: &Input) {
        while let Err(error) = headers::send(&self.producer, &self.topic, input, self.sent) {
            assert_eq!(error, RDKafkaErrorCode::QueueFull, "cannot publish");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.sent += 1;
    }

    /// The offset of each record, once the broker has all of them.
    pub fn finish(self) -> Vec<i64> {
        self.producer.flush(PATIENCE).expect("the broker takes what is published");
        let delivered = self.producer.context().0.lock().expect("no panic while it is held");
        let mut offsets = vec![None; self.sent];
        for (index, offset) in delivered.iter() {
            offsets[*index] = Some(offset.clone().expect("the broker takes what is published"));
        }
        offsets.into_iter().map(|offset| offset.expect("every record is delivered once")).collect()
    }
}

#[derive(Default)]
struct Deliveries(Mutex<Vec<(usize, Result<i64, KafkaError>)>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let offset = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        self.0.lock().expect("no panic while it is held").push((index, offset));
    }
}

/// Reads the committed records of topics as they come, from their beginning, in no group.
pub struct Reader {
    consumer: BaseConsumer,
    partitions: usize,
}

impl Reader {
    pub fn new(topics: &[&str]) -> Self {
        Self::of_isolation(topics, "read_committed")
    }

    fn of_isolation(topics: &[&str], isolation: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers())
            .set("group.id", "a-stranger")
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            // Batches that unpack to as much are read, too.
            .set("receive.message.max.bytes", "1100000000")
            .set("fetch.wait.max.ms", "50")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("the broker answers");
            for partition in metadata.topics()[0].partitions() {
                assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("an offset");
            }
        }
        consumer.assign(&assignment).expect("an assignment");
        Self { consumer, partitions: assignment.count() }
    }

    /// The next record, if one comes within `patience`.
    pub fn next(&self, patience: Duration) -> Option<Record> {
        let deadline = Instant::now() + patience;
        loop {
            match self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                Some(Ok(message)) => return Some(Record::of(message)),
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => panic!("cannot read results: {error}"),
                None => return None,
            }
        }
    }

    /// The next `count` records.
    ///
    /// # Panics
    /// None comes for the usual patience.
    pub fn take(&self, count: usize) -> Vec<Record> {
        let mut records = Vec::with_capacity(count);
        while records.len() < count {
            match self.next(PATIENCE) {
                Some(record) => records.push(record),
                None => panic!("{} of {count} results came, and none for {} s", records.len(), PATIENCE.as_secs()),
            }
        }
        records
    }
}

/// A broker that is away; the client looks for it until it is back.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure};
    matches!(error.rdkafka_error_code(), Some(AllBrokersDown | BrokerTransportFailure))
}

/// Every committed record of `topic`, partition by partition, each in its order.
pub fn read_all(topic: &str) -> Vec<Record> {
    read_to_end(&Reader::new(&[topic]), topic)
}

/// Every record of `topic`, whether committed or not.
pub fn read_uncommitted(topic: &str) -> Vec<Record> {
    read_to_end(&Reader::of_isolation(&[topic], "read_uncommitted"), topic)
}

fn read_to_end(reader: &Reader, topic: &str) -> Vec<Record> {
    let (mut records, mut ended) = (Vec::new(), std::collections::BTreeSet::new());
    while ended.len() < reader.partitions {
        match reader.consumer.poll(PATIENCE) {
            Some(Ok(message)) => records.push(Record::of(message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => _ = ended.insert(partition),
            Some(Err(error)) if is_passing(&error) => {}
            Some(Err(error)) => panic!("cannot read {topic}: {error}"),
            None => panic!("the end of {topic} is not reached"),
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

/// What `group` has committed: the next offset of each partition of `topic`, None before the first commit.
pub fn committed(group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    Positions::new(group, topic, partitions).now(PATIENCE).expect("the broker answers")
}

/// Where a group is in a topic.
pub struct Positions {
    consumer: BaseConsumer,
    asked: TopicPartitionList,
}

impl Positions {
    pub fn new(group: &str, topic: &str, partitions: i32) -> Self {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", brokers())
            .set("group.id", group)
            // A committed reader would wait for the end of a transaction that is about to move the group.
            .set("isolation.level", "read_uncommitted")
            .create()
            .expect("a consumer");
        let mut asked = TopicPartitionList::new();
        (0..partitions).for_each(|partition| _ = asked.add_partition(topic, partition));
        Self { consumer, asked }
    }

    /// The next offset of each partition, None before the first commit.
    ///
    /// # Errors
    /// The broker does not answer within `patience`.
    pub fn now(&self, patience: Duration) -> Result<Vec<Option<i64>>, KafkaError> {
        let found = self.consumer.committed_offsets(self.asked.clone(), patience)?;
        let offset = |found: &TopicPartitionListElem<'_>| match found.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        Ok(found.elements().iter().map(offset).collect())
    }
}

/// By topic and partition.
pub type Ends = BTreeMap<(String, i32), i64>;

/// Tells how much of topics is there for readers of an isolation level.
pub struct EndsOf {
    consumer: BaseConsumer,
    partitions: Vec<(String, i32)>,
}

impl EndsOf {
    pub fn new(topics: &[&str], partitions: i32, isolation: &str) -> Self {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", brokers())
            .set("group.id", "a-stranger")
            .set("isolation.level", isolation)
            .create()
            .expect("a consumer");
        let of_topic =
            |topic: &&str| (0..partitions).map(|partition| ((*topic).to_owned(), partition)).collect::<Vec<_>>();
        Self { consumer, partitions: topics.iter().flat_map(of_topic).collect() }
    }

    /// # Errors
    /// A broker does not answer within `patience`.
    pub fn now(&self, patience: Duration) -> Result<Ends, KafkaError> {
        let end = |(topic, partition): &(String, i32)| {
            let (_, end) = self.consumer.fetch_watermarks(topic, *partition, patience)?;
            Ok(((topic.clone(), *partition), end))
        };
        self.partitions.iter().map(end).collect()
    }
}

//! Results on their way out: sent as they finish, committed together with the offsets of their inputs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, DeliveryResult, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};

use crate::{
    config::{Config, Delivery},
    kafka::{self, ClientError},
    run::group::GroupConsumer,
};

/// How long one call may block the loop; a commit that takes longer goes on in the next turn.
const STEP: Duration = Duration::from_millis(500);

/// Readers of results see nothing behind an unfinished transaction. A killed process leaves one open until this is over,
/// unless a process with the same instance id starts before.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// A record to be written. It may still lie in the consumer's memory.
pub struct OutRecord<'c> {
    pub topic: Arc<str>,
    /// None: by key.
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub value: Value<'c>,
    pub headers: OwnedHeaders,
    /// Milliseconds since 1970; None: now.
    pub timestamp_ms: Option<i64>,
}

pub enum Value<'c> {
    Bytes(Vec<u8>),
    /// The value of an input record, unchanged.
    Original(BorrowedMessage<'c>),
}

impl Value<'_> {
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Original(message) => message.payload(),
        }
    }
}

/// Why the process must end: nothing can be sent any more.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error(
        "another process runs as instance {instance_id:?} of group {group_id:?} and took over; \
         give each process its own kafka.instance_id"
    )]
    Fenced { instance_id: String, group_id: String },
    #[error("the producer cannot go on: {0}")]
    Fatal(KafkaError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What became of a commit.
#[derive(Debug)]
pub enum Progress {
    /// It goes on in the next turn.
    Pending,
    /// Results are written, and these positions in the input with them.
    Committed(TopicPartitionList),
    /// What was sent is void; the reason.
    Aborted(String),
}

/// The producer, and the transaction or batch it is in.
pub struct Outbox {
    producer: ThreadedProducer<Deliveries>,
    delivery: Delivery,
    state: State,
    group_id: String,
    instance_id: String,
}

enum State {
    Idle,
    /// Something was sent.
    Open {
        since: Instant,
        bytes: usize,
    },
    SendOffsets(TopicPartitionList),
    Commit(TopicPartitionList),
    Abort(String),
}

impl Outbox {
    /// Connects. With exactly-once, what an earlier run of this instance left open is aborted here.
    ///
    /// # Errors
    /// No broker answers, or the configuration is refused.
    pub fn open(config: &Config) -> Result<Self, OutboxError> {
        let kafka = &config.kafka;
        let mut client = kafka::client_config(kafka);
        client
            .set("enable.idempotence", "true")
            .set("message.max.bytes", kafka::MAX_RECORD_BYTES)
            .set("compression.type", "lz4")
            // The commit asks for what is there; waiting for more would only add latency.
            .set("linger.ms", "0");
        if config.runtime.delivery == Delivery::ExactlyOnce {
            client
                .set("transactional.id", format!("{}-{}", kafka.group_id, kafka.instance_id))
                .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string());
        }
        let producer: ThreadedProducer<Deliveries> = kafka::with_properties(client, kafka)
            .create_with_context(Deliveries::default())
            .map_err(ClientError::Config)?;
        let outbox = Self {
            producer,
            delivery: config.runtime.delivery,
            state: State::Idle,
            group_id: kafka.group_id.clone(),
            instance_id: kafka.instance_id.clone(),
        };
        if outbox.delivery == Delivery::ExactlyOnce {
            // Longer than an open transaction of a killed predecessor can hold it up.
            let patience = TRANSACTION_TIMEOUT + kafka::FIRST_ANSWER;
            outbox.producer.init_transactions(patience).map_err(|source| match Trouble::of(&source) {
                Trouble::Fatal => outbox.fatal(source),
                _ => ClientError::Unreachable { brokers: kafka.brokers.clone(), source }.into(),
            })?;
        }
        Ok(outbox)
    }

    /// The number of partitions of `topic`.
    pub fn partitions(&self, config: &Config, topic: &str) -> Result<usize, ClientError> {
        kafka::partitions(self.producer.client(), &config.kafka, topic)
    }

    /// True where [`send`](Self::send) may be called: no commit is under way.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Idle | State::Open { .. })
    }

    /// True where nothing is sent and uncommitted.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// When the first record since the last commit was sent, and how many bytes since.
    pub fn pending(&self) -> Option<(Instant, usize)> {
        match self.state {
            State::Open { since, bytes } => Some((since, bytes)),
            _ => None,
        }
    }

    /// Sends one record. False where the producer's queue is full: try again after a commit.
    ///
    /// # Errors
    /// The process must end.
    pub fn send(&mut self, record: &OutRecord<'_>) -> Result<bool, OutboxError> {
        if matches!(self.state, State::Idle) {
            if self.delivery == Delivery::ExactlyOnce {
                self.producer.begin_transaction().map_err(|e| self.fatal(e))?;
            }
            self.producer.context().failed.store(0, Ordering::SeqCst);
            self.state = State::Open { since: Instant::now(), bytes: 0 };
        }
        let value = record.value.bytes();
        let mut message: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&record.topic).headers(record.headers.clone());
        message.payload = value;
        message.key = record.key.as_deref();
        message.partition = record.partition;
        message.timestamp = record.timestamp_ms;
        match self.producer.send(message) {
            Ok(()) => {
                if let State::Open { bytes, .. } = &mut self.state {
                    *bytes += value.map_or(0, <[u8]>::len);
                }
                Ok(true)
            }
            Err((error, _)) => match (error.rdkafka_error_code(), Trouble::of(&error)) {
                (Some(RDKafkaErrorCode::QueueFull), _) => Ok(false),
                (_, Trouble::Fatal) => Err(self.fatal(error)),
                // Refused here or failed in delivery: the same for the transaction, and the commit finds out.
                _ => {
                    tracing::warn!("a result could not be sent: {error}");
                    self.producer.context().failed.fetch_add(1, Ordering::SeqCst);
                    Ok(true)
                }
            },
        }
    }

    /// Starts committing what was sent, together with the positions in the input.
    pub fn start_commit(&mut self, positions: TopicPartitionList) {
        if let State::Open { .. } = self.state {
            self.state = State::SendOffsets(positions);
        }
    }

    /// Voids what was sent since the last commit.
    pub fn start_abort(&mut self, reason: &str) {
        if !matches!(self.state, State::Idle | State::Abort(_)) {
            self.state = State::Abort(reason.to_owned());
        }
    }

    /// Takes the commit under way further, blocking for at most a second or so.
    ///
    /// # Errors
    /// The process must end.
    pub fn advance(&mut self, consumer: &GroupConsumer) -> Result<Progress, OutboxError> {
        loop {
            let step = match &self.state {
                State::Idle | State::Open { .. } => return Ok(Progress::Pending),
                State::SendOffsets(positions) => self.send_offsets(positions, consumer),
                State::Commit(positions) => self.commit(positions, consumer),
                State::Abort(_) => self.abort(),
            };
            match (step, std::mem::replace(&mut self.state, State::Idle)) {
                (Ok(()), State::SendOffsets(positions)) => self.state = State::Commit(positions),
                (Ok(()), State::Abort(reason)) => return Ok(Progress::Aborted(reason)),
                (Ok(()), State::Commit(positions)) => return Ok(Progress::Committed(positions)),
                (Ok(()), State::Idle | State::Open { .. }) => return Ok(Progress::Pending),
                (Err(error), state) => match Trouble::of(&error) {
                    Trouble::Fatal => return Err(self.fatal(error)),
                    Trouble::Retry => {
                        self.state = state;
                        return Ok(Progress::Pending);
                    }
                    Trouble::Abort => self.state = State::Abort(error.to_string()),
                },
            }
        }
    }

    fn send_offsets(&self, positions: &TopicPartitionList, consumer: &GroupConsumer) -> Result<(), KafkaError> {
        match (self.delivery, consumer.group_metadata()) {
            (Delivery::AtLeastOnce, _) => Ok(()),
            (Delivery::ExactlyOnce, Some(group)) => self.producer.send_offsets_to_transaction(positions, &group, STEP),
            (Delivery::ExactlyOnce, None) => Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId)),
        }
    }

    fn commit(&self, positions: &TopicPartitionList, consumer: &GroupConsumer) -> Result<(), KafkaError> {
        let failed = || match self.producer.context().failed.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)),
        };
        match self.delivery {
            Delivery::ExactlyOnce => {
                failed()?;
                self.producer.commit_transaction(STEP)
            }
            Delivery::AtLeastOnce => {
                self.producer.flush(STEP)?;
                failed()?;
                consumer.commit(positions, CommitMode::Sync)
            }
        }
    }

    fn abort(&self) -> Result<(), KafkaError> {
        match self.delivery {
            Delivery::ExactlyOnce => self.producer.abort_transaction(STEP),
            Delivery::AtLeastOnce => Ok(()),
        }
    }

    fn fatal(&self, error: KafkaError) -> OutboxError {
        let code = error.rdkafka_error_code();
        let cause = self.producer.client().fatal_error().map(|(code, _)| code).or(code);
        match cause {
            Some(
                RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch,
            ) => OutboxError::Fenced { instance_id: self.instance_id.clone(), group_id: self.group_id.clone() },
            _ => OutboxError::Fatal(error),
        }
    }
}

/// What an error asks for.
enum Trouble {
    /// The same call again.
    Retry,
    /// Void the transaction and send its results again.
    Abort,
    /// The producer is done for.
    Fatal,
}

impl Trouble {
    fn of(error: &KafkaError) -> Self {
        match error {
            KafkaError::Transaction(error) if error.is_fatal() => Self::Fatal,
            KafkaError::Transaction(error) if error.txn_requires_abort() => Self::Abort,
            KafkaError::Transaction(error) if error.is_retriable() => Self::Retry,
            KafkaError::Transaction(_) => Self::Fatal,
            KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut) => Self::Retry,
            error => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::Fenced) => Self::Fatal,
                _ => Self::Abort,
            },
        }
    }
}

/// Counts deliveries that failed for good.
#[derive(Default)]
pub struct Deliveries {
    failed: AtomicUsize,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        kafka::log_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.failed.fetch_add(1, Ordering::SeqCst);
            tracing::debug!("a result was not delivered: {error}");
        }
    }
}

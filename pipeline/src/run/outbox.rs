//! Results on their way out: sent as they finish, committed together with the offsets of their inputs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use rdkafka::{
    ClientContext, Message, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, DeliveryResult, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};

use crate::{
    config::{Config, Delivery},
    kafka::{self, ClientError},
};

/// How long one call may take before it is made again.
const STEP: Duration = Duration::from_secs(1);
/// Between two calls, where the broker asks for patience.
const RETRY: Duration = Duration::from_millis(20);

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
    #[error("the thread that commits cannot be started: {0}")]
    Thread(std::io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// How a transaction or batch ended.
#[derive(Debug)]
pub enum Closed {
    /// Results are written, and these positions in the input with them.
    Committed(TopicPartitionList),
    /// What was sent is void; the reason.
    Aborted(String),
}

/// The producer, and the transaction or batch it is in.
///
/// Commits and aborts run on a thread of their own: with brokers gone librdkafka's calls block for as long as a
/// transaction may last, and the loop must go on meanwhile.
pub struct Outbox {
    closer: Arc<Closer>,
    state: State,
    jobs: Sender<Job>,
    closed: Receiver<Result<Closed, OutboxError>>,
}

enum State {
    Idle,
    /// Something was sent.
    Open {
        since: Instant,
        bytes: usize,
    },
    /// A commit or abort is under way.
    Closing {
        since: Instant,
    },
}

enum Job {
    Commit { positions: TopicPartitionList, group: Option<ConsumerGroupMetadata> },
    Abort { reason: String },
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
        let closer = Arc::new(Closer {
            producer,
            delivery: config.runtime.delivery,
            group_id: kafka.group_id.clone(),
            instance_id: kafka.instance_id.clone(),
        });
        if closer.delivery == Delivery::ExactlyOnce {
            // Longer than an open transaction of a killed predecessor can hold it up.
            let patience = TRANSACTION_TIMEOUT + kafka::FIRST_ANSWER;
            closer.producer.init_transactions(patience).map_err(|source| match Trouble::of(&source) {
                Trouble::Fatal => closer.fatal(source),
                _ => ClientError::Unreachable { brokers: kafka.brokers.clone(), source }.into(),
            })?;
        }
        let (jobs, todo) = bounded(1);
        let (done, closed) = bounded(1);
        let thread = Arc::clone(&closer);
        std::thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || {
                for job in todo {
                    // Without the outbox nobody waits for the answer.
                    let _ = done.send(thread.close(job));
                }
            })
            .map_err(OutboxError::Thread)?;
        Ok(Self { closer, state: State::Idle, jobs, closed })
    }

    /// The number of partitions of `topic`.
    pub fn partitions(&self, config: &Config, topic: &str) -> Result<usize, ClientError> {
        kafka::partitions(self.closer.producer.client(), &config.kafka, topic)
    }

    /// True where [`send`](Self::send) may be called: no commit is under way.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closing { .. })
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
        let Closer { producer, delivery, .. } = &*self.closer;
        if matches!(self.state, State::Idle) {
            if *delivery == Delivery::ExactlyOnce {
                producer.begin_transaction().map_err(|e| self.closer.fatal(e))?;
            }
            producer.context().failed.store(0, Ordering::SeqCst);
            self.state = State::Open { since: Instant::now(), bytes: 0 };
        }
        let value = record.value.bytes();
        let mut message: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&record.topic).headers(record.headers.clone());
        message.payload = value;
        message.key = record.key.as_deref();
        message.partition = record.partition;
        message.timestamp = record.timestamp_ms;
        match producer.send(message) {
            Ok(()) => {
                if let State::Open { bytes, .. } = &mut self.state {
                    *bytes += value.map_or(0, <[u8]>::len);
                }
                Ok(true)
            }
            Err((error, _)) => match (error.rdkafka_error_code(), Trouble::of(&error)) {
                (Some(RDKafkaErrorCode::QueueFull), _) => Ok(false),
                (_, Trouble::Fatal) => Err(self.closer.fatal(error)),
                // Refused here or failed in delivery: the same for the transaction, and the commit finds out.
                _ => {
                    tracing::warn!("a result could not be sent: {error}");
                    producer.context().failed.fetch_add(1, Ordering::SeqCst);
                    Ok(true)
                }
            },
        }
    }

    /// Starts committing what was sent, together with the positions in the input. `group` is fresh: the broker refuses
    /// positions of partitions that went to another process.
    pub fn commit(&mut self, positions: TopicPartitionList, group: Option<ConsumerGroupMetadata>) {
        self.close(Job::Commit { positions, group });
    }

    /// Starts voiding what was sent since the last commit.
    pub fn abort(&mut self, reason: &str) {
        self.close(Job::Abort { reason: reason.to_owned() });
    }

    fn close(&mut self, job: Job) {
        if let State::Open { .. } = self.state {
            self.state = State::Closing { since: Instant::now() };
            // The thread takes one job at a time, and has none: it ends after this value.
            let _ = self.jobs.send(job);
        }
    }

    /// Answers of commits and aborts; each is to be given to [`closed`](Self::closed).
    pub fn answers(&self) -> &Receiver<Result<Closed, OutboxError>> {
        &self.closed
    }

    /// Notes that a commit or abort has ended; how long it took.
    pub fn closed(&mut self) -> Duration {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Closing { since } => since.elapsed(),
            State::Idle | State::Open { .. } => Duration::ZERO,
        }
    }
}

/// What both threads need of the producer.
struct Closer {
    producer: ThreadedProducer<Deliveries>,
    delivery: Delivery,
    group_id: String,
    instance_id: String,
}

impl Closer {
    /// Ends the transaction or batch, however long it takes.
    fn close(&self, job: Job) -> Result<Closed, OutboxError> {
        let reason = match job {
            Job::Abort { reason } => reason,
            Job::Commit { positions, group } => match self.commit(&positions, group) {
                Ok(()) => return Ok(Closed::Committed(positions)),
                Err(error) => match Trouble::of(&error) {
                    Trouble::Fatal => return Err(self.fatal(error)),
                    Trouble::Abort | Trouble::Retry => error.to_string(),
                },
            },
        };
        if self.delivery == Delivery::ExactlyOnce {
            persist(|| self.producer.abort_transaction(STEP)).map_err(|e| self.fatal(e))?;
        }
        Ok(Closed::Aborted(reason))
    }

    fn commit(&self, positions: &TopicPartitionList, group: Option<ConsumerGroupMetadata>) -> Result<(), KafkaError> {
        match self.delivery {
            Delivery::ExactlyOnce => {
                self.all_delivered()?;
                let group = group.ok_or(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId))?;
                persist(|| self.producer.send_offsets_to_transaction(positions, &group, STEP))?;
                persist(|| self.producer.commit_transaction(STEP))
            }
            Delivery::AtLeastOnce => {
                persist(|| self.producer.flush(STEP))?;
                self.all_delivered()
            }
        }
    }

    fn all_delivered(&self) -> Result<(), KafkaError> {
        match self.producer.context().failed.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)),
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

/// Calls until it is done or fails for another reason than time.
fn persist(call: impl Fn() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
    loop {
        match call() {
            Err(error) if matches!(Trouble::of(&error), Trouble::Retry) => std::thread::sleep(RETRY),
            result => return result,
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

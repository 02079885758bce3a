//! How transactions end: committed with the positions of their inputs, or void. Every trouble on the way is retried,
//! answered by an abort, or by a new producer; only another process in this one's place is the end.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, ConsumerGroupMetadata, DefaultConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{Producer, ProducerContext, ThreadedProducer},
};

use super::{
    committer::Call,
    offsets::{self, Positions},
};
use crate::{
    config::{Config, Delivery, Kafka},
    kafka::{self, ClientError},
    telemetry::metrics,
};

/// How long one call may take before it is made again.
const STEP: Duration = Duration::from_secs(1);
/// Between two calls, where the broker asks for patience.
const RETRY: Duration = Duration::from_millis(20);

/// Between two looks at whether everything is delivered, which takes a few milliseconds.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// How long a transaction may take on top of the commit interval. Readers of results see nothing behind an unfinished
/// one, and a killed process leaves one open until this is over, unless a process with the same instance id starts
/// before. What a short time costs is little: results of an expired transaction are sent again.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

pub type ResultProducer = ThreadedProducer<Deliveries>;

/// A transaction or batch to be closed.
pub struct Job {
    /// When it was begun.
    pub begun: Instant,
    pub how: Closing,
}

pub enum Closing {
    Commit { producer: ResultProducer, positions: Positions, group: Option<ConsumerGroupMetadata> },
    Abort { producer: ResultProducer, reason: String },
    Renew(Renewal),
}

/// A new producer is to take the place of one that cannot go on.
pub struct Renewal {
    /// None where a call with it hangs.
    pub old: Option<ResultProducer>,
    pub error: KafkaError,
    /// Of a commit that was under way.
    pub attempted: Option<Positions>,
}

/// A transaction or batch that has ended, and the producer for the next.
pub struct Closed {
    pub producer: ResultProducer,
    pub end: End,
}

pub enum End {
    /// Results are written, and these positions in the input with them.
    Committed(Positions),
    /// What was sent is void; the reason.
    Aborted(String),
}

/// Why the process must end: nothing can be sent any more.
#[derive(Debug, thiserror::Error)]
pub enum TransactionsError {
    #[error(
        "another process runs as instance {instance_id:?} of group {group_id:?} and took over; \
         give each process its own kafka.instance_id"
    )]
    Fenced { instance_id: String, group_id: String },
    #[error("the producer cannot go on: {0}")]
    Fatal(KafkaError),
    #[error("the thread that commits cannot be started: {0}")]
    Thread(std::io::Error),
    /// Never seen by users: the thread that was given up ends with it.
    #[error("a call hung and was given up")]
    GivenUp,
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Makes producers and ends their transactions.
pub struct Transactions {
    client: ClientConfig,
    /// Of transactions.
    timeout: Duration,
    delivery: Delivery,
    kafka: Kafka,
    topic: String,
    fingerprint: String,
}

impl Transactions {
    pub fn new(config: &Config, fingerprint: &str) -> Self {
        let kafka = &config.kafka;
        let timeout = TRANSACTION_TIMEOUT + config.runtime.commit_interval;
        let mut client = kafka::client_config(kafka);
        client
            .set("enable.idempotence", "true")
            .set("message.max.bytes", kafka::MAX_RECORD_BYTES)
            .set("compression.type", "lz4")
            // The commit asks for what is there; waiting for more would only add latency.
            .set("linger.ms", "0");
        if config.runtime.delivery == Delivery::ExactlyOnce {
            client
                .set("transactional.id", config.transactional_id())
                .set("transaction.timeout.ms", timeout.as_millis().to_string());
        }
        Self {
            client: kafka::with_properties(client, kafka),
            timeout,
            delivery: config.runtime.delivery,
            kafka: kafka.clone(),
            topic: config.input_topic().to_owned(),
            fingerprint: fingerprint.to_owned(),
        }
    }

    /// A producer whose predecessor's open transaction is aborted.
    pub fn first_producer(&self) -> Result<ResultProducer, TransactionsError> {
        let producer = self.producer()?;
        if self.delivery == Delivery::ExactlyOnce {
            // Longer than an open transaction of a killed predecessor can hold it up.
            let patience = self.timeout + kafka::FIRST_ANSWER;
            producer.init_transactions(patience).map_err(|source| match Trouble::of(&source) {
                Trouble::Fatal => TransactionsError::Fatal(source),
                _ => ClientError::Unreachable { brokers: self.kafka.brokers.clone(), source }.into(),
            })?;
        }
        Ok(producer)
    }

    fn producer(&self) -> Result<ResultProducer, ClientError> {
        self.client.create_with_context(Deliveries::default()).map_err(ClientError::Config)
    }

    /// Ends a transaction or batch, however long it takes.
    pub fn close(&self, job: Job, call: &Call) -> Result<Closed, TransactionsError> {
        let Job { begun, how } = job;
        let (producer, attempted, reason) = match how {
            Closing::Commit { producer, positions, group } => match self.commit(&producer, &positions, group, call)? {
                Ok(()) => return Ok(Closed { producer, end: End::Committed(positions) }),
                Err(error) if matches!(Trouble::of(&error), Trouble::Fatal) => {
                    let renewal = Renewal { old: Some(producer), error, attempted: Some(positions) };
                    return self.renew(renewal, begun, call);
                }
                Err(error) => (producer, Some(positions), error.to_string()),
            },
            Closing::Abort { producer, reason } => (producer, None, reason),
            Closing::Renew(renewal) => return self.renew(renewal, begun, call),
        };
        if self.delivery == Delivery::ExactlyOnce
            && let Err(error) = persist(call, || producer.abort_transaction(STEP))?
        {
            return self.renew(Renewal { old: Some(producer), error, attempted }, begun, call);
        }
        Ok(Closed { producer, end: End::Aborted(reason) })
    }

    fn commit(
        &self,
        producer: &ResultProducer,
        positions: &Positions,
        group: Option<ConsumerGroupMetadata>,
        call: &Call,
    ) -> Result<KafkaResult<()>, TransactionsError> {
        if self.delivery == Delivery::AtLeastOnce {
            await_deliveries(producer);
            let flushed = persist(call, || producer.flush(STEP))?;
            return Ok(flushed.and_then(|()| producer.context().all_delivered()));
        }
        tracing::debug!(?positions, "committing");
        let prepare = || {
            producer.context().all_delivered()?;
            let group = group.ok_or(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId))?;
            Ok((offsets::to_list(&self.topic, &self.fingerprint, positions)?, group))
        };
        match prepare() {
            Ok((list, group)) => match persist(call, || producer.send_offsets_to_transaction(&list, &group, STEP))? {
                Ok(()) => {
                    await_deliveries(producer);
                    persist(call, || producer.commit_transaction(STEP))
                }
                Err(error) => Ok(Err(error)),
            },
            Err(error) => Ok(Err(error)),
        }
    }

    /// A new producer in place of one that cannot go on, for example after brokers were gone for longer than a
    /// transaction may last. Whether a commit under way went through is asked of the group.
    fn renew(&self, renewal: Renewal, begun: Instant, call: &Call) -> Result<Closed, TransactionsError> {
        let Renewal { old, error, attempted } = renewal;
        let fatal = old.as_ref().and_then(|old| old.client().fatal_error()).map(|(code, _)| code);
        // The broker also fences the producer of a transaction that lasted too long, so an old one proves nothing. Where
        // it was another process after all, the next transaction is fenced young.
        if is_fence(fatal.or(error.rdkafka_error_code())) && begun.elapsed() < self.timeout {
            return Err(TransactionsError::Fenced {
                instance_id: self.kafka.instance_id.clone(),
                group_id: self.kafka.group_id.clone(),
            });
        }
        metrics::producer_renewed(&error);
        call.make(|| drop(old))?;
        let producer = self.producer()?;
        if self.delivery == Delivery::ExactlyOnce {
            persist(call, || producer.init_transactions(STEP))?.map_err(TransactionsError::Fatal)?;
        }
        let end = match attempted {
            Some(positions) if self.went_through(&positions)? => End::Committed(positions),
            _ => End::Aborted(error.to_string()),
        };
        Ok(Closed { producer, end })
    }

    /// Whether the group is where a transaction of unknown end would have brought it. `init_transactions` has ended that
    /// transaction, so the answer is final.
    fn went_through(&self, attempted: &Positions) -> Result<bool, ClientError> {
        if self.delivery == Delivery::AtLeastOnce {
            return Ok(false);
        }
        let client = offsets::observer(&self.kafka, kafka::client_config(&self.kafka));
        let observer: BaseConsumer<DefaultConsumerContext> =
            kafka::with_properties(client, &self.kafka).create().map_err(ClientError::Config)?;
        loop {
            match offsets::committed(&observer, &self.topic, &self.fingerprint, attempted.keys().copied()) {
                Ok(committed) => return Ok(offsets::reached(&committed, attempted)),
                Err(error) => {
                    tracing::debug!("the group's offsets are not known yet: {error}");
                    std::thread::sleep(offsets::RETRY);
                }
            }
        }
    }
}

fn is_fence(code: Option<RDKafkaErrorCode>) -> bool {
    matches!(
        code,
        Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch)
    )
}

/// Waits for what was sent, as rdkafka does before a commit, but not 100 ms at a time.
fn await_deliveries(producer: &ResultProducer) {
    let until = Instant::now() + STEP;
    while producer.in_flight_count() > 0 && Instant::now() < until {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Calls until it is done or fails for another reason than time.
fn persist(call: &Call, attempt: impl Fn() -> KafkaResult<()>) -> Result<KafkaResult<()>, TransactionsError> {
    loop {
        match call.make(&attempt)? {
            Err(error) if matches!(Trouble::of(&error), Trouble::Retry) => {
                tracing::debug!("once more: {error}");
                std::thread::sleep(RETRY);
            }
            result => return Ok(result),
        }
    }
}

/// What an error asks for.
enum Trouble {
    /// The same call again.
    Retry,
    /// Void the transaction and send its results again.
    Abort,
    /// This producer is done for.
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

/// Notes what could not be delivered.
#[derive(Default)]
pub struct Deliveries {
    /// The first failure: it says most, those behind it are its consequences.
    failure: Mutex<Option<KafkaError>>,
}

impl Deliveries {
    fn failure(&self) -> MutexGuard<'_, Option<KafkaError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forget_failures(&self) {
        *self.failure() = None;
    }

    pub fn note_failure(&self, error: &KafkaError) {
        self.failure().get_or_insert_with(|| error.clone());
        tracing::debug!("a result was not delivered: {error}");
    }

    fn all_delivered(&self) -> Result<(), KafkaError> {
        self.failure().clone().map_or(Ok(()), Err)
    }
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
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.note_failure(error);
        }
    }
}

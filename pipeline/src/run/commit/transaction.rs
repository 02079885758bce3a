//! How transactions end: committed with the positions of their inputs, or void. Every trouble on the way is retried,
//! answered by an abort, or by a new producer; only another process in this one's place is the end.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    consumer::{BaseConsumer, ConsumerGroupMetadata, DefaultConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::Producer,
};

use super::{
    deliveries::{Deliveries, ResultProducer},
    watchdog::{Lost, Watchdog},
};
use crate::{
    config::{Delivery, Kafka},
    kafka::{self, ClientError},
    run::partitions::positions::{self, Coordinates, Positions},
    telemetry::metrics,
};

/// How long one call may take before it is made again.
const STEP: Duration = Duration::from_secs(1);
/// Between two calls, where the broker asks for patience.
const RETRY: Duration = Duration::from_millis(20);

/// Between two tries to begin what is forbidden.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Between two looks at whether everything is delivered, which takes some milliseconds.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// How long a transaction of usual results may take on top of the commit interval, see [`Allowance`](super::allowance).
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// A transaction or batch to be closed.
pub struct Task {
    /// When it was begun.
    pub begun: Instant,
    /// Of transactions, for a new producer.
    pub timeout: Duration,
    pub how: Closing,
}

pub enum Closing {
    Commit { producer: ResultProducer, attempt: Attempt, group: Option<ConsumerGroupMetadata> },
    Abort { producer: ResultProducer, reason: String },
    Renew(Renewal),
}

/// The positions that a commit is to bring the group to.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub at: Coordinates,
    pub positions: Positions,
}

/// A new producer is to take the place of one that cannot go on.
pub struct Renewal {
    /// `None` if a call with it hangs.
    pub old: Option<ResultProducer>,
    pub why: Why,
    /// Of a commit that was under way.
    pub attempted: Option<Attempt>,
}

/// Why a producer has a successor.
pub enum Why {
    /// It cannot go on.
    Trouble(KafkaError),
    /// Its transactions may not take as long as the next one is to.
    Time,
}

/// A transaction or batch that has ended, and the producer for the next.
pub struct Closed {
    pub producer: ResultProducer,
    pub end: End,
    /// Records that were refused for good, each by its number in the transaction.
    pub refused: Vec<(usize, RDKafkaErrorCode)>,
}

pub enum End {
    /// Results are written, and these positions in the input with them.
    Committed(Positions),
    /// Nothing was sent.
    NotBegun,
    /// What was sent is void: the input topic was deleted and made again since its records were read.
    Replaced,
    /// What was sent is void.
    Aborted { reason: String, code: Option<RDKafkaErrorCode> },
}

impl End {
    fn aborted(error: &KafkaError) -> Self {
        Self::Aborted { reason: error.to_string(), code: error.rdkafka_error_code() }
    }
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
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What transactions are made of.
pub struct Settings {
    pub kafka: Kafka,
    pub delivery: Delivery,
    pub transactional_id: String,
    pub commit_interval: Duration,
    /// Topics of results.
    pub topics: [String; 2],
}

/// Makes producers and ends their transactions.
pub struct Transactions {
    settings: Settings,
    obstacle: Mutex<Option<String>>,
}

impl Transactions {
    pub fn new(settings: Settings) -> Self {
        Self { settings, obstacle: Mutex::default() }
    }

    /// What is waited for before a transaction can be begun.
    pub fn obstacle(&self) -> MutexGuard<'_, Option<String>> {
        self.obstacle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exactly_once(&self) -> bool {
        self.settings.delivery == Delivery::ExactlyOnce
    }

    /// A producer whose predecessor's open transaction is aborted.
    pub fn first_producer(&self, timeout: Duration) -> Result<ResultProducer, TransactionsError> {
        let producer = self.producer(timeout)?;
        if self.exactly_once() {
            // Longer than an open transaction of a killed predecessor can hold it up.
            let patience = timeout + kafka::FIRST_ANSWER;
            producer.init_transactions(patience).map_err(|source| match Remedy::of(&source) {
                Remedy::Fatal => TransactionsError::Fatal(source),
                _ => ClientError::Unreachable { brokers: self.settings.kafka.brokers.clone(), source }.into(),
            })?;
        }
        Ok(producer)
    }

    fn producer(&self, timeout: Duration) -> Result<ResultProducer, ClientError> {
        let kafka = &self.settings.kafka;
        let mut client = kafka::client_config(kafka);
        client
            .set("enable.idempotence", "true")
            .set("message.max.bytes", kafka::MAX_RECORD_BYTES)
            .set("compression.type", "lz4")
            // The commit asks for what is there; waiting for more would only add latency.
            .set("linger.ms", "0")
            // A topic that was deleted is found missing within a second, not after thirty.
            .set("topic.metadata.propagation.max.ms", "1000")
            // Partitions added to it are found before long: until then their results are held.
            .set("topic.metadata.refresh.interval.ms", "5000");
        if self.exactly_once() {
            client
                .set("transactional.id", &self.settings.transactional_id)
                .set("transaction.timeout.ms", timeout.as_millis().to_string());
        }
        let client = kafka::with_properties(client, kafka);
        client.create_with_context(Deliveries::new(timeout)).map_err(ClientError::Config)
    }

    /// Ends a transaction or batch, however long it takes.
    ///
    /// # Errors
    /// A call hung for so long that another thread took this one's place.
    pub fn close(&self, task: Task, watchdog: &Watchdog) -> Result<Result<Closed, TransactionsError>, Lost> {
        match self.try_close(task, watchdog) {
            Ok(closed) => Ok(Ok(closed)),
            Err(Interrupted::Lost(lost)) => Err(lost),
            Err(Interrupted::Ended(error)) => Ok(Err(error)),
        }
    }

    fn try_close(&self, task: Task, call: &Watchdog) -> Result<Closed, Interrupted> {
        let Task { begun, timeout, how } = task;
        let (producer, attempted, end) = match how {
            Closing::Commit { producer, attempt, group } => match self.commit(&producer, &attempt, group, call)? {
                Ok(Identity::Same) => {
                    return Ok(Closed { producer, end: End::Committed(attempt.positions), refused: Vec::new() });
                }
                Ok(Identity::Another) => (producer, None, End::Replaced),
                Err(error) if matches!(Remedy::of(&error), Remedy::Fatal) => {
                    let renewal = Renewal { old: Some(producer), why: Why::Trouble(error), attempted: Some(attempt) };
                    return self.renew(renewal, begun, timeout, call);
                }
                Err(error) => (producer, Some(attempt), End::aborted(&error)),
            },
            Closing::Abort { producer, reason } => (producer, None, End::Aborted { reason, code: None }),
            Closing::Renew(renewal) => return self.renew(renewal, begun, timeout, call),
        };
        if self.exactly_once()
            && let Err(error) = persist(call, || producer.abort_transaction(STEP))?
        {
            let renewal = Renewal { old: Some(producer), why: Why::Trouble(error), attempted };
            return self.renew(renewal, begun, timeout, call);
        }
        await_deliveries(&producer);
        let refused = producer.context().take_refused();
        Ok(Closed { producer, end, refused })
    }

    /// Commits, if the input topic is still the one that the positions are in.
    fn commit(
        &self,
        producer: &ResultProducer,
        attempt: &Attempt,
        group: Option<ConsumerGroupMetadata>,
        call: &Watchdog,
    ) -> Result<KafkaResult<Identity>, Lost> {
        // What is asked below would wait behind what is being sent.
        if let Err(error) = self.deliver(producer) {
            return Ok(Err(error));
        }
        let mut same = Identity::Another;
        let ask = || {
            same = identity(producer, &attempt.at)?;
            Ok(())
        };
        match persist(call, ask)? {
            Ok(()) if matches!(same, Identity::Same) => {}
            other => return Ok(other.map(|()| same)),
        }
        if !self.exactly_once() {
            return Ok(Ok(same));
        }
        tracing::debug!(?attempt, "committing");
        let prepare = || {
            let group = group.ok_or(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId))?;
            Ok((attempt.at.to_list(&attempt.positions)?, group))
        };
        let committed = match prepare() {
            Ok((list, group)) => match persist(call, || producer.send_offsets_to_transaction(&list, &group, STEP))? {
                Ok(()) => persist(call, || producer.commit_transaction(STEP))?,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        Ok(committed.map(|()| Identity::Same))
    }

    /// Waits until all that was sent has arrived. rdkafka's own waiting before a commit goes by 100 ms.
    fn deliver(&self, producer: &ResultProducer) -> KafkaResult<()> {
        let mut look = Instant::now() + STEP;
        while producer.in_flight_count() > 0 {
            std::thread::sleep(LOOK_AGAIN);
            if !self.exactly_once() {
                // Whatever has failed, the rest may still arrive, and would be told of in the next batch.
                continue;
            }
            // librdkafka keeps what it has not sent of a transaction that has failed until its time is over.
            producer.context().all_delivered()?;
            if Instant::now() > look {
                // It goes on asking for a topic that is not there, and nothing of the transaction is sent meanwhile.
                let missing = self.missing(producer);
                if !missing.is_empty() {
                    producer.context().note_missing(missing);
                    return Err(KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopicOrPartition));
                }
                look = Instant::now() + STEP;
            }
        }
        producer.context().all_delivered()
    }

    /// Topics of results that are not there. Without an answer it is none.
    fn missing(&self, producer: &ResultProducer) -> Vec<String> {
        use RDKafkaErrorCode::{UnknownTopic, UnknownTopicOrPartition};
        let names = self.settings.topics.each_ref().map(String::as_str);
        let found = kafka::topics(producer.client(), &names, STEP).unwrap_or_default();
        let found = self.settings.topics.iter().zip(found);
        let missing = found.filter(|(_, topic)| matches!(topic, Err(UnknownTopic | UnknownTopicOrPartition)));
        missing.map(|(name, _)| name.clone()).collect()
    }

    /// A new producer in place of one that cannot go on, for example after brokers were gone for longer than a
    /// transaction may last. Whether a commit under way went through is asked of the group.
    fn renew(
        &self,
        renewal: Renewal,
        begun: Instant,
        timeout: Duration,
        call: &Watchdog,
    ) -> Result<Closed, Interrupted> {
        let Renewal { old, why, attempted } = renewal;
        let fatal = old.as_ref().and_then(|old| old.client().fatal_error()).map(|(code, _)| code);
        let code = match &why {
            Why::Trouble(error) => fatal.or(error.rdkafka_error_code()),
            Why::Time => fatal,
        };
        // The broker also fences the producer of a transaction that lasted too long, so an old one proves nothing. If it
        // was another process after all, the next transaction is fenced young.
        let lasts = old.as_ref().map_or(timeout, |old| old.context().timeout());
        if is_fence(code) && begun.elapsed() < lasts {
            let Kafka { instance_id, group_id, .. } = self.settings.kafka.clone();
            return Err(TransactionsError::Fenced { instance_id, group_id }.into());
        }
        match &why {
            Why::Trouble(error) => metrics::producer_renewed(error),
            Why::Time => tracing::debug!(?timeout, "transactions take another time from now on"),
        }
        let refused = old.as_ref().map(|old| old.context().take_refused()).unwrap_or_default();
        call.watch(|| drop(old))?;
        let producer = self.successor(timeout, call)?;
        let end = match (attempted, &why) {
            (Some(attempt), _) if self.went_through(&attempt)? => End::Committed(attempt.positions),
            (_, Why::Trouble(error)) => End::aborted(error),
            (_, Why::Time) => End::NotBegun,
        };
        Ok(Closed { producer, end, refused })
    }

    /// A producer that can begin transactions. The right to their id is waited for if it was withdrawn.
    fn successor(&self, timeout: Duration, call: &Watchdog) -> Result<ResultProducer, Interrupted> {
        loop {
            let producer = self.producer(timeout)?;
            let begun = match self.exactly_once() {
                true => persist(call, || producer.init_transactions(STEP))?,
                false => Ok(()),
            };
            match begun {
                Ok(()) => {
                    *self.obstacle() = None;
                    return Ok(producer);
                }
                Err(error) if is_forbidden(&producer, &error) => {
                    let said =
                        ClientError::forbidden_id(&self.settings.kafka, &self.settings.transactional_id).to_string();
                    if self.obstacle().replace(said.clone()).is_none() {
                        tracing::error!("no result can be written until it has it: {said}");
                    }
                    call.watch(|| drop(producer))?;
                    std::thread::sleep(ASK_AGAIN);
                }
                Err(error) => return Err(TransactionsError::Fatal(error).into()),
            }
        }
    }

    /// Whether the group is where a transaction of unknown end would have brought it. `init_transactions` has ended
    /// that transaction, so the answer is final.
    fn went_through(&self, attempt: &Attempt) -> Result<bool, ClientError> {
        if !self.exactly_once() {
            return Ok(false);
        }
        let Attempt { at, positions } = attempt;
        let kafka = &self.settings.kafka;
        let client = positions::observer(kafka, kafka::client_config(kafka));
        let observer: BaseConsumer<DefaultConsumerContext> =
            kafka::with_properties(client, kafka).create().map_err(ClientError::Config)?;
        loop {
            match positions::committed(&observer, at, positions.keys().copied()) {
                Ok(committed) => return Ok(positions::reached(&committed, positions)),
                Err(error) => {
                    tracing::debug!("the group's offsets are not known yet: {error}");
                    std::thread::sleep(positions::RETRY);
                }
            }
        }
    }
}

/// Whether the right to transactions of this id is missing.
fn is_forbidden(producer: &ResultProducer, error: &KafkaError) -> bool {
    let fatal = producer.client().fatal_error().map(|(code, _)| code);
    fatal.or(error.rdkafka_error_code()) == Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed)
}

/// Whether a topic is the one it was.
enum Identity {
    Same,
    Another,
}

/// Offsets are committed under a topic's name, so nothing else would tell its successor apart.
fn identity(producer: &ResultProducer, at: &Coordinates) -> KafkaResult<Identity> {
    let topic = kafka::topics(producer.client(), &[&at.topic], STEP)?.pop();
    match topic.unwrap_or(Err(RDKafkaErrorCode::UnknownTopic)) {
        Ok(topic) if topic.id == *at.id => Ok(Identity::Same),
        Ok(_) => Ok(Identity::Another),
        Err(code) => Err(KafkaError::MetadataFetch(code)),
    }
}

/// Why a transaction has no end here.
enum Interrupted {
    Lost(Lost),
    Ended(TransactionsError),
}

impl From<Lost> for Interrupted {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl<E: Into<TransactionsError>> From<E> for Interrupted {
    fn from(error: E) -> Self {
        Self::Ended(error.into())
    }
}

fn is_fence(code: Option<RDKafkaErrorCode>) -> bool {
    matches!(
        code,
        Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch)
    )
}

/// Waits until it is known of each record of an aborted transaction what became of it.
fn await_deliveries(producer: &ResultProducer) {
    let until = Instant::now() + STEP;
    while producer.in_flight_count() > 0 && Instant::now() < until {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Calls until it is done or fails for another reason than time.
fn persist(call: &Watchdog, mut attempt: impl FnMut() -> KafkaResult<()>) -> Result<KafkaResult<()>, Lost> {
    loop {
        match call.watch(&mut attempt)? {
            Err(error) if matches!(Remedy::of(&error), Remedy::Retry) => {
                tracing::debug!("once more: {error}");
                std::thread::sleep(RETRY);
            }
            result => return Ok(result),
        }
    }
}

/// What an error asks for.
enum Remedy {
    /// The same call again.
    Retry,
    /// Void the transaction and send its results again.
    Abort,
    /// This producer is done for.
    Fatal,
}

impl Remedy {
    fn of(error: &KafkaError) -> Self {
        match error {
            KafkaError::Transaction(error) if error.is_fatal() => Self::Fatal,
            KafkaError::Transaction(error) if error.txn_requires_abort() => Self::Abort,
            KafkaError::Transaction(error) if error.is_retriable() => Self::Retry,
            KafkaError::Transaction(_) => Self::Fatal,
            KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut) => Self::Retry,
            error => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::Fenced) => Self::Fatal,
                _ => Self::Abort,
            },
        }
    }
}

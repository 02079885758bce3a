//! Results on their way out: sent as they finish, committed together with the positions of their inputs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use rdkafka::{
    Message,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, OwnedHeaders},
    producer::{BaseRecord, Producer},
};

use super::{
    committer::Committer,
    offsets::Positions,
    transaction::{Closed, Closing, Job, Renewal, ResultProducer, Transactions, TransactionsError},
};
use crate::{
    config::{Config, Delivery},
    kafka::{self, ClientError},
};

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
    None,
    Bytes(Vec<u8>),
    /// The value of an input record, unchanged.
    Original(BorrowedMessage<'c>),
}

impl Value<'_> {
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::Original(message) => message.payload(),
        }
    }
}

/// Between transactions that are aborted one after the other.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The producer, and the transaction or batch it is in.
///
/// Commits and aborts run on a thread of their own: with brokers gone librdkafka's calls block for as long as a
/// transaction may last, and the loop must go on meanwhile. The producer goes to that thread and comes back.
pub struct Outbox {
    delivery: Delivery,
    state: State,
    /// Aborts since the last commit, and when the last one was.
    aborts: u32,
    aborted: Instant,
    last_commit: Instant,
    committer: Committer,
}

enum State {
    Idle(ResultProducer),
    /// Something was sent, or positions moved without results.
    Open {
        producer: ResultProducer,
        since: Instant,
        bytes: usize,
    },
    /// A commit or abort is under way.
    Closing {
        begun: Instant,
        since: Instant,
        /// Of a commit.
        positions: Option<Positions>,
    },
}

impl State {
    fn closing(begun: Instant) -> Self {
        Self::Closing { begun, since: begun, positions: None }
    }
}

impl Outbox {
    /// Connects. With exactly-once, what an earlier run of this instance left open is aborted here.
    ///
    /// # Errors
    /// No broker answers, or the configuration is refused.
    pub fn open(config: &Config, fingerprint: &str) -> Result<Self, TransactionsError> {
        let transactions = Transactions::new(config, fingerprint);
        let state = State::Idle(transactions.first_producer()?);
        let committer = Committer::start(Arc::new(transactions))?;
        let now = Instant::now();
        Ok(Self { delivery: config.runtime.delivery, state, aborts: 0, aborted: now, last_commit: now, committer })
    }

    /// The number of partitions of `topic`.
    pub fn partitions(&self, config: &Config, topic: &str) -> Result<usize, ClientError> {
        match &self.state {
            State::Idle(producer) | State::Open { producer, .. } => {
                kafka::partitions(producer.client(), &config.kafka, topic)
            }
            State::Closing { .. } => Ok(0),
        }
    }

    /// True where nothing is sent and uncommitted.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// Bytes sent since the last commit, where there is something to commit.
    pub fn pending(&self) -> Option<usize> {
        match self.state {
            State::Open { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    /// When the last commit was begun; at first, when this was opened.
    pub fn last_commit(&self) -> Instant {
        self.last_commit
    }

    /// Begins a transaction or batch where none is open. False where it cannot be: another is being closed, or several in
    /// a row were aborted and the next has to wait a little.
    pub fn begin(&mut self) -> bool {
        if self.is_idle() && self.aborted.elapsed() < self.patience() {
            return false;
        }
        match std::mem::replace(&mut self.state, State::closing(Instant::now())) {
            State::Idle(producer) => {
                let begin = || match self.delivery {
                    Delivery::ExactlyOnce => producer.begin_transaction(),
                    Delivery::AtLeastOnce => Ok(()),
                };
                if let Err(error) = begin() {
                    let renewal = Renewal { old: Some(producer), error, attempted: None };
                    self.committer.take(Job { begun: Instant::now(), how: Closing::Renew(renewal) });
                    return false;
                }
                producer.context().forget_failures();
                self.state = State::Open { producer, since: Instant::now(), bytes: 0 };
                true
            }
            state => {
                let open = matches!(state, State::Open { .. });
                self.state = state;
                open
            }
        }
    }

    /// Sends one record. False where it cannot be taken now: the producer's queue is full, or a commit is under way.
    pub fn send(&mut self, record: &OutRecord<'_>) -> bool {
        if !self.begin() {
            return false;
        }
        let State::Open { producer, bytes, .. } = &mut self.state else { return false };
        let value = record.value.bytes();
        let mut message: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&record.topic).headers(record.headers.clone());
        message.payload = value;
        message.key = record.key.as_deref();
        message.partition = record.partition;
        message.timestamp = record.timestamp_ms;
        match producer.send(message) {
            Ok(()) => *bytes += value.map_or(0, <[u8]>::len),
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => return false,
            // Refused here or failed in delivery: the same for the transaction, and the commit finds out.
            Err((error, _)) => producer.context().note_failure(&error),
        }
        true
    }

    /// Starts committing what was sent, together with the positions in the input. `group` is fresh: the broker refuses
    /// positions of a process that is no longer a member.
    pub fn commit(&mut self, positions: Positions, group: Option<ConsumerGroupMetadata>) {
        self.last_commit = Instant::now();
        let kept = Some(positions.clone());
        self.close(kept, |producer| Closing::Commit { producer, positions, group });
    }

    /// Starts voiding what was sent since the last commit.
    pub fn abort(&mut self, reason: &str) {
        self.close(None, |producer| Closing::Abort { producer, reason: reason.to_owned() });
    }

    fn close(&mut self, positions: Option<Positions>, how: impl FnOnce(ResultProducer) -> Closing) {
        match std::mem::replace(&mut self.state, State::closing(Instant::now())) {
            State::Open { producer, since, .. } => {
                self.state = State::Closing { begun: since, since: Instant::now(), positions };
                self.committer.take(Job { begun: since, how: how(producer) });
            }
            other => self.state = other,
        }
    }

    /// Answers of commits and aborts; each is to be given to [`closed`](Self::closed).
    pub fn answers(&self) -> &Receiver<Result<Closed, TransactionsError>> {
        self.committer.answers()
    }

    /// Goes on with a new producer where a commit or abort hangs.
    ///
    /// # Errors
    /// There are no more threads.
    pub fn watch(&mut self) -> Result<(), TransactionsError> {
        let State::Closing { begun, positions, .. } = &self.state else { return Ok(()) };
        if self.committer.replaced()? {
            let error = KafkaError::Global(RDKafkaErrorCode::OperationTimedOut);
            let renewal = Renewal { old: None, error, attempted: positions.clone() };
            self.committer.take(Job { begun: *begun, how: Closing::Renew(renewal) });
        }
        Ok(())
    }

    /// One abort is no reason to wait: most come from a rebalance that is over.
    fn patience(&self) -> Duration {
        match self.aborts {
            0 | 1 => Duration::ZERO,
            aborts => (FIRST_PAUSE * (1 << aborts.min(16))).min(LONGEST_PAUSE),
        }
    }

    /// Takes the producer back after a commit or abort; how long it took.
    pub fn closed(&mut self, producer: ResultProducer, aborted: bool) -> Duration {
        self.aborts = if aborted { self.aborts.saturating_add(1) } else { 0 };
        self.aborted = Instant::now();
        match std::mem::replace(&mut self.state, State::Idle(producer)) {
            State::Closing { since, .. } => since.elapsed(),
            State::Idle(_) | State::Open { .. } => Duration::ZERO,
        }
    }
}

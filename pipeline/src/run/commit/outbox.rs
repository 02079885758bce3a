//! Results on their way out: sent as they finish, committed together with the positions of their inputs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use rdkafka::{
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, Producer},
};

use super::{
    allowance::Allowance,
    committer::Committer,
    deliveries::ResultProducer,
    output::Output,
    transaction::{
        Attempt, Closed, Closing, End, Renewal, Settings, TRANSACTION_TIMEOUT, Task, Transactions, TransactionsError,
        Why,
    },
};
use crate::{
    config::{Delivery, Kafka},
    kafka::{self, ClientError, headers},
    run::partitions::ledger::Place,
};

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
    /// The output that the next transaction is for, and nothing else.
    reserved: Option<Sent>,
    /// The partition of the last transaction that was for one output.
    last_alone: i32,
    /// Aborts since the last commit, and when the last one was.
    aborts: u32,
    aborted: Instant,
    last_commit: Instant,
    allowance: Allowance,
    committer: Committer,
}

enum State {
    Idle(ResultProducer),
    Open(Open),
    /// A commit or abort is under way.
    Closing(Under),
}

/// A transaction or batch: something was sent, or positions moved without results.
struct Open {
    producer: ResultProducer,
    since: Instant,
    bytes: usize,
    sent: Vec<Sent>,
    /// It is for one output, and takes no other.
    alone: bool,
}

/// A commit or abort that is under way.
struct Under {
    begun: Instant,
    since: Instant,
    /// Of a commit.
    attempt: Option<Attempt>,
    sent: Vec<Sent>,
    bytes: usize,
}

impl Under {
    fn new(begun: Instant) -> Self {
        Self { begun, since: Instant::now(), attempt: None, sent: Vec::new(), bytes: 0 }
    }
}

/// An output that was sent: its partition, its assignment, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub partition: i32,
    pub epoch: u64,
    pub place: Place,
}

/// What became of an output that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    Taken,
    /// It cannot be now, but others may.
    NotNow,
    /// Nothing can be sent now.
    Full,
}

/// An output that was refused for good.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    pub sent: Sent,
    pub code: RDKafkaErrorCode,
    /// Nothing else was in the transaction, so that it was this output and no other.
    pub proven: bool,
}

/// How a transaction or batch ended.
pub struct Ended {
    pub end: End,
    pub took: Duration,
    pub refused: Vec<Refused>,
}

impl Outbox {
    /// Connects. With exactly-once, what an earlier run of this instance left open is aborted here.
    ///
    /// # Errors
    /// No broker answers, or the configuration is refused.
    pub fn open(settings: Settings) -> Result<Self, TransactionsError> {
        let delivery = settings.delivery;
        let allowance = Allowance::new(TRANSACTION_TIMEOUT + settings.commit_interval);
        let transactions = Transactions::new(settings);
        let state = State::Idle(transactions.first_producer(allowance.granted())?);
        let committer = Committer::start(Arc::new(transactions))?;
        let now = Instant::now();
        Ok(Self {
            delivery,
            state,
            reserved: None,
            last_alone: 0,
            aborts: 0,
            aborted: now,
            last_commit: now,
            allowance,
            committer,
        })
    }

    /// The number of partitions of `topic`.
    ///
    /// # Errors
    /// No broker answers, or there is no such topic.
    pub fn partitions(&self, kafka: &Kafka, topic: &str) -> Result<usize, ClientError> {
        match &self.state {
            State::Idle(producer) | State::Open(Open { producer, .. }) => {
                kafka::partitions(producer.client(), kafka, topic)
            }
            State::Closing(_) => Err(ClientError::NoTopic { topic: topic.to_owned(), brokers: kafka.brokers.clone() }),
        }
    }

    /// The partition of the last output that had a transaction for itself.
    pub fn last_alone(&self) -> i32 {
        self.last_alone
    }

    /// Whether no transaction is open.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// Bytes sent since the last commit, if there is something to commit.
    pub fn pending(&self) -> Option<usize> {
        match &self.state {
            State::Open(open) => Some(open.bytes),
            _ => None,
        }
    }

    /// Whether the transaction is to be committed at once: another output waits for one of its own, or this is one.
    pub fn is_due(&self) -> bool {
        matches!(&self.state, State::Open(open) if open.alone || self.reserved.is_some())
    }

    /// Since when the transaction that is open or closing has been under way; `None` if there is none.
    pub fn busy_since(&self) -> Option<Instant> {
        match &self.state {
            State::Idle(_) => None,
            State::Open(open) => Some(open.since),
            State::Closing(under) => Some(under.begun),
        }
    }

    /// When the last commit was begun; at first, when this was opened.
    pub fn last_commit(&self) -> Instant {
        self.last_commit
    }

    /// How long a transaction may take at the moment.
    pub fn granted(&self) -> Duration {
        self.allowance.granted()
    }

    /// What is waited for before the next transaction can be begun.
    pub fn obstacle(&self) -> Option<String> {
        self.committer.obstacle()
    }

    /// How many transactions in a row were aborted.
    pub fn aborts(&self) -> u32 {
        self.aborts
    }

    /// Begins a transaction or batch if none is open. Returns `false` if it cannot be: another is being closed, or
    /// several in a row were aborted and the next has to wait a little.
    pub fn begin(&mut self) -> bool {
        if self.is_idle() && self.aborted.elapsed() < self.patience() {
            return false;
        }
        match std::mem::replace(&mut self.state, State::Closing(Under::new(Instant::now()))) {
            State::Idle(producer) if self.allowance.shorten() => {
                self.renew(Some(producer), Why::Time, Instant::now(), None);
                false
            }
            State::Idle(producer) => {
                let begin = || match self.delivery {
                    Delivery::ExactlyOnce => producer.begin_transaction(),
                    Delivery::AtLeastOnce => Ok(()),
                };
                if let Err(error) = begin() {
                    self.renew(Some(producer), Why::Trouble(error), Instant::now(), None);
                    return false;
                }
                producer.context().take_refused();
                let sent = Vec::new();
                self.state = State::Open(Open { producer, since: Instant::now(), bytes: 0, sent, alone: false });
                true
            }
            state => {
                let open = matches!(state, State::Open(_));
                self.state = state;
                open
            }
        }
    }

    /// Sends an output.
    pub fn send(&mut self, output: &Output, place: Sent) -> Sending {
        match self.reserved {
            Some(reserved) if reserved != place => return Sending::NotNow,
            _ => {}
        }
        if output.alone {
            self.reserved = Some(place);
        }
        if !self.begin() {
            return Sending::Full;
        }
        let State::Open(open) = &mut self.state else { return Sending::Full };
        if open.alone || (output.alone && !open.sent.is_empty()) {
            return Sending::NotNow;
        }
        let record = &output.record;
        if !self.allowance.carries(open.bytes + record.bytes()) {
            self.reserved = Some(place);
            if open.sent.is_empty() {
                self.allowance.grant(record.bytes());
                self.lengthen();
            }
            return Sending::NotNow;
        }
        if self.reserved == Some(place) && !output.alone {
            self.reserved = None;
        }
        let mut message: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&record.topic, open.sent.len()).headers(headers::write(&record.headers));
        message.payload = record.value.as_deref();
        message.key = record.key.as_deref();
        message.partition = record.partition;
        message.timestamp = record.timestamp_ms;
        match open.producer.send(message) {
            Ok(()) => open.bytes += record.bytes(),
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => return Sending::Full,
            // Refused here or failed in delivery: the same for the transaction, and the commit finds out.
            Err((error, _)) => open.producer.context().note_failure(&error, open.sent.len()),
        }
        open.sent.push(place);
        if output.alone {
            open.alone = true;
            self.reserved = None;
            self.last_alone = place.partition;
        }
        Sending::Taken
    }

    /// The open transaction, in which nothing was sent, is for a producer with more time.
    fn lengthen(&mut self) {
        match std::mem::replace(&mut self.state, State::Closing(Under::new(Instant::now()))) {
            State::Open(Open { producer, since, .. }) => self.renew(Some(producer), Why::Time, since, None),
            other => self.state = other,
        }
    }

    fn renew(&self, old: Option<ResultProducer>, why: Why, begun: Instant, attempted: Option<Attempt>) {
        self.close_with(begun, Closing::Renew(Renewal { old, why, attempted }));
    }

    fn close_with(&self, begun: Instant, how: Closing) {
        self.committer.take(Task { begun, timeout: self.allowance.granted(), how });
    }

    /// The output that the next transaction was to be for is gone.
    pub fn unreserve(&mut self, partition: i32) {
        if self.reserved.is_some_and(|reserved| reserved.partition == partition) {
            self.reserved = None;
        }
    }

    /// Starts committing what was sent, together with the positions in the input. `group` is fresh: the broker refuses
    /// positions of a process that is no longer a member.
    pub fn commit(&mut self, attempt: Attempt, group: Option<ConsumerGroupMetadata>) {
        self.last_commit = Instant::now();
        let kept = Some(attempt.clone());
        self.close(kept, |producer| Closing::Commit { producer, attempt, group });
    }

    /// Starts voiding what was sent since the last commit.
    pub fn abort(&mut self, reason: &str) {
        self.close(None, |producer| Closing::Abort { producer, reason: reason.to_owned() });
    }

    fn close(&mut self, attempt: Option<Attempt>, how: impl FnOnce(ResultProducer) -> Closing) {
        match std::mem::replace(&mut self.state, State::Closing(Under::new(Instant::now()))) {
            State::Open(Open { producer, since: begun, sent, bytes, .. }) => {
                self.state = State::Closing(Under { begun, since: Instant::now(), attempt, sent, bytes });
                self.close_with(begun, how(producer));
            }
            other => self.state = other,
        }
    }

    /// Answers of commits and aborts; each is to be given to [`closed`](Self::closed).
    pub fn answers(&self) -> &Receiver<Result<Closed, TransactionsError>> {
        self.committer.answers()
    }

    /// Goes on with a new producer if a commit or abort hangs.
    ///
    /// # Errors
    /// There are no more threads.
    pub fn watch(&mut self) -> Result<(), TransactionsError> {
        let State::Closing(under) = &self.state else { return Ok(()) };
        if self.committer.replaced()? {
            let why = Why::Trouble(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut));
            self.renew(None, why, under.begun, under.attempt.clone());
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

    /// Takes the producer back after a commit or abort.
    pub fn closed(&mut self, closed: Closed) -> Ended {
        let Closed { producer, end, refused } = closed;
        let under = match std::mem::replace(&mut self.state, State::Idle(producer)) {
            State::Closing(under) => under,
            State::Idle(_) | State::Open(_) => Under::new(Instant::now()),
        };
        let proven = under.sent.len() == 1;
        let refuse = |sent: Sent, code| Refused { sent, code, proven };
        let refused: Vec<Refused> = match &end {
            End::Committed(_) | End::NotBegun | End::Replaced => Vec::new(),
            // A topic that may not be written fails the transaction before it takes a record.
            End::Aborted { code: Some(code @ RDKafkaErrorCode::TopicAuthorizationFailed), .. }
                if refused.is_empty() =>
            {
                under.sent.iter().map(|&sent| refuse(sent, *code)).collect()
            }
            End::Aborted { .. } => {
                refused.iter().filter_map(|&(number, code)| Some(refuse(*under.sent.get(number)?, code))).collect()
            }
        };
        // What was void is sent again in its order, before whatever waits for a transaction of its own.
        if matches!(end, End::Aborted { .. } | End::Replaced) {
            self.reserved = None;
            if under.begun.elapsed() >= self.allowance.granted() {
                self.allowance.expired(under.bytes);
            }
        }
        // A refusal is answered by another result: that is no reason to wait.
        let trouble = matches!(end, End::Aborted { .. }) && refused.is_empty();
        self.aborts = if trouble { self.aborts.saturating_add(1) } else { 0 };
        self.aborted = Instant::now();
        Ended { end, took: under.since.elapsed(), refused }
    }
}

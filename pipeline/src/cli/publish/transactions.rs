//! Publishing with a journal: in transactions, each of which is in the journal before it is committed.
//!
//! All runs with a journal have the same transactional id. Whoever begins fences the last run, and the brokers end its
//! open transaction: nothing of it can arrive any more, however long it was on its way.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rdkafka::{
    admin::AdminClient,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::Producer,
};

use super::{
    courier::{self, Answer, Courier, Refusal},
    journal::{Journal, Sent},
    outcome::{self, Outcome},
    parcels::Parcel,
    tally::Tally,
};
use crate::{
    cli::{CommandError, CommandResult},
    config::Config,
    kafka::{self, Access, ClientError, FIRST_ANSWER, Logged},
};

/// A transaction takes no more records after this long, or if another would make it larger. One alone may be larger.
const FILLED: Duration = Duration::from_secs(1);
const FULL_BYTES: u64 = 16 << 20;
/// The slowest link that a transaction has time for, and the time on top.
const LEAST_BYTES_PER_S: u64 = 256 << 10;
const MARGIN: Duration = Duration::from_secs(30);
/// Kafka's `transaction.max.timeout.ms` by default.
const LONGEST: Duration = Duration::from_secs(900);
/// How long brokers may take to make their topic of transactions, and to end the transaction of the last run.
const BEGINNING: Duration = Duration::from_secs(20);
/// How long an abort may take, and after Ctrl-C the commit of what has been sent.
const LAST_COMMIT: Duration = Duration::from_secs(10);
/// How long one call may take before it is made again.
const STEP: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// After how long it is said what is waited for.
const SAY: Duration = Duration::from_secs(5);

pub struct Transactions<'a> {
    config: &'a Config,
    courier: Courier,
    journal: Journal,
    transactional_id: String,
    timeout: Duration,
    stop: &'a AtomicBool,
}

/// How a transaction has ended.
enum End {
    Committed,
    /// No reader sees anything of it. The error is why the run cannot go on.
    Void(Option<KafkaError>),
    /// Its commit has no answer.
    Unknown(KafkaError),
}

impl<'a> Transactions<'a> {
    /// Ends what other runs with this journal have begun.
    ///
    /// # Errors
    /// The journal is not about this topic, or the brokers begin no transactions.
    pub fn begin(
        config: &'a Config,
        admin: &AdminClient<Logged>,
        mut journal: Journal,
        largest: u64,
        stop: &'a AtomicBool,
    ) -> Result<Self, CommandError> {
        let (kafka, topic) = (&config.kafka, &config.topics.audio);
        let found = kafka::topics(admin.inner(), &[topic], FIRST_ANSWER)
            .map_err(|source| ClientError::Unreachable { brokers: kafka.brokers.clone(), source })?
            .pop();
        let found = found.unwrap_or(Err(RDKafkaErrorCode::UnknownTopic));
        let found = found.map_err(|code| ClientError::of_topic(kafka, topic, "WRITE", code))?;
        let producer = journal.begin(topic, &found.id).map_err(CommandError::failed)?;

        let (transactional_id, timeout) = (format!("tonearm-publish-{producer}"), timeout(largest));
        let mut client = courier::client(config, largest);
        client
            .set("transactional.id", &transactional_id)
            .set("transaction.timeout.ms", timeout.as_millis().to_string())
            // librdkafka's default; with transactions it takes their timeout instead, which may be many minutes.
            .set("socket.timeout.ms", "60000");
        let transactions =
            Self { config, courier: Courier::new(client, config)?, journal, transactional_id, timeout, stop };
        transactions.fence()?;
        Ok(transactions)
    }

    fn fence(&self) -> CommandResult {
        let begun = Instant::now();
        while let Err(error) = self.courier.producer.init_transactions(STEP) {
            if self.is_stopped() {
                break;
            }
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidTransactionTimeout) {
                return Err(CommandError::NeedsAPerson(format!(
                    "the brokers at {} allow no transaction of {} s, which the largest file needs over a slow link; an \
                     administrator raises their transaction.max.timeout.ms",
                    self.config.kafka.brokers,
                    self.timeout.as_secs()
                )));
            }
            if !is_retriable(&error) || begun.elapsed() > BEGINNING {
                return Err(kafka::why_no_transactions(&self.config.kafka, &self.transactional_id, error).into());
            }
        }
        Ok(())
    }

    /// Finds out how the last transaction of the last run ended, and leaves out the files that have been published.
    ///
    /// # Errors
    /// The topic cannot be read, or the journal not be written.
    pub fn settle(&mut self, parcels: &mut Vec<Parcel>, tally: &mut Tally) -> CommandResult {
        if let Some(sent) = self.journal.unsettled() {
            let (files, topic) = (sent.files.len(), &self.config.topics.audio);
            match self.outcome(sent, tally)? {
                Some(Outcome::Committed) => self.journal.committed().map_err(CommandError::failed)?,
                Some(Outcome::Void) => {}
                Some(Outcome::Forgotten) => tally.say(format_args!(
                    "whether {topic} got the last {files} files of the last run is not known: it keeps records of that \
                     time no longer; they are published now"
                )),
                None => {
                    let is_sent =
                        |parcel: &&Parcel| parcel.published.as_ref().is_some_and(|it| sent.files.contains(it));
                    tally.unanswered = parcels.iter().filter(is_sent).count();
                }
            }
        }
        let found = parcels.len();
        parcels.retain(|parcel| !parcel.published.as_ref().is_some_and(|published| self.journal.has(published)));
        tally.before += found - parcels.len();
        Ok(())
    }

    /// How a transaction of the last run ended; `None` if the user wants to stop before it can be told.
    fn outcome(&self, sent: &Sent, tally: &Tally) -> Result<Option<Outcome>, CommandError> {
        let (kafka, topic) = (&self.config.kafka, &self.config.topics.audio);
        if self.is_stopped() {
            return Ok(None);
        }
        kafka::reach_topics(kafka, Access::Read, &[topic])?;
        let (begun, mut is_said) = (Instant::now(), false);
        let wait = || {
            if begun.elapsed() > SAY && !std::mem::replace(&mut is_said, true) {
                tally.say(format_args!(
                    "waiting for the end of another producer's transaction in {topic}, partition {}: what the last run \
                     published lies behind it",
                    sent.partition
                ));
            }
            std::thread::sleep(LOOK_AGAIN);
            !self.is_stopped()
        };
        let client = kafka::with_properties(kafka::client_config(kafka), kafka);
        let outcome = outcome::of(client, topic, (sent.partition, sent.offset), wait);
        outcome
            .map_err(|e| CommandError::Failed(format!("what the last run published cannot be read from {topic}: {e}")))
    }

    /// Publishes until all is done, or the user wants to stop.
    ///
    /// # Errors
    /// The run cannot go on.
    pub fn publish(&mut self, parcels: Vec<Parcel>, tally: &mut Tally) -> CommandResult {
        tally.expect(&parcels);
        let mut waiting = VecDeque::from(parcels);
        while !waiting.is_empty() && !self.is_stopped() {
            self.publish_some(&mut waiting, tally)?;
        }
        Ok(())
    }

    /// One transaction. What is void goes back to what is waiting, but for the files that the broker refuses.
    fn publish_some(&mut self, waiting: &mut VecDeque<Parcel>, tally: &mut Tally) -> CommandResult {
        let begun = Instant::now();
        let mut patience = Patience { until: begun + self.timeout + FIRST_ANSWER, stop: self.stop, is_stopped: false };
        self.courier.producer.begin_transaction().map_err(|error| self.why(&error, begun))?;
        let mut answers = Vec::new();
        let end = match self.fill(waiting, &mut answers, tally, begun) {
            Ok(()) if self.arrive(&mut answers, &mut patience) => self.commit(&mut answers, &mut patience)?,
            Ok(()) => self.abort(&mut answers, None),
            Err(error) => self.abort(&mut answers, Some(error)),
        };
        match end {
            End::Committed => {
                answers.iter().for_each(|answer| tally.publish(answer.parcel.bytes));
                self.journal.committed().map_err(CommandError::failed)
            }
            End::Void(error) => {
                let (refused, void): (Vec<_>, Vec<_>) = answers.into_iter().partition(Answer::is_refusal);
                void.into_iter().rev().for_each(|answer| waiting.push_front(answer.parcel));
                refused.into_iter().for_each(|answer| answer.tell(tally));
                error.map_or(Ok(()), |error| Err(self.why(&error, begun)))
            }
            End::Unknown(error) => {
                tally.unanswered = answers.len();
                Err(self.why(&error, begun))
            }
        }
    }

    /// Hands records to the producer until the transaction is full, one is refused, or the user wants to stop.
    fn fill(
        &mut self,
        waiting: &mut VecDeque<Parcel>,
        answers: &mut Vec<Answer>,
        tally: &mut Tally,
        begun: Instant,
    ) -> KafkaResult<()> {
        let mut bytes = 0;
        while let Some(parcel) = waiting.pop_front() {
            let is_full = bytes > 0 && (bytes + parcel.bytes > FULL_BYTES || begun.elapsed() > FILLED);
            if is_full || self.is_stopped() || answers.last().is_some_and(|answer| answer.result.is_err()) {
                waiting.push_front(parcel);
                break;
            }
            tally.show(&parcel.path);
            bytes += parcel.bytes;
            match self.courier.hand_over(parcel, self.stop) {
                Ok(()) => {}
                Err((parcel, Refusal::File(reason))) => tally.fail(&parcel.path, reason),
                Err((parcel, Refusal::Stopped)) => waiting.push_front(*parcel),
                Err((parcel, Refusal::Producer(error))) => {
                    waiting.push_front(*parcel);
                    return Err(error);
                }
            }
            answers.extend(self.courier.answer(Duration::ZERO));
        }
        Ok(())
    }

    /// Waits until the broker has all records. Returns whether it has.
    fn arrive(&mut self, answers: &mut Vec<Answer>, patience: &mut Patience<'_>) -> bool {
        // Behind a failure librdkafka sends nothing.
        let mut is_whole = answers.iter().all(|answer| answer.result.is_ok());
        while is_whole && self.courier.unanswered() > 0 && !patience.is_over() {
            if let Some(answer) = self.courier.answer(LOOK_AGAIN) {
                is_whole = answer.result.is_ok();
                answers.push(answer);
            }
        }
        is_whole && self.courier.unanswered() == 0
    }

    /// # Errors
    /// The journal cannot be written: nothing is committed.
    fn commit(&mut self, answers: &mut Vec<Answer>, patience: &mut Patience<'_>) -> Result<End, CommandError> {
        let place = |answer: &Answer| answer.result.as_ref().ok().copied().filter(|(_, offset)| *offset >= 0);
        // There is nothing to commit if no file can be read. A broker that says no offset is asked to take all again.
        let Some((partition, offset)) = answers.iter().rev().find_map(place) else {
            return Ok(self.abort(answers, None));
        };
        let files = answers.iter().filter_map(|answer| answer.parcel.published.clone()).collect();
        if let Err(error) = self.journal.sent(Sent { files, partition, offset }) {
            self.abort(answers, None);
            return Err(CommandError::failed(error));
        }
        loop {
            match self.courier.producer.commit_transaction(STEP) {
                Ok(()) => return Ok(End::Committed),
                Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                    return Ok(self.abort(answers, Some(KafkaError::Transaction(error))));
                }
                Err(error) if !is_retriable(&error) || patience.is_over() => return Ok(End::Unknown(error)),
                Err(error) => tracing::debug!("once more: {error}"),
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// `error`: why, if it is not because of a record.
    fn abort(&mut self, answers: &mut Vec<Answer>, error: Option<KafkaError>) -> End {
        let until = Instant::now() + LAST_COMMIT;
        let mut aborted = self.courier.producer.abort_transaction(STEP);
        while aborted.as_ref().is_err_and(is_retriable) && Instant::now() < until {
            std::thread::sleep(LOOK_AGAIN);
            aborted = self.courier.producer.abort_transaction(STEP);
        }
        // Until each record has been told of.
        while self.courier.unanswered() > 0 && Instant::now() < until {
            answers.extend(self.courier.answer(LOOK_AGAIN));
        }
        let failures = || answers.iter().filter(|answer| !answer.is_refusal()).filter_map(Answer::failure);
        End::Void(match aborted {
            Err(error) => Some(error),
            Ok(()) if answers.iter().any(Answer::is_refusal) => None,
            Ok(()) => failures().next().cloned().or(error),
        })
    }

    /// Why the run cannot go on after `error` of a transaction that was begun at `begun`.
    fn why(&self, error: &KafkaError, begun: Instant) -> CommandError {
        use RDKafkaErrorCode::{
            Fenced, InvalidProducerEpoch, MessageTimedOut, ProducerFenced, TopicAuthorizationFailed,
            TransactionalIdAuthorizationFailed, UnknownTopic, UnknownTopicOrPartition,
        };
        let (kafka, timeout) = (&self.config.kafka, self.timeout.as_secs());
        let fatal = self.courier.producer.client().fatal_error();
        match fatal.map(|(code, _)| code).or(error.rdkafka_error_code()) {
            // Brokers fence the producer of an expired transaction with the same errors.
            Some(Fenced | ProducerFenced | InvalidProducerEpoch) if begun.elapsed() < self.timeout => {
                CommandError::NeedsAPerson(
                    "another `tonearm publish` with a copy of this journal (--resume) took over; go on with that copy"
                        .to_owned(),
                )
            }
            Some(Fenced | ProducerFenced | InvalidProducerEpoch) => CommandError::Failed(format!(
                "the brokers have ended a transaction that lasted longer than {timeout} s, or another `tonearm publish` with \
                 a copy of this journal (--resume) took over"
            )),
            Some(TransactionalIdAuthorizationFailed) => {
                kafka::why_no_transactions(kafka, &self.transactional_id, error.clone()).into()
            }
            Some(code @ (TopicAuthorizationFailed | UnknownTopic | UnknownTopicOrPartition)) => {
                ClientError::of_topic(kafka, &self.config.topics.audio, "WRITE", code).into()
            }
            Some(MessageTimedOut) => {
                CommandError::Failed(format!("the brokers have not taken what was sent within {timeout} s"))
            }
            _ => CommandError::Failed(format!("a transaction cannot be committed: {error}")),
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Until when a transaction is waited for: not for long once the user wants to stop.
struct Patience<'a> {
    until: Instant,
    stop: &'a AtomicBool,
    is_stopped: bool,
}

impl Patience<'_> {
    fn is_over(&mut self) -> bool {
        if !self.is_stopped && self.stop.load(Ordering::Relaxed) {
            self.is_stopped = true;
            self.until = self.until.min(Instant::now() + LAST_COMMIT);
        }
        Instant::now() > self.until
    }
}

/// How long a transaction may take: what it carries, over a slow link.
fn timeout(largest: u64) -> Duration {
    LONGEST.min(MARGIN + Duration::from_secs(largest.max(FULL_BYTES) / LEAST_BYTES_PER_S))
}

/// Whether the same call may be made again.
fn is_retriable(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_retriable(),
        error => error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_has_time_for_what_it_carries_and_no_longer_than_brokers_allow() {
        assert_eq!(timeout(0), Duration::from_secs(30 + 64));
        assert_eq!(timeout(64 << 20), Duration::from_secs(30 + 256));
        assert_eq!(timeout(u64::MAX), LONGEST);
    }
}

//! Partitions come and go: what the group has decided is carried out here, in the loop's thread, once the shards are
//! ready for it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender};
use rdkafka::{Offset, TopicPartitionList};

use super::{
    input::Input,
    ledger::{Position, Tally},
    shard::{Phase, Shard, Stop},
    whereabouts::{Answer, Question, Start, UNASKED},
};
use crate::telemetry::metrics;

/// The shards of this process, and the changes that are not carried out yet.
pub struct Partitions {
    /// By partition.
    pub shards: BTreeMap<i32, Shard>,
    /// Bytes in all ledgers.
    pub tally: Tally,
    /// Partitions that are ours once it is known where the group is, by the number of the question.
    assigned: VecDeque<(u64, TopicPartitionList)>,
    /// Partitions that go back to the group once their shards are done.
    revoked: Vec<TopicPartitionList>,
    /// Partitions that are to be read from elsewhere.
    moved: BTreeMap<i32, Position>,
    questions: Sender<Question>,
    answers: Receiver<Answer>,
    /// Assignments and questions so far.
    count: u64,
}

/// A partition for which librdkafka has no queue.
#[derive(Debug)]
pub struct NoQueue(pub i32);

/// A partition in which the group has no position, and that a person is to say about where it begins.
#[derive(Debug)]
pub struct NoPosition(pub i32);

impl Partitions {
    pub fn new(questions: Sender<Question>, answers: Receiver<Answer>) -> Self {
        Self {
            shards: BTreeMap::new(),
            tally: Tally::default(),
            assigned: VecDeque::new(),
            revoked: Vec::new(),
            moved: BTreeMap::new(),
            questions,
            answers,
            count: 0,
        }
    }

    /// Bytes of shards whose results are held by a topic: how long, nobody knows.
    pub fn held_bytes(&self) -> usize {
        let held = self.shards.values().filter(|shard| matches!(shard.stop, Some(Stop::Held { .. })));
        held.map(|shard| shard.ledger.bytes()).sum()
    }

    /// Answers for [`start`](Self::start).
    pub fn answers(&self) -> &Receiver<Answer> {
        &self.answers
    }

    /// Whether the group has ever given this process partitions.
    pub fn were_assigned(&self) -> bool {
        self.count > 0
    }

    /// New partitions. It is asked where the group is, unless the process is `stopping`: nothing is read before that is
    /// known.
    ///
    /// # Errors
    /// One has no queue.
    pub fn assign(&mut self, input: &mut Input, partitions: TopicPartitionList, stopping: bool) -> Result<(), NoQueue> {
        let numbers = numbers(&partitions);
        if numbers.is_empty() {
            // The group only wants to hear that this is settled.
            self.take_up(input, &partitions);
            return Ok(());
        }
        for &partition in &numbers {
            self.count += 1;
            if !input.open(partition) {
                return Err(NoQueue(partition));
            }
            self.shards.insert(partition, Shard::new(self.count, partition, &self.tally));
            self.moved.remove(&partition);
        }
        metrics::rebalanced("assigned", &numbers, self.shards.len());
        if stopping {
            self.drain(&numbers, Instant::now());
            self.take_up(input, &partitions);
        } else {
            let question = self.ask(numbers);
            self.assigned.push_back((question, partitions));
        }
        Ok(())
    }

    /// Asks where to read partitions from; they are not read before the answer.
    fn ask(&mut self, partitions: Vec<i32>) -> u64 {
        self.count += 1;
        for partition in &partitions {
            if let Some(shard) = self.shards.get_mut(partition).filter(|shard| !shard.is_draining()) {
                shard.phase = Phase::Asking { question: self.count };
            }
        }
        // Whoever answers ends after the loop.
        let _ = self.questions.send(Question { id: self.count, partitions });
        self.count
    }

    /// Asks anew where to read a partition from, whose records are not where they were.
    pub fn ask_again(&mut self, partition: i32) {
        if self.shards.get(&partition).is_some_and(|shard| matches!(shard.phase, Phase::Consuming { .. })) {
            self.ask(vec![partition]);
        }
    }

    /// The topic is another of the same name: what is held of the old one is void, and the new one is read from where
    /// the group is in it.
    pub fn start_over(&mut self) {
        let now = Instant::now();
        let mut again = Vec::new();
        for (&partition, shard) in &mut self.shards {
            shard.lease.revoke();
            self.count += 1;
            let fresh = Shard::new(self.count, partition, &self.tally);
            let old = std::mem::replace(shard, fresh);
            match old.phase {
                Phase::Draining { .. } => shard.drain(now),
                // An answer that is on the way may be one of the old topic.
                Phase::Consuming { .. } | Phase::Asking { .. } | Phase::Missing => again.push(partition),
            }
        }
        self.moved.clear();
        if !again.is_empty() {
            self.ask(again);
        }
    }

    /// Takes partitions up from where the group is.
    ///
    /// # Errors
    /// The group has no position in one, and a person is to say where it begins.
    pub fn start(&mut self, input: &mut Input, answer: Answer) -> Result<(), NoPosition> {
        let at = self.assigned.iter().position(|(id, _)| *id == answer.id);
        let assigned = at.and_then(|at| self.assigned.remove(at));
        // The group wants to hear of all that it assigned, of those as well that have no start.
        let from = assigned.as_ref().map(|(_, partitions)| partitions.clone()).unwrap_or_default();
        self.note_missing(&answer);
        for Start { partition, from: position, first, end, deleted } in answer.starts {
            let Some(shard) = self.shards.get_mut(&partition) else { continue };
            // Partitions that were lost or given back meanwhile are not asked for any more.
            let asked = shard.phase == Phase::Asking { question: answer.id };
            if !asked && assigned.is_none() {
                continue;
            }
            // Records that are worked on already are not read again, wherever the group is.
            let held = shard.ledger.last_accepted().map(|last| last + 1);
            let (position, deleted) = match (held, position) {
                (Some(next), _) => {
                    let offset = next.min(end).max(first);
                    (Position { offset, outputs: 0 }, next..next.max(first))
                }
                (None, Some(position)) => (position, deleted),
                (None, None) => return Err(NoPosition(partition)),
            };
            if let Some(mut element) = from.find_partition(input.topic(), partition)
                && let Err(error) = element.set_offset(Offset::Offset(position.offset))
            {
                tracing::error!("partition {partition}: {error}");
            }
            tracing::debug!(partition, ?position, "taken up");
            if !deleted.is_empty() {
                metrics::skipped(input.topic(), partition, &deleted);
            }
            match assigned {
                _ if !asked => {}
                Some(_) => shard.phase = Phase::Consuming { from: position },
                None => _ = self.moved.insert(partition, position),
            }
            if held.is_none() {
                shard.gauges.committed(position.offset, end);
            }
        }
        if assigned.is_some() {
            self.take_up(input, &from);
        }
        self.move_on(input);
        Ok(())
    }

    /// Partitions that were asked for and that the topic does not have. They are asked for again with the next answer
    /// to no question.
    fn note_missing(&mut self, answer: &Answer) {
        let started = |partition| answer.starts.iter().any(|start| start.partition == partition);
        let mut again = Vec::new();
        for (&partition, shard) in &mut self.shards {
            match shard.phase {
                Phase::Asking { question } if question == answer.id && !started(partition) => {
                    shard.phase = Phase::Missing;
                }
                Phase::Missing if answer.id == UNASKED => again.push(partition),
                _ => {}
            }
        }
        if !again.is_empty() {
            self.ask(again);
        }
    }

    /// Reads partitions from elsewhere that are to be. Not while the group waits for an answer to a rebalance: it would
    /// take this for one.
    fn move_on(&mut self, input: &mut Input) {
        if self.moved.is_empty() || !self.assigned.is_empty() || !self.revoked.is_empty() {
            return;
        }
        let mut from = TopicPartitionList::new();
        for (partition, position) in std::mem::take(&mut self.moved) {
            let Some(shard) = self.shards.get_mut(&partition).filter(|shard| !shard.is_draining()) else { continue };
            shard.phase = Phase::Consuming { from: position };
            if let Err(error) = from.add_partition_offset(input.topic(), partition, Offset::Offset(position.offset)) {
                tracing::error!("partition {partition}: {error}");
            }
        }
        if from.count() > 0
            && let Err(error) = input.read_from(&from)
        {
            tracing::error!("partitions cannot be read from elsewhere: {error}");
        }
    }

    fn take_up(&self, input: &mut Input, partitions: &TopicPartitionList) {
        if let Err(error) = input.take_up(partitions) {
            tracing::error!("partitions cannot be taken up: {error}");
        }
    }

    /// Partitions that go back to the group once what was begun is done, at `deadline` at the latest.
    pub fn revoke(&mut self, partitions: TopicPartitionList, deadline: Instant) {
        let numbers = numbers(&partitions);
        metrics::rebalanced("revoked", &numbers, self.shards.len().saturating_sub(numbers.len()));
        self.drain(&numbers, deadline);
        self.revoked.push(partitions);
    }

    /// Partitions that another process already owns: what is held of them is void.
    pub fn lose(&mut self, input: &mut Input, partitions: &TopicPartitionList) {
        let numbers = numbers(partitions);
        metrics::rebalanced("lost", &numbers, self.shards.len().saturating_sub(numbers.len()));
        self.forget(&numbers);
        self.give_back(input, partitions);
        // Those that were not taken up yet never will be.
        let lost = |list: &TopicPartitionList| {
            numbers.iter().any(|number| list.find_partition(input.topic(), *number).is_some())
        };
        self.assigned.retain(|(_, assigned)| !lost(assigned));
    }

    /// Begins no more records of these partitions.
    pub fn drain(&mut self, partitions: &[i32], deadline: Instant) {
        for partition in partitions {
            if let Some(shard) = self.shards.get_mut(partition) {
                shard.drain(deadline);
                shard.tracks.leave();
            }
        }
    }

    /// The process ends: nothing is begun any more. The group waits for those that were to be taken up before it takes
    /// them back.
    pub fn stop(&mut self, input: &mut Input, deadline: Instant) {
        let all: Vec<i32> = self.shards.keys().copied().collect();
        self.drain(&all, deadline);
        for (_, partitions) in std::mem::take(&mut self.assigned) {
            self.take_up(input, &partitions);
        }
    }

    /// Cancels all tracks of these shards, and drops what is held of them.
    fn forget(&mut self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(shard) = self.shards.remove(partition) {
                shard.lease.revoke();
            }
        }
    }

    fn give_back(&self, input: &mut Input, partitions: &TopicPartitionList) {
        if let Err(error) = input.give_back(partitions) {
            tracing::error!("partitions cannot be given back: {error}");
        }
    }

    /// Gives revoked partitions back whose shards are done; returns them.
    pub fn finish_drains(&mut self, input: &mut Input) -> Vec<i32> {
        let now = Instant::now();
        self.shards.values().filter(|shard| shard.is_late(now)).for_each(|shard| shard.lease.revoke());
        let mut given_back = Vec::new();
        for partitions in std::mem::take(&mut self.revoked) {
            let numbers = numbers(&partitions);
            if numbers.iter().filter_map(|number| self.shards.get(number)).all(|shard| shard.is_done(now)) {
                self.forget(&numbers);
                self.give_back(input, &partitions);
                given_back.extend(numbers);
            } else {
                self.revoked.push(partitions);
            }
        }
        self.move_on(input);
        given_back
    }

    /// The end: all tracks are cancelled. Changes that are still to be carried out are, or the consumer would wait for
    /// them for ever when it closes.
    pub fn leave(&mut self, input: &mut Input) {
        let records: usize = self.shards.values().map(|shard| shard.ledger.len()).sum();
        if records > 0 {
            tracing::info!(records, "records are left to the partitions' next owner");
        }
        self.shards.values().for_each(|shard| shard.lease.revoke());
        for (_, partitions) in std::mem::take(&mut self.assigned) {
            self.take_up(input, &partitions);
        }
        for partitions in std::mem::take(&mut self.revoked) {
            self.give_back(input, &partitions);
        }
    }
}

/// The numbers of partitions in a list.
pub fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(|element| element.partition()).collect()
}

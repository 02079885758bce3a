//! Where partitions are to be taken up: asked of the brokers on a thread of its own, as each question may take its
//! time.

use std::{ops::Range, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::Consumer,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::{
    ledger::Position,
    membership::GroupConsumer,
    positions::{self, Committed, Coordinates, RETRY, STEP},
    recover::Results,
};
use crate::{config::MissingOffsets, kafka};

/// Topics are looked at this often, asked or not: one that was made again, or that has more partitions, may give no
/// other sign.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The number of an answer to no question.
pub const UNASKED: u64 = 0;

/// Partitions that were assigned together, or that are to be taken up anew.
pub struct Question {
    /// For the answer.
    pub id: u64,
    pub partitions: Vec<i32>,
}

/// Where they are to be taken up.
pub struct Answer {
    pub id: u64,
    /// The topic that is there now.
    pub topic_id: Arc<str>,
    /// `None` if one of the topics is not there now.
    pub counts: Option<Counts>,
    /// Without those partitions that the topic does not have.
    pub starts: Vec<Start>,
}

/// How many partitions topics have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub inputs: usize,
    pub outputs: usize,
    pub rejected: usize,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub partition: i32,
    /// `None` if the group has no position, and a person is to say where to begin.
    pub from: Option<Position>,
    /// The offset of the first record that is there.
    pub first: i64,
    /// Offset behind the last record that is there.
    pub end: i64,
    /// Offsets that the group had before it, and that the topic deleted before they were read.
    pub deleted: Range<i64>,
}

/// Who answers.
pub struct Whereabouts {
    pub consumer: Arc<GroupConsumer>,
    pub at: Coordinates,
    /// Topics of predictions or blocks, and of rejects.
    pub topics: [String; 2],
    pub missing: MissingOffsets,
    pub results: Results,
}

impl Whereabouts {
    /// Answers questions, each as soon as the brokers do, until nobody asks any more. Where nothing is asked for a
    /// while it says what topics are there.
    pub fn answer(mut self, questions: &Receiver<Question>, answers: &Sender<Answer>) {
        loop {
            let Question { id, partitions } = match questions.recv_timeout(LOOK_AGAIN) {
                Ok(question) => question,
                Err(RecvTimeoutError::Timeout) => Question { id: UNASKED, partitions: Vec::new() },
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let answer = loop {
                match self.find(id, &partitions) {
                    Ok(answer) => break Some(answer),
                    Err(error) => tracing::debug!("it is not known yet where the group is: {error}"),
                }
                if id == UNASKED {
                    break None;
                }
                if self.consumer.context().is_closing() {
                    return;
                }
                std::thread::sleep(RETRY);
            };
            if answer.is_some_and(|answer| answers.send(answer).is_err()) {
                return;
            }
        }
    }

    fn find(&mut self, id: u64, partitions: &[i32]) -> KafkaResult<Answer> {
        let [output, rejected] = &self.topics;
        let names = [self.at.topic.as_str(), output, rejected];
        let found = kafka::topics(self.consumer.client(), &names, STEP)?;
        let counts = match &found[..] {
            [Ok(input), Ok(output), Ok(rejected)] => Some(Counts {
                inputs: input.partitions.len(),
                outputs: output.partitions.len(),
                rejected: rejected.partitions.len(),
            }),
            _ => None,
        };
        let input = found.first().cloned().unwrap_or(Err(RDKafkaErrorCode::UnknownTopic));
        let input = input.map_err(KafkaError::MetadataFetch)?;
        self.at.id = input.id.into();
        let there = |partition: &i32| usize::try_from(*partition).is_ok_and(|number| number < input.partitions.len());
        let partitions: Vec<i32> = partitions.iter().copied().filter(there).collect();

        if partitions.is_empty() {
            return Ok(Answer { id, topic_id: Arc::clone(&self.at.id), counts, starts: Vec::new() });
        }
        let committed = positions::committed(&*self.consumer, &self.at, partitions.iter().copied())?;
        let firsts = self.ends(&partitions, Offset::Beginning)?;
        let ends = self.ends(&partitions, Offset::End)?;
        let missing: Vec<i32> =
            partitions.iter().copied().filter(|partition| !committed.contains_key(partition)).collect();
        let recovered = match self.missing {
            MissingOffsets::Recover if !missing.is_empty() => self.results.behind(&missing)?,
            _ => Default::default(),
        };
        let mut starts = Vec::new();
        for (&partition, (&first, &end)) in partitions.iter().zip(firsts.iter().zip(&ends)) {
            let none = || match (recovered.get(&partition), self.missing) {
                (Some(&offset), _) => {
                    tracing::warn!(
                        partition,
                        offset,
                        "the group has no position; this one is read back from its results"
                    );
                    Some(offset)
                }
                (None, MissingOffsets::Recover | MissingOffsets::Earliest) => Some(first),
                (None, MissingOffsets::Latest) => Some(end),
                (None, MissingOffsets::Stop) => None,
            };
            let position = match committed.get(&partition) {
                Some(Committed::Here(position)) => Some(*position),
                Some(Committed::InAnother) => {
                    tracing::warn!(
                        partition,
                        "the topic was deleted and made again; its records are read from the first"
                    );
                    Some(Position { offset: first, outputs: 0 })
                }
                None => none().map(|offset| Position { offset, outputs: 0 }),
            };
            starts.push(Start { partition, first, end, ..take_up(position, first) });
        }
        Ok(Answer { id, topic_id: Arc::clone(&self.at.id), counts, starts })
    }

    /// The first or last offset of each partition.
    fn ends(&self, partitions: &[i32], which: Offset) -> KafkaResult<Vec<i64>> {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            list.add_partition_offset(&self.at.topic, partition, which)?;
        }
        let found = self.consumer.offsets_for_times(list, STEP)?;
        let offset = |partition: &i32| {
            let element = found.find_partition(&self.at.topic, *partition);
            let element = element.ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition))?;
            element.error()?;
            match element.offset() {
                Offset::Offset(offset) => Ok(offset),
                _ => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset)),
            }
        };
        partitions.iter().map(offset).collect()
    }
}

/// A partition whose records begin at `first`, taken up at the group's position.
fn take_up(position: Option<Position>, first: i64) -> Start {
    let (from, deleted) = match position {
        Some(position) if position.offset < first => {
            (Some(Position { offset: first, outputs: 0 }), position.offset..first)
        }
        position => (position, first..first),
    };
    Start { partition: 0, from, first, end: first, deleted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_topic_deleted_is_named() {
        let at = |offset| Position { offset, outputs: 2 };
        assert_eq!(take_up(Some(at(5)), 3).from, Some(at(5)));
        assert!(take_up(Some(at(5)), 3).deleted.is_empty());
        let late = take_up(Some(at(5)), 9);
        assert_eq!((late.from, late.deleted), (Some(Position { offset: 9, outputs: 0 }), 5..9));
        assert_eq!(take_up(None, 4).from, None);
    }
}

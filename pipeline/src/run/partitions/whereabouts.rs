//! Where new partitions are to be taken up: asked of the brokers on a thread of its own, as each question may take its time.

use std::{ops::Range, sync::Arc};

use crossbeam_channel::{Receiver, Sender};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::Consumer,
    error::{KafkaResult, RDKafkaErrorCode},
};

use super::{
    ledger::Position,
    membership::GroupConsumer,
    positions::{self, Coordinates, RETRY, STEP},
};

/// Partitions that were assigned together.
pub struct Question {
    /// Of the assignment, for the answer.
    pub id: u64,
    pub partitions: Vec<i32>,
}

/// Where they are to be taken up.
pub struct Answer {
    pub id: u64,
    pub starts: Vec<Start>,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub partition: i32,
    pub from: Position,
    /// Offset behind the last record there was.
    pub end: i64,
    /// Offsets that the group had before it, and that the topic deleted before they were read.
    pub deleted: Range<i64>,
}

/// Answers questions, each as soon as the brokers do, until nobody asks any more.
pub fn answer(
    consumer: &Arc<GroupConsumer>,
    at: &Coordinates,
    questions: &Receiver<Question>,
    answers: &Sender<Answer>,
) {
    for Question { id, partitions } in questions {
        let starts = loop {
            match starts(consumer, at, &partitions) {
                Ok(starts) => break starts,
                Err(error) => tracing::debug!("it is not known yet where the group is: {error}"),
            }
            if consumer.context().is_closing() {
                return;
            }
            std::thread::sleep(RETRY);
        };
        if answers.send(Answer { id, starts }).is_err() {
            return;
        }
    }
}

fn starts(consumer: &GroupConsumer, at: &Coordinates, partitions: &[i32]) -> KafkaResult<Vec<Start>> {
    let committed = positions::committed(consumer, at, partitions.iter().copied())?;
    let firsts = ends(consumer, &at.topic, partitions, Offset::Beginning)?;
    let ends = ends(consumer, &at.topic, partitions, Offset::End)?;
    let start = |(&partition, (first, end)): (&i32, (i64, i64))| {
        let position = committed.get(&partition).copied();
        Start { partition, end, ..take_up(position, first) }
    };
    Ok(partitions.iter().zip(firsts.into_iter().zip(ends)).map(start).collect())
}

/// A partition whose records begin at `first`, taken up at the group's position.
fn take_up(position: Option<Position>, first: i64) -> Start {
    let (from, deleted) = match position {
        // Nobody publishes music to have it ignored.
        None => (Position { offset: first, outputs: 0 }, first..first),
        Some(position) if position.offset < first => (Position { offset: first, outputs: 0 }, position.offset..first),
        Some(position) => (position, first..first),
    };
    Start { partition: 0, from, end: first, deleted }
}

/// The first or last offset of each partition.
fn ends(consumer: &GroupConsumer, topic: &str, partitions: &[i32], which: Offset) -> KafkaResult<Vec<i64>> {
    let mut list = TopicPartitionList::new();
    for &partition in partitions {
        list.add_partition_offset(topic, partition, which)?;
    }
    let found = consumer.offsets_for_times(list, STEP)?;
    let offset = |partition: &i32| {
        let element = found.find_partition(topic, *partition);
        let element = element.ok_or(rdkafka::error::KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition))?;
        element.error()?;
        match element.offset() {
            Offset::Offset(offset) => Ok(offset),
            _ => Err(rdkafka::error::KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset)),
        }
    };
    partitions.iter().map(offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_topic_deleted_is_named() {
        let at = |offset| Position { offset, outputs: 2 };
        assert_eq!(take_up(Some(at(5)), 3).from, at(5));
        assert!(take_up(Some(at(5)), 3).deleted.is_empty());
        let late = take_up(Some(at(5)), 9);
        assert_eq!((late.from, late.deleted), (Position { offset: 9, outputs: 0 }, 5..9));
        assert_eq!(take_up(None, 4).from, Position { offset: 4, outputs: 0 });
        assert!(take_up(None, 4).deleted.is_empty());
    }
}

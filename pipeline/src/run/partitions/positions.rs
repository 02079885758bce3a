//! Positions as a group's committed offsets: the offset itself, and in its metadata how many blocks of the record there
//! are committed already, and by what kind of process: one with another model or version makes other blocks, and has to
//! start over.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{Consumer, ConsumerContext},
    error::KafkaResult,
};

use super::ledger::Position;
use crate::config::Kafka;

/// How long one question may take before it is asked again.
pub const STEP: Duration = Duration::from_secs(1);
/// Between two questions.
pub const RETRY: Duration = Duration::from_millis(20);

/// What stands before the count in an offset's metadata; `kafka-consumer-groups` and others show it.
const BLOCKS: &str = "tonearm blocks=";
const OF: &str = " of=";

/// Positions of a topic, by partition.
pub type Positions = BTreeMap<i32, Position>;

/// What positions are positions in.
#[derive(Clone, Debug)]
pub struct Coordinates {
    pub topic: String,
    /// Of the stages: two processes that agree in it make the same blocks.
    pub fingerprint: String,
}

impl Coordinates {
    /// # Errors
    /// An offset is negative.
    pub fn to_list(&self, positions: &Positions) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (&partition, position) in positions {
            let mut element = list.add_partition(&self.topic, partition);
            element.set_offset(Offset::Offset(position.offset))?;
            if position.outputs > 0 {
                element.set_metadata(format!("{BLOCKS}{}{OF}{}", position.outputs, self.fingerprint));
            }
        }
        Ok(list)
    }

    /// Partitions without a committed offset are left out.
    pub fn from_list(&self, list: &TopicPartitionList) -> Positions {
        let elements = list.elements();
        let positions = elements.iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => {
                let written = element.metadata().strip_prefix(BLOCKS).and_then(|rest| rest.split_once(OF));
                let ours = written.filter(|(_, of)| *of == self.fingerprint);
                let outputs = ours.and_then(|(count, _)| count.parse().ok()).unwrap_or(0);
                Some((element.partition(), Position { offset, outputs }))
            }
            _ => None,
        });
        positions.collect()
    }
}

/// What the group has committed of `partitions`. A transaction that is still open over them is waited for.
///
/// # Errors
/// There is no answer within [`STEP`].
pub fn committed<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    at: &Coordinates,
    partitions: impl IntoIterator<Item = i32>,
) -> KafkaResult<Positions> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition(&at.topic, partition);
    }
    let answer = consumer.committed_offsets(asked, STEP)?;
    match answer.elements().iter().find_map(|element| element.error().err()) {
        Some(error) => Err(error),
        None => Ok(at.from_list(&answer)),
    }
}

/// Whether the group is at `attempted` or further: a transaction that tried to commit it went through.
pub fn reached(committed: &Positions, attempted: &Positions) -> bool {
    attempted.iter().all(|(partition, position)| committed.get(partition).is_some_and(|found| found >= position))
}

/// A client that only asks for the group's offsets, and is no member of it.
pub fn observer(kafka: &Kafka, mut client: ClientConfig) -> ClientConfig {
    client.set("group.id", &kafka.group_id).set("isolation.level", "read_committed");
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(fingerprint: &str) -> Coordinates {
        Coordinates { topic: "audio".to_owned(), fingerprint: fingerprint.to_owned() }
    }

    #[test]
    fn positions_survive_as_offsets() {
        let positions = Positions::from([
            (0, Position { offset: 7, outputs: 0 }),
            (3, Position { offset: 1_000_000_000_000, outputs: 12 }),
        ]);
        let list = at("abc").to_list(&positions).expect("a list");
        assert_eq!(at("abc").from_list(&list), positions);
        let others = at("another").from_list(&list);
        assert_eq!(others[&3], Position { outputs: 0, ..positions[&3] }, "blocks of another kind do not count");
    }

    #[test]
    fn metadata_of_others_counts_no_blocks() {
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition("audio", 0);
        element.set_offset(Offset::Offset(5)).expect("an offset");
        element.set_metadata("moved by hand");
        assert_eq!(at("abc").from_list(&list), Positions::from([(0, Position { offset: 5, outputs: 0 })]));
    }

    #[test]
    fn a_commit_went_through_where_all_its_positions_are_reached() {
        let place = |offset, outputs| Position { offset, outputs };
        let attempted = Positions::from([(0, place(5, 0)), (1, place(9, 3))]);
        assert!(reached(&attempted, &attempted));
        assert!(reached(&Positions::from([(0, place(6, 0)), (1, place(9, 4))]), &attempted));
        assert!(!reached(&Positions::from([(0, place(5, 0)), (1, place(9, 2))]), &attempted));
        assert!(!reached(&Positions::from([(0, place(5, 0))]), &attempted));
    }
}

//! Positions as a group's committed offsets: the offset itself, and in its metadata which topic of that name it is in,
//! how many blocks of the record there are committed already, and by what kind of process: one with another model or
//! version makes other blocks, and has to start over.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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

/// What an offset's metadata begins with; `kafka-consumer-groups` and others show it. Words behind it are `name=value`.
const OURS: &str = "tonearm ";

/// Positions of a topic, by partition.
pub type Positions = BTreeMap<i32, Position>;

/// What positions are positions in.
#[derive(Clone, Debug)]
pub struct Coordinates {
    pub topic: String,
    /// The brokers' id of the topic: another one under the same name has other records at the same offsets.
    pub id: Arc<str>,
    /// Of the stages: two processes that agree in it make the same blocks.
    pub fingerprint: Arc<str>,
}

/// A position that the group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    Here(Position),
    /// It is in a topic of the same name that is no more.
    InAnother,
}

impl Coordinates {
    /// # Errors
    /// An offset is negative.
    pub fn to_list(&self, positions: &Positions) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (&partition, position) in positions {
            let mut element = list.add_partition(&self.topic, partition);
            element.set_offset(Offset::Offset(position.offset))?;
            let blocks = match position.outputs {
                0 => String::new(),
                outputs => format!(" blocks={outputs} of={}", self.fingerprint),
            };
            element.set_metadata(format!("{OURS}topic={}{blocks}", self.id));
        }
        Ok(list)
    }

    /// Partitions without a committed offset are left out.
    pub fn read_list(&self, list: &TopicPartitionList) -> BTreeMap<i32, Committed> {
        let elements = list.elements();
        let committed = elements.iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), self.committed(offset, element.metadata()))),
            _ => None,
        });
        committed.collect()
    }

    fn committed(&self, offset: i64, metadata: &str) -> Committed {
        let words: BTreeMap<&str, &str> = metadata
            .strip_prefix(OURS)
            .unwrap_or_default()
            .split(' ')
            .filter_map(|word| word.split_once('='))
            .collect();
        // An offset that was set by hand is in the topic that is there.
        if words.get("topic").is_some_and(|id| **id != *self.id) {
            return Committed::InAnother;
        }
        let ours = words.get("of").is_some_and(|of| **of == *self.fingerprint);
        let outputs = words.get("blocks").filter(|_| ours).and_then(|count| count.parse().ok()).unwrap_or(0);
        Committed::Here(Position { offset, outputs })
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
) -> KafkaResult<BTreeMap<i32, Committed>> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition(&at.topic, partition);
    }
    let answer = consumer.committed_offsets(asked, STEP)?;
    match answer.elements().iter().find_map(|element| element.error().err()) {
        Some(error) => Err(error),
        None => Ok(at.read_list(&answer)),
    }
}

/// Whether the group is at `attempted` or further: a transaction that tried to commit it went through.
pub fn reached(committed: &BTreeMap<i32, Committed>, attempted: &Positions) -> bool {
    let is_at = |partition, position| match committed.get(partition) {
        Some(Committed::Here(found)) => found >= position,
        Some(Committed::InAnother) | None => false,
    };
    attempted.iter().all(|(partition, position)| is_at(partition, position))
}

/// A client that only asks for the group's offsets, and is no member of it.
pub fn observer(kafka: &Kafka, mut client: ClientConfig) -> ClientConfig {
    client.set("group.id", &kafka.group_id).set("isolation.level", "read_committed");
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(id: &str, fingerprint: &str) -> Coordinates {
        Coordinates { topic: "audio".to_owned(), id: id.into(), fingerprint: fingerprint.into() }
    }

    fn place(offset: i64, outputs: u64) -> Position {
        Position { offset, outputs }
    }

    #[test]
    fn positions_survive_as_offsets() {
        let positions = Positions::from([(0, place(7, 0)), (3, place(1_000_000_000_000, 12))]);
        let list = at("t", "abc").to_list(&positions).expect("a list");
        let read = at("t", "abc").read_list(&list);
        assert!(positions.iter().all(|(partition, position)| read[partition] == Committed::Here(*position)));
        let others = at("t", "another").read_list(&list);
        assert_eq!(others[&3], Committed::Here(place(1_000_000_000_000, 0)), "blocks of another kind do not count");
    }

    #[test]
    fn positions_in_a_topic_that_is_no_more_are_told_apart() {
        let list = at("old", "abc").to_list(&Positions::from([(0, place(7, 0)), (1, place(7, 2))])).expect("a list");
        let read = at("new", "abc").read_list(&list);
        assert_eq!(read, BTreeMap::from([(0, Committed::InAnother), (1, Committed::InAnother)]));
    }

    #[test]
    fn metadata_of_others_counts_no_blocks() {
        for metadata in ["moved by hand", "", "tonearm blocks=4", "tonearm of=abc blocks=x", "blocks=4 of=abc"] {
            assert_eq!(at("t", "abc").committed(5, metadata), Committed::Here(place(5, 0)), "{metadata}");
        }
    }

    #[test]
    fn a_commit_went_through_if_all_its_positions_are_reached() {
        let committed = |list: &[(i32, Position)]| {
            list.iter().map(|&(partition, position)| (partition, Committed::Here(position))).collect::<BTreeMap<_, _>>()
        };
        let attempted = Positions::from([(0, place(5, 0)), (1, place(9, 3))]);
        assert!(reached(&committed(&[(0, place(5, 0)), (1, place(9, 3))]), &attempted));
        assert!(reached(&committed(&[(0, place(6, 0)), (1, place(9, 4))]), &attempted));
        assert!(!reached(&committed(&[(0, place(5, 0)), (1, place(9, 2))]), &attempted));
        assert!(!reached(&committed(&[(0, place(5, 0))]), &attempted));
    }
}

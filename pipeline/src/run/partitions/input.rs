//! The input topic, as this process reads it: the consumer, and a queue for each partition, apart from all others. One
//! that is full is just not read. Partitions are never paused: that would drop what was read ahead.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer},
    error::{KafkaError, KafkaResult},
};

use super::{
    membership::{self, Change, GroupConsumer, PartitionQueue},
    positions::{Coordinates, Positions},
    unpacker::{Next, Unpacker},
    window::{Moves, Window},
};
use crate::{kafka::packed, run::intake::record::Record};

/// Events of the group that are served per turn of the loop. With a zero timeout `poll` returns after each, and says
/// nothing of whether there are more; with a longer one it would wait on the wall clock, which may be set back.
const EVENTS: usize = 8;

pub struct Input {
    consumer: Arc<GroupConsumer>,
    topic: Arc<str>,
    queues: BTreeMap<i32, PartitionQueue>,
    /// Partitions whose queues may hold records.
    readable: BTreeSet<i32>,
    filled: (Sender<i32>, Receiver<i32>),
    wake: Sender<()>,
    window: Window,
    unpacker: Unpacker,
    /// Where partitions were taken up: in a batch, records before it are others'.
    starts: BTreeMap<i32, i64>,
}

impl Input {
    pub fn new(consumer: Arc<GroupConsumer>, unpacker: Unpacker, wake: Sender<()>, window: Window) -> Self {
        Self {
            consumer,
            topic: unpacker.topic(),
            queues: BTreeMap::new(),
            readable: BTreeSet::new(),
            filled: unbounded(),
            wake,
            window,
            unpacker,
            starts: BTreeMap::new(),
        }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn consumer(&self) -> &GroupConsumer {
        &self.consumer
    }

    /// Makes sure that a partition has a queue of its own. Returns `false` if librdkafka has none.
    pub fn open(&mut self, partition: i32) -> bool {
        self.readable.insert(partition);
        if self.queues.contains_key(&partition) {
            return true;
        }
        let Some(mut queue) = self.consumer.split_partition_queue(&self.topic, partition) else { return false };
        let (filled, wake) = (self.filled.0.clone(), self.wake.clone());
        queue.set_nonempty_callback(move || {
            let _ = filled.send(partition);
            let _ = wake.try_send(());
        });
        self.queues.insert(partition, queue);
        true
    }

    /// Serves what the group has to say.
    ///
    /// # Errors
    /// The consumer cannot go on.
    pub fn serve(&mut self, mut trouble: impl FnMut(&KafkaError)) -> KafkaResult<()> {
        for _ in 0..EVENTS {
            match self.consumer.poll(Duration::ZERO) {
                // A record from before its partition had a queue; it is read again from there.
                Some(Ok(message)) => {
                    tracing::debug!("offset {} of partition {} came early", message.offset(), message.partition());
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => {}
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(error),
                Some(Err(error)) => trouble(&error),
            }
        }
        self.readable.extend(self.filled.1.try_iter());
        if self.unpacker.serve() {
            // Whichever is next may be asked for now.
            self.readable.extend(self.unpacker.partitions());
        }
        Ok(())
    }

    pub fn next_change(&self) -> Option<Change> {
        self.consumer.context().next_change()
    }

    /// Partitions that may have records, in the order of their turns.
    pub fn readable(&self) -> Vec<i32> {
        let behind = self.unpacker.last() + 1;
        self.readable.range(behind..).chain(self.readable.range(..behind)).copied().collect()
    }

    /// Whether the next record of a partition is still packed, so that it is not here yet.
    pub fn is_packed(&self, partition: i32) -> bool {
        self.unpacker.is_packed(partition)
    }

    /// Partitions with records that are neither in librdkafka's queues nor taken yet.
    pub fn unpacking(&self) -> impl Iterator<Item = i32> {
        self.unpacker.partitions()
    }

    /// Looks at every queue again, in case one was filled without a word.
    pub fn look_again(&mut self) {
        self.readable.extend(self.queues.keys());
    }

    /// The next record of a partition. `None` if there is none now.
    pub fn next(&mut self, partition: i32) -> Option<KafkaResult<Record>> {
        match self.unpacker.next(partition) {
            Next::Record(record) => return Some(Ok(record)),
            Next::Later => {
                self.readable.remove(&partition);
                return None;
            }
            Next::NoBatch => {}
        }
        let message = self.queues.get(&partition).and_then(|queue| queue.poll(Duration::ZERO));
        match message {
            Some(Ok(message)) => {
                if let Some(batch) = packed::batch(&message) {
                    self.window.saw_record(partition, batch.packed.len(), Instant::now());
                    let start = self.starts.get(&partition).copied().unwrap_or_default();
                    self.unpacker.open(partition, batch, start);
                    // Whether there is room for its records is looked at first.
                    let _ = self.wake.try_send(());
                    return None;
                }
                let record = Record::of(&self.topic, &message);
                self.window.saw_record(partition, record.bytes(), Instant::now());
                Some(Ok(record))
            }
            Some(Err(error)) => {
                if matches!(error, KafkaError::PartitionEOF(_)) {
                    self.window.saw_end(partition);
                }
                Some(Err(error))
            }
            None => {
                self.readable.remove(&partition);
                None
            }
        }
    }

    /// Reads partitions that are taken up from other offsets; what was read ahead from elsewhere is dropped. A seek
    /// would not do: librdkafka stops to read a partition that has no record where it is read, and seeks in none that
    /// it does not read.
    pub fn read_from(&mut self, partitions: &TopicPartitionList) -> KafkaResult<()> {
        self.readable.extend(partitions.elements().iter().map(|element| element.partition()));
        membership::unassign(&self.consumer, partitions)?;
        self.take_up(partitions)
    }

    pub fn take_up(&mut self, partitions: &TopicPartitionList) -> KafkaResult<()> {
        membership::assign(&self.consumer, partitions)?;
        for element in partitions.elements() {
            self.unpacker.close(element.partition());
            self.window.add(element.partition());
            if let Offset::Offset(offset) = element.offset() {
                self.starts.insert(element.partition(), offset);
            }
        }
        let moves = self.window.turn(Instant::now());
        let closed = partitions.elements().iter().map(|element| element.partition()).collect::<Vec<_>>();
        let closed = closed.into_iter().filter(|partition| !moves.open.contains(partition));
        let close = moves.close.iter().copied().chain(closed).collect();
        self.carry_out(&Moves { close, ..moves });
        Ok(())
    }

    /// Lets partitions take turns if not all of them can be fetched at a time.
    pub fn turn(&mut self) {
        let moves = self.window.turn(Instant::now());
        self.carry_out(&moves);
    }

    /// Bytes that librdkafka may have read ahead.
    pub fn read_ahead(&self) -> usize {
        self.window.expected()
    }

    fn carry_out(&mut self, moves: &Moves) {
        let list = |partitions: &[i32]| {
            let mut list = TopicPartitionList::new();
            partitions.iter().for_each(|partition| _ = list.add_partition(&self.topic, *partition));
            list
        };
        if !moves.close.is_empty()
            && let Err(error) = self.consumer.pause(&list(&moves.close))
        {
            tracing::debug!("partitions {:?} are fetched on: {error}", moves.close);
        }
        if !moves.open.is_empty()
            && let Err(error) = self.consumer.resume(&list(&moves.open))
        {
            tracing::warn!("partitions {:?} are not fetched: {error}", moves.open);
        }
    }

    pub fn give_back(&mut self, partitions: &TopicPartitionList) -> KafkaResult<()> {
        for element in partitions.elements() {
            self.unpacker.close(element.partition());
            self.window.remove(element.partition());
        }
        membership::unassign(&self.consumer, partitions)
    }

    /// Tells the group where it is, outside of any transaction.
    pub fn commit(&self, at: &Coordinates, positions: &Positions) -> KafkaResult<()> {
        self.consumer.commit(&at.to_list(positions)?, CommitMode::Async)
    }
}

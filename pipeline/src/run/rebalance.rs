//! Partitions come and go: what the group has decided is carried out here, in the loop's thread, once the shards are ready
//! for it.

use std::time::Instant;

use rdkafka::{Offset, TopicPartitionList, consumer::Consumer};

use super::{
    RunError, Runtime,
    group::{self, Change, PartitionQueue},
    offsets::Positions,
    shard::Shard,
};
use crate::telemetry::metrics;

impl<'c> Runtime<'c, '_> {
    pub fn take_changes(&mut self) -> Result<(), RunError> {
        while let Some(change) = self.consumer.context().next_change() {
            match change {
                Change::Assigned(partitions) => self.assigned(partitions)?,
                Change::Revoked(partitions) => self.revoked(partitions),
            }
        }
        Ok(())
    }

    /// New partitions are asked for their positions first: where the last owner left a track half done, only the group's
    /// offsets tell how much of it is written.
    fn assigned(&mut self, partitions: TopicPartitionList) -> Result<(), RunError> {
        let numbers = numbers(&partitions);
        if numbers.iter().any(|&number| number as usize >= self.inputs) {
            let topic = self.config.input_topic().to_owned();
            return Err(RunError::Grown { topic, known: self.inputs });
        }
        for &partition in &numbers {
            self.epochs += 1;
            let Some(queue) = self.queue(partition) else { continue };
            self.shards.insert(partition, Shard::new(self.epochs, queue));
        }
        if numbers.is_empty() {
            // The group only wants to hear that this is settled.
            self.take_up(&partitions);
            return Ok(());
        }
        metrics::rebalanced("assigned", &numbers, self.shards.len());
        if self.stopping.is_some() {
            self.drain(&numbers, Instant::now());
            self.take_up(&partitions);
        } else {
            // It ends after the loop.
            let _ = self.questions.send(numbers);
            self.assigned.push(partitions);
        }
        Ok(())
    }

    /// The queue librdkafka fills with a partition's records, apart from all others: one that is full is just not read.
    fn queue(&mut self, partition: i32) -> Option<&'c PartitionQueue> {
        if let Some(queue) = self.queue_of.get(&partition) {
            return Some(queue);
        }
        let Some(mut queue) = self.consumer.split_partition_queue(self.config.input_topic(), partition) else {
            tracing::error!("librdkafka has no queue for partition {partition}");
            return None;
        };
        let wake = self.wake.clone();
        queue.set_nonempty_callback(move || _ = wake.try_send(()));
        let queue = &*self.queues.alloc(queue);
        self.queue_of.insert(partition, queue);
        Some(queue)
    }

    /// Takes partitions up from where the group is.
    pub fn start(&mut self, positions: &Positions) {
        if self.assigned.is_empty() {
            return;
        }
        let partitions = self.assigned.remove(0);
        if partitions.count() == 0 {
            return;
        }
        let mut from = TopicPartitionList::new();
        for element in partitions.elements() {
            let position = positions.get(&element.partition()).copied();
            // Without a position, auto.offset.reset decides.
            let offset = position.map_or(Offset::Invalid, |position| Offset::Offset(position.offset));
            if let Err(error) = from.add_partition_offset(element.topic(), element.partition(), offset) {
                tracing::error!("partition {}: {error}", element.partition());
            }
            tracing::debug!(partition = element.partition(), ?position, "taken up");
            if let Some(shard) = self.shards.get_mut(&element.partition()) {
                shard.start = Some(position);
            }
        }
        self.take_up(&from);
    }

    pub fn take_up(&self, partitions: &TopicPartitionList) {
        if let Err(error) = group::assign(self.consumer, partitions) {
            tracing::error!("the group's assignment cannot be taken up: {error}");
        }
    }

    fn revoked(&mut self, partitions: TopicPartitionList) {
        let numbers = numbers(&partitions);
        let lost = self.consumer.assignment_lost();
        metrics::rebalanced(
            if lost { "lost" } else { "revoked" },
            &numbers,
            self.shards.len().saturating_sub(numbers.len()),
        );
        if !lost {
            self.drain(&numbers, Instant::now() + self.config.runtime.drain_timeout);
            self.revoked.push(partitions);
            return;
        }
        // Another process already owns them: what is held of them is void, and may not be committed. A commit that is under
        // way the broker decides on.
        self.forget(&numbers);
        self.outbox.abort("partitions were lost to another process");
        self.give_back(&partitions);
        // Those that were not taken up yet never will be.
        for assigned in &mut self.assigned {
            if numbers.iter().any(|number| assigned.find_partition(self.config.input_topic(), *number).is_some()) {
                *assigned = TopicPartitionList::new();
            }
        }
    }

    /// The workers' results of these shards are of no use from now on.
    fn forget(&mut self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(shard) = self.shards.remove(partition) {
                shard.lease.revoke();
                metrics::in_flight(*partition, 0);
            }
        }
    }

    fn give_back(&self, partitions: &TopicPartitionList) {
        if let Err(error) = group::unassign(self.consumer, partitions) {
            tracing::error!("partitions cannot be given back: {error}");
        }
    }

    /// Gives revoked partitions back whose shards are done.
    pub fn finish_drains(&mut self) {
        let now = Instant::now();
        for shard in self.shards.values().filter(|shard| !shard.may_send(now)) {
            shard.lease.revoke();
        }
        for partitions in std::mem::take(&mut self.revoked) {
            let numbers = numbers(&partitions);
            if numbers.iter().filter_map(|number| self.shards.get(number)).all(|shard| shard.is_done(now)) {
                self.forget(&numbers);
                self.give_back(&partitions);
            } else {
                self.revoked.push(partitions);
            }
        }
    }

    /// The end: whatever workers still have is of no use. Changes that are not carried out yet are, or the consumer would
    /// wait for it for ever when it closes.
    pub fn leave(&mut self) {
        let records: usize = self.shards.values().map(|shard| shard.ledger.len()).sum();
        if records > 0 {
            tracing::info!(records, "records are left to the partitions' next owner");
        }
        self.shards.values().for_each(|shard| shard.lease.revoke());
        self.consumer.context().close();
        let mut changes: Vec<Change> = std::mem::take(&mut self.assigned).into_iter().map(Change::Assigned).collect();
        changes.extend(std::mem::take(&mut self.revoked).into_iter().map(Change::Revoked));
        changes.extend(std::iter::from_fn(|| self.consumer.context().next_change()));
        for change in changes {
            match change {
                Change::Assigned(partitions) => self.take_up(&partitions),
                Change::Revoked(partitions) => self.give_back(&partitions),
            }
        }
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(|element| element.partition()).collect()
}

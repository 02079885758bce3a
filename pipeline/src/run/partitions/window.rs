//! Which partitions are fetched at a time, so that what librdkafka reads ahead has a bound too.
//!
//! A partition that is fetched may hold one read-ahead and one record on top, whatever its size, so many partitions of
//! large records would take many times the memory that is allowed. Then only so many are fetched as fit, and they take
//! turns. With room for all of them nothing is ever stopped.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// What a partition is expected to hold before anything is known of it: Kafka's usual limit for a record.
const UNKNOWN: usize = 1 << 20;
/// A partition without records for this long makes room for another. Brokers answer a fetch within 100 ms, records or
/// not.
const IDLE: Duration = Duration::from_millis(300);
/// A partition with records makes room for another after this long.
const TURN: Duration = Duration::from_secs(2);

pub struct Window {
    limit: usize,
    read_ahead: usize,
    open: BTreeMap<i32, Open>,
    /// In the order in which they are opened.
    closed: VecDeque<i32>,
    /// Bytes that the open ones may hold.
    expected: usize,
}

struct Open {
    since: Instant,
    last_record: Instant,
    expected: usize,
}

/// Partitions to be fetched from now on, and to be left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    pub open: Vec<i32>,
    pub close: Vec<i32>,
}

impl Window {
    /// Open partitions may hold `limit` bytes together; librdkafka fetches `read_ahead` bytes of one, or a larger
    /// record.
    pub fn new(limit: usize, read_ahead: usize) -> Self {
        Self { limit, read_ahead, open: BTreeMap::new(), closed: VecDeque::new(), expected: 0 }
    }

    /// Bytes that librdkafka may hold.
    pub fn expected(&self) -> usize {
        self.expected
    }

    /// Takes a partition on, closed.
    pub fn add(&mut self, partition: i32) {
        self.remove(partition);
        self.closed.push_back(partition);
    }

    pub fn remove(&mut self, partition: i32) {
        self.closed.retain(|closed| *closed != partition);
        if let Some(open) = self.open.remove(&partition) {
            self.expected -= open.expected;
        }
    }

    /// A record of `bytes` was read.
    pub fn saw_record(&mut self, partition: i32, bytes: usize, now: Instant) {
        if let Some(open) = self.open.get_mut(&partition) {
            open.last_record = now;
            // Records of a partition are about as large as the last one.
            let expected = self.read_ahead + bytes;
            self.expected = self.expected - open.expected + expected;
            open.expected = expected;
        }
    }

    /// The partition has no more records for now.
    pub fn saw_end(&mut self, partition: i32) {
        if let Some(open) = self.open.get_mut(&partition).filter(|open| open.expected == UNKNOWN) {
            self.expected = self.expected - open.expected + self.read_ahead;
            open.expected = self.read_ahead;
        }
    }

    /// What is to be opened and closed now.
    pub fn turn(&mut self, now: Instant) -> Moves {
        let mut moves = Moves::default();
        if !self.closed.is_empty() && self.expected + UNKNOWN > self.limit {
            let had_its_turn = |open: &Open| {
                let (opened, quiet) = (now.duration_since(open.since), now.duration_since(open.last_record));
                opened >= TURN || (opened >= IDLE && quiet >= IDLE)
            };
            let done = self.open.iter().filter(|(_, open)| had_its_turn(open)).map(|(partition, _)| *partition);
            moves.close = done.take(self.closed.len()).collect();
        }
        let held = |window: &Self, partition: &i32| window.open.get(partition).map_or(0, |open| open.expected);
        let mut expected = self.expected - moves.close.iter().map(|partition| held(self, partition)).sum::<usize>();
        // Records have turned out larger than was expected.
        for partition in self.open.keys().rev() {
            if expected <= self.limit || self.open.len() - moves.close.len() <= 1 {
                break;
            }
            if !moves.close.contains(partition) {
                expected -= held(self, partition);
                moves.close.push(*partition);
            }
        }
        let waiting = self.closed.len();
        moves.close.iter().for_each(|partition| self.add(*partition));
        for _ in 0..waiting {
            if !self.open.is_empty() && self.expected + UNKNOWN > self.limit {
                break;
            }
            let Some(partition) = self.closed.pop_front() else { break };
            self.open.insert(partition, Open { since: now, last_record: now, expected: UNKNOWN });
            self.expected += UNKNOWN;
            moves.open.push(partition);
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const READ_AHEAD: usize = 64 << 10;

    fn window(limit_mib: usize, partitions: i32) -> Window {
        let mut window = Window::new(limit_mib << 20, READ_AHEAD);
        (0..partitions).for_each(|partition| window.add(partition));
        window
    }

    #[test]
    fn partitions_that_fit_are_all_open_and_stay_so() {
        let (mut window, mut now) = (window(100, 50), Instant::now());
        assert_eq!(window.turn(now).open.len(), 50);
        for _ in 0..10 {
            now += TURN;
            assert_eq!(window.turn(now), Moves::default());
        }
    }

    #[test]
    fn a_thousand_empty_partitions_are_open_within_a_second() {
        let (mut window, mut now) = (window(160, 1000), Instant::now());
        let mut open = BTreeSet::new();
        for _ in 0..10 {
            let moves = window.turn(now);
            moves.close.iter().for_each(|partition| _ = open.remove(partition));
            open.extend(moves.open);
            open.iter().for_each(|partition| window.saw_end(*partition));
            now += Duration::from_millis(100);
        }
        assert_eq!(open.len(), 1000);
        assert!(window.expected() <= 160 << 20);
    }

    #[test]
    fn of_large_records_only_as_many_are_held_as_fit_and_every_partition_has_its_turn() {
        const RECORD: usize = 1_400_000;
        let (mut window, mut now) = (window(128, 1000), Instant::now());
        let (mut open, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut most = 0;
        for _ in 0..600 {
            let moves = window.turn(now);
            moves.close.iter().for_each(|partition| assert!(open.remove(partition)));
            moves.open.iter().for_each(|partition| assert!(open.insert(*partition)));
            most = most.max(open.len() * (READ_AHEAD + RECORD));
            for partition in &open {
                window.saw_record(*partition, RECORD, now);
                seen.insert(*partition);
            }
            now += Duration::from_millis(100);
        }
        assert_eq!(seen.len(), 1000, "some were never read");
        // The first ones are opened before it is known how large records are.
        assert!(most <= (128 << 20) * 3 / 2, "{} MiB", most >> 20);
    }

    #[test]
    fn one_partition_is_always_open() {
        let (mut window, now) = (window(1, 3), Instant::now());
        assert_eq!(window.turn(now).open.len(), 1);
        window.saw_record(0, 64 << 20, now);
        assert!(window.turn(now).close.is_empty());
    }
}

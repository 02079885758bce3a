//! What is known of the records of one partition: which are worked on, what came of them, what is sent and committed.
//!
//! Records may finish in any order. What came of them is sent in offset order, and a position is only ever committed
//! when everything before it was sent. A long record may send some of its outputs before it is complete: the position
//! then stays at the record and counts them.

use std::{cell::Cell, collections::VecDeque, rc::Rc};

/// Bytes of several ledgers together.
#[derive(Clone, Debug, Default)]
pub struct Tally(Rc<Cell<usize>>);

impl Tally {
    pub fn bytes(&self) -> usize {
        self.0.get()
    }

    fn add(&self, bytes: usize) {
        self.0.set(self.0.get() + bytes);
    }

    fn take(&self, bytes: usize) {
        self.0.set(self.0.get().saturating_sub(bytes));
    }
}

/// The records of one partition that are not committed yet, in offset order. `T` is one output of a record.
#[derive(Debug)]
pub struct Ledger<T> {
    entries: VecDeque<Entry<T>>,
    /// The first `sent` entries are sent with all their outputs, and not committed.
    sent: usize,
    /// The first `settled` entries are not worked on.
    settled: usize,
    bytes: usize,
    /// Which `bytes` are counted in too.
    tally: Tally,
    last_accepted: Option<i64>,
    /// Everything before it is complete, though the records there gave no outputs or were none.
    end: i64,
}

#[derive(Debug)]
struct Entry<T> {
    offset: i64,
    /// Of the record as long as it is worked on.
    bytes: usize,
    work: Work,
    /// Outputs that are not committed, each with its bytes.
    outputs: VecDeque<(T, usize)>,
    /// The first of them, that are sent.
    sent: usize,
    /// Outputs committed earlier, by this process or the partition's last owner.
    committed: u64,
    /// Outputs yet to come that are committed already.
    skip: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Work {
    Under,
    /// All its outputs are known.
    Complete,
    /// It will not be completed here: another process starts over with it.
    Cancelled,
}

/// Where a partition is: all records before `offset` have sent their outputs, and the record there the first `outputs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub offset: i64,
    pub outputs: u64,
}

/// One output: the record it came of, and its number among that record's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub offset: i64,
    pub number: u64,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self::new(Tally::default())
    }
}

impl<T> Drop for Ledger<T> {
    fn drop(&mut self) {
        self.tally.take(self.bytes);
    }
}

impl<T> Ledger<T> {
    pub fn new(tally: Tally) -> Self {
        Self { entries: VecDeque::new(), sent: 0, settled: 0, bytes: 0, tally, last_accepted: None, end: 0 }
    }

    fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.tally.add(bytes);
    }

    fn take_bytes(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.tally.take(bytes);
    }

    /// Takes a record on that weighs `bytes` while it is worked on; its first `committed` outputs are not wanted.
    /// Returns `false` if its offset was taken on before.
    #[must_use]
    pub fn accept(&mut self, offset: i64, bytes: usize, committed: u64) -> bool {
        if self.last_accepted.is_some_and(|last| offset <= last) {
            return false;
        }
        self.last_accepted = Some(offset);
        self.add_bytes(bytes);
        self.entries.push_back(Entry {
            offset,
            bytes,
            work: Work::Under,
            outputs: VecDeque::new(),
            sent: 0,
            committed,
            skip: committed,
        });
        true
    }

    /// The offset of the last record taken on.
    pub fn last_accepted(&self) -> Option<i64> {
        self.last_accepted
    }

    /// Notes that the partition has no record between the last one taken on and `offset`.
    pub fn note_end(&mut self, offset: i64) {
        if self.last_accepted.is_none_or(|last| last < offset) {
            self.end = self.end.max(offset);
        }
    }

    /// Adds an output of a record that is worked on. Returns `false` if it is not wanted: it was committed before, or
    /// another took its place.
    pub fn add(&mut self, offset: i64, bytes: usize, output: T) -> bool {
        let Some(entry) = self.entry(offset).filter(|entry| entry.work == Work::Under) else { return false };
        if entry.skip > 0 {
            entry.skip -= 1;
            return false;
        }
        entry.outputs.push_back((output, bytes));
        self.add_bytes(bytes);
        true
    }

    /// Notes that a record has no more outputs to come.
    pub fn complete(&mut self, offset: i64) {
        self.settle(offset, Work::Complete);
    }

    /// Notes that a record will not be completed here.
    pub fn cancel(&mut self, offset: i64) {
        self.settle(offset, Work::Cancelled);
    }

    fn settle(&mut self, offset: i64, work: Work) {
        if let Some(entry) = self.entry(offset).filter(|entry| entry.work == Work::Under) {
            let bytes = std::mem::take(&mut entry.bytes);
            entry.work = work;
            self.take_bytes(bytes);
        }
    }

    fn entry(&mut self, offset: i64) -> Option<&mut Entry<T>> {
        let found = self.entries.binary_search_by_key(&offset, |entry| entry.offset);
        found.ok().and_then(|at| self.entries.get_mut(at))
    }

    /// The output at `place`, if it is not committed.
    pub fn output(&mut self, place: Place) -> Option<&mut T> {
        let entry = self.entry(place.offset)?;
        let index = usize::try_from(place.number.checked_sub(entry.committed)?).ok()?;
        entry.outputs.get_mut(index).map(|(output, _)| output)
    }

    /// Puts `outputs`, each with its bytes, in the place of an output that is not sent and of all that its record has
    /// behind it: the record is complete with them. Returns those that went.
    pub fn replace(&mut self, place: Place, outputs: Vec<(T, usize)>) -> Vec<T> {
        let Some(entry) = self.entry(place.offset) else { return Vec::new() };
        let index = place.number.checked_sub(entry.committed).and_then(|index| usize::try_from(index).ok());
        let Some(index) = index.filter(|index| entry.sent <= *index && *index <= entry.outputs.len()) else {
            return Vec::new();
        };
        let gone: Vec<(T, usize)> = entry.outputs.drain(index..).collect();
        let added = outputs.iter().map(|(_, bytes)| bytes).sum();
        entry.outputs.extend(outputs);
        self.complete(place.offset);
        self.take_bytes(gone.iter().map(|(_, bytes)| bytes).sum());
        self.add_bytes(added);
        gone.into_iter().map(|(output, _)| output).collect()
    }

    /// The first record that has outputs to come: it alone may need room that others hold.
    pub fn head(&mut self) -> Option<i64> {
        while self.entries.get(self.settled).is_some_and(|entry| entry.work != Work::Under) {
            self.settled += 1;
        }
        self.entries.get(self.settled).map(|entry| entry.offset)
    }

    /// The next output to send, if everything before it is sent.
    pub fn next_to_send(&mut self) -> Option<(Place, &T)> {
        while let Some(entry) = self.entries.get(self.sent) {
            if entry.sent < entry.outputs.len() || entry.work != Work::Complete {
                break;
            }
            self.sent += 1;
        }
        let entry = self.entries.get(self.sent)?;
        let place = Place { offset: entry.offset, number: entry.committed + entry.sent as u64 };
        entry.outputs.get(entry.sent).map(|(output, _)| (place, output))
    }

    /// Notes that [`next_to_send`](Self::next_to_send) was sent.
    pub fn mark_sent(&mut self) {
        if self.next_to_send().is_some() {
            self.entries[self.sent].sent += 1;
        }
    }

    /// The position to commit. `None` if it has not moved since the last commit.
    pub fn position(&mut self) -> Option<Position> {
        // A complete record without outputs counts as sent once everything before it is.
        self.next_to_send();
        match self.entries.get(self.sent) {
            Some(entry) if entry.sent > 0 => {
                Some(Position { offset: entry.offset, outputs: entry.committed + entry.sent as u64 })
            }
            Some(_) => {
                let last = self.entries.get(self.sent.checked_sub(1)?)?;
                Some(Position { offset: last.offset + 1, outputs: 0 })
            }
            None => {
                let last = self.entries.back().map_or(0, |last| last.offset + 1).max(self.end);
                (self.sent > 0 || self.end > 0).then_some(Position { offset: last, outputs: 0 })
            }
        }
    }

    /// Whether something is sent and not committed.
    pub fn has_sent(&self) -> bool {
        self.sent > 0 || self.entries.front().is_some_and(|entry| entry.sent > 0)
    }

    /// Notes that what was sent is committed. Returns its outputs in order.
    pub fn commit(&mut self) -> Vec<T> {
        let mut committed = Vec::new();
        let mut bytes = 0;
        self.settled = self.settled.saturating_sub(self.sent);
        for entry in self.entries.drain(..std::mem::take(&mut self.sent)) {
            for (output, weight) in entry.outputs {
                bytes += weight;
                committed.push(output);
            }
        }
        if let Some(entry) = self.entries.front_mut() {
            for (output, weight) in entry.outputs.drain(..std::mem::take(&mut entry.sent)) {
                entry.committed += 1;
                bytes += weight;
                committed.push(output);
            }
        }
        self.take_bytes(bytes);
        committed
    }

    /// Notes that the end of the partition at `offset` is committed.
    pub fn commit_end(&mut self, offset: i64) {
        if self.end <= offset {
            self.end = 0;
        }
    }

    /// Notes that what was sent is void, and is to be sent again.
    pub fn rewind(&mut self) {
        for entry in self.entries.iter_mut().take(self.sent + 1) {
            entry.sent = 0;
        }
        self.sent = 0;
    }

    /// Whether nothing more will come of what was taken on: all is committed up to the first cancelled record.
    pub fn is_drained(&self) -> bool {
        self.entries.front().is_none_or(|entry| entry.work == Work::Cancelled && entry.outputs.is_empty())
    }

    /// Bytes of the records worked on and of the outputs held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records taken on and not committed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// A record that will have so many outputs.
        Accept {
            gap: i64,
            bytes: usize,
            outputs: u64,
        },
        /// An output, or the end, of the nth record worked on, counted from the front, modulo how many there are.
        Work {
            nth: usize,
            bytes: usize,
        },
        Cancel {
            nth: usize,
        },
        /// What is next to be sent is refused, and another output takes its place and that of all behind it.
        Replace,
        Send,
        Commit,
        Abort,
        /// Another process takes over from what is committed.
        TakeOver,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => (1..4i64, 0..100usize, 0..4u64).prop_map(|(gap, bytes, outputs)| Step::Accept { gap, bytes, outputs }),
            12 => (0..8usize, 0..100usize).prop_map(|(nth, bytes)| Step::Work { nth, bytes }),
            1 => (0..8usize).prop_map(|nth| Step::Cancel { nth }),
            1 => Just(Step::Replace),
            8 => Just(Step::Send),
            3 => Just(Step::Commit),
            1 => Just(Step::Abort),
            1 => Just(Step::TakeOver),
        ];
        prop::collection::vec(step, 0..300)
    }

    /// Offset and number of an output.
    type Output = (i64, u64);

    /// The topics, and the process that has the partition.
    #[derive(Default)]
    struct World {
        /// Offsets in the partition, and how many outputs each record has.
        records: Vec<(i64, u64)>,
        committed: Vec<Output>,
        position: Option<Position>,
        ledger: Ledger<Output>,
        /// Records worked on, with the outputs made so far.
        working: Vec<(i64, u64)>,
        sent: Vec<Output>,
    }

    impl World {
        fn accept(&mut self, offset: i64, bytes: usize) {
            let at = self.position.filter(|position| position.offset == offset);
            let committed = at.map_or(0, |position| position.outputs);
            assert!(self.ledger.accept(offset, bytes, committed));
            assert!(!self.ledger.accept(offset, bytes, committed), "an offset is taken on once");
            self.working.push((offset, 0));
        }

        fn work(&mut self, nth: usize, bytes: usize) {
            if self.working.is_empty() {
                return;
            }
            let nth = nth % self.working.len();
            let (offset, made) = self.working[nth];
            let outputs = self.records.iter().find(|record| record.0 == offset).expect("a record").1;
            if made < outputs {
                let wanted = self.ledger.add(offset, bytes, (offset, made));
                assert_eq!(wanted, !self.committed.contains(&(offset, made)), "{offset}, output {made}");
                self.working[nth].1 += 1;
            } else {
                self.ledger.complete(offset);
                self.working.remove(nth);
            }
        }

        fn cancel(&mut self, nth: usize) {
            if !self.working.is_empty() {
                let (offset, _) = self.working.remove(nth % self.working.len());
                self.ledger.cancel(offset);
            }
        }

        /// From now on its record has this output as the last: whoever takes over makes the same of it.
        fn replace(&mut self) {
            if let Some((place, &output)) = self.ledger.next_to_send() {
                let record = self.records.iter_mut().find(|record| record.0 == place.offset).expect("a record");
                record.1 = place.number + 1;
                let gone = self.ledger.replace(place, vec![(output, 7)]);
                assert_eq!(gone.first(), Some(&output));
                self.working.retain(|(offset, _)| *offset != place.offset);
                assert!(!self.ledger.add(place.offset, 1, (place.offset, 99)), "it is complete");
            }
        }

        fn send(&mut self) {
            if let Some((place, &output)) = self.ledger.next_to_send() {
                assert_eq!((place.offset, place.number), output, "a place is an output's own");
                self.ledger.mark_sent();
                self.sent.push(output);
            }
        }

        fn commit(&mut self) {
            assert!(self.ledger.has_sent() || self.sent.is_empty());
            if let Some(position) = self.ledger.position() {
                assert!(self.position <= Some(position), "the group goes back");
                self.position = Some(position);
            }
            assert_eq!(self.ledger.commit(), self.sent);
            self.committed.append(&mut self.sent);
        }

        fn take_over(&mut self) {
            self.ledger = Ledger::default();
            self.working.clear();
            self.sent.clear();
            let from = self.position.map_or(0, |position| position.offset);
            for (offset, _) in self.records.clone() {
                if offset >= from {
                    self.accept(offset, 10);
                }
            }
        }

        /// The outputs of all records, in order.
        fn wanted(&self) -> Vec<Output> {
            self.records.iter().flat_map(|&(offset, outputs)| (0..outputs).map(move |n| (offset, n))).collect()
        }
    }

    proptest! {
        #[test]
        fn outputs_leave_once_and_in_order_whoever_has_the_partition(steps in steps()) {
            let mut world = World::default();
            for step in steps {
                match step {
                    Step::Accept { gap, bytes, outputs } => {
                        let offset = world.records.last().map_or(0, |last| last.0 + gap);
                        world.records.push((offset, outputs));
                        world.accept(offset, bytes);
                    }
                    Step::Work { nth, bytes } => world.work(nth, bytes),
                    Step::Cancel { nth } => world.cancel(nth),
                    Step::Replace => world.replace(),
                    Step::Send => world.send(),
                    Step::Commit => world.commit(),
                    Step::Abort => {
                        world.ledger.rewind();
                        world.sent.clear();
                        prop_assert!(!world.ledger.has_sent());
                    }
                    Step::TakeOver => world.take_over(),
                }
                let left: Vec<Output> = world.committed.iter().chain(&world.sent).copied().collect();
                prop_assert_eq!(&world.wanted()[..left.len()], &left, "a gap, a repeat or a swap");
            }
            world.take_over();
            while !world.working.is_empty() {
                world.work(0, 1);
            }
            while world.ledger.next_to_send().is_some() {
                world.send();
            }
            world.commit();
            prop_assert_eq!(world.wanted(), world.committed, "something is lost");
            prop_assert_eq!((world.ledger.len(), world.ledger.bytes()), (0, 0));
            prop_assert!(world.ledger.is_drained());
        }
    }

    #[test]
    fn a_ledger_is_drained_up_to_what_is_left_to_others() {
        let mut ledger = Ledger::default();
        for offset in 0..3 {
            assert!(ledger.accept(offset, 1, 0));
        }
        ledger.add(0, 1, "first");
        ledger.complete(0);
        ledger.add(1, 1, "half");
        ledger.cancel(1);
        assert!(!ledger.is_drained());
        while ledger.next_to_send().is_some() {
            ledger.mark_sent();
        }
        assert_eq!(ledger.position(), Some(Position { offset: 1, outputs: 1 }));
        assert!(!ledger.is_drained(), "what is sent is not committed");
        assert_eq!(ledger.commit(), ["first", "half"]);
        assert!(ledger.is_drained());
        assert_eq!(ledger.head(), Some(2));
    }
}

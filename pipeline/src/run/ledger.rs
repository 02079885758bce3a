//! What is known of the records of one partition: which are worked on, finished, sent, and committed.
//!
//! Records may finish in any order. They are sent in offset order, and a position is only ever committed when
//! everything before it was sent.

use std::collections::VecDeque;

/// The records of one partition that are not committed yet, in offset order. `T` is a finished record's result.
#[derive(Debug)]
pub struct Ledger<T> {
    entries: VecDeque<Entry<T>>,
    /// The first `sent` entries are sent and not committed.
    sent: usize,
    bytes: usize,
    last_accepted: Option<i64>,
}

#[derive(Debug)]
struct Entry<T> {
    offset: i64,
    bytes: usize,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    Working,
    Finished(T),
    /// It will not be finished here: another process starts over with it.
    Abandoned,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), sent: 0, bytes: 0, last_accepted: None }
    }
}

impl<T> Ledger<T> {
    /// Takes a record on that weighs `bytes`. False where its offset was taken on before.
    #[must_use]
    pub fn accept(&mut self, offset: i64, bytes: usize) -> bool {
        if self.last_accepted.is_some_and(|last| offset <= last) {
            return false;
        }
        self.last_accepted = Some(offset);
        self.bytes += bytes;
        self.entries.push_back(Entry { offset, bytes, state: State::Working });
        true
    }

    /// Notes the result of a record, which weighs `bytes` from now on.
    pub fn finish(&mut self, offset: i64, bytes: usize, result: T) {
        self.settle(offset, bytes, State::Finished(result));
    }

    /// Notes that a record has no result and will have none here.
    pub fn abandon(&mut self, offset: i64) {
        self.settle(offset, 0, State::Abandoned);
    }

    fn settle(&mut self, offset: i64, bytes: usize, state: State<T>) {
        let found = self.entries.binary_search_by_key(&offset, |entry| entry.offset);
        if let Some(entry) = found.ok().and_then(|at| self.entries.get_mut(at)) {
            debug_assert!(matches!(entry.state, State::Working), "offset {offset} is settled twice");
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
            entry.state = state;
        }
    }

    /// The next result to send, if every record before it is sent.
    pub fn next_to_send(&self) -> Option<&T> {
        match &self.entries.get(self.sent)?.state {
            State::Finished(result) => Some(result),
            State::Working | State::Abandoned => None,
        }
    }

    /// Notes that [`next_to_send`](Self::next_to_send) was sent.
    pub fn mark_sent(&mut self) {
        if self.next_to_send().is_some() {
            self.sent += 1;
        }
    }

    /// The position to commit: one after the last sent record. None where nothing was sent since the last commit.
    pub fn position(&self) -> Option<i64> {
        let last = self.entries.get(self.sent.checked_sub(1)?)?;
        Some(last.offset + 1)
    }

    /// What was sent is committed: its results are handed out in order and forgotten.
    pub fn commit(&mut self) -> Vec<T> {
        let committed = self.entries.drain(..std::mem::take(&mut self.sent));
        let mut results = Vec::with_capacity(committed.len());
        for entry in committed {
            self.bytes -= entry.bytes;
            if let State::Finished(result) = entry.state {
                results.push(result);
            }
        }
        results
    }

    /// What was sent is lost with its transaction, and is to be sent again.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// True where nothing more will come of what was taken on: all is committed up to the first abandoned record.
    pub fn is_drained(&self) -> bool {
        self.entries.front().is_none_or(|entry| matches!(entry.state, State::Abandoned))
    }

    /// Bytes of the records worked on and of the results held.
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
        Accept {
            gap: i64,
            bytes: usize,
        },
        /// The nth unsettled record, counted from the front, modulo how many there are.
        Finish {
            nth: usize,
            bytes: usize,
        },
        Abandon {
            nth: usize,
        },
        Send,
        Commit,
        Abort,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => (1..4i64, 0..100usize).prop_map(|(gap, bytes)| Step::Accept { gap, bytes }),
            5 => (0..8usize, 0..100usize).prop_map(|(nth, bytes)| Step::Finish { nth, bytes }),
            1 => (0..8usize).prop_map(|nth| Step::Abandon { nth }),
            5 => Just(Step::Send),
            2 => Just(Step::Commit),
            1 => Just(Step::Abort),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn results_leave_once_in_order_and_only_behind_finished_ones(steps in steps()) {
            let mut ledger = Ledger::default();
            let mut accepted: Vec<i64> = Vec::new();
            let mut unsettled: Vec<i64> = Vec::new();
            let mut finished: Vec<i64> = Vec::new();
            let mut committed: Vec<i64> = Vec::new();
            let mut sent: Vec<i64> = Vec::new();
            for step in steps {
                match step {
                    Step::Accept { gap, bytes } => {
                        let offset = accepted.last().map_or(0, |last| last + gap);
                        prop_assert!(ledger.accept(offset, bytes));
                        prop_assert!(!ledger.accept(offset, bytes), "an offset is taken on once");
                        accepted.push(offset);
                        unsettled.push(offset);
                    }
                    Step::Finish { nth, bytes } if !unsettled.is_empty() => {
                        let offset = unsettled.remove(nth % unsettled.len());
                        ledger.finish(offset, bytes, offset);
                        finished.push(offset);
                    }
                    Step::Abandon { nth } if !unsettled.is_empty() => {
                        ledger.abandon(unsettled.remove(nth % unsettled.len()));
                    }
                    Step::Finish { .. } | Step::Abandon { .. } => {}
                    Step::Send => {
                        if let Some(&offset) = ledger.next_to_send() {
                            ledger.mark_sent();
                            sent.push(offset);
                        }
                    }
                    Step::Commit => {
                        if let Some(position) = ledger.position() {
                            prop_assert_eq!(position, sent.last().unwrap() + 1);
                        }
                        let results = ledger.commit();
                        prop_assert_eq!(&results, &sent);
                        committed.extend(results);
                        sent.clear();
                    }
                    Step::Abort => {
                        ledger.rewind();
                        sent.clear();
                    }
                }
                let settled: Vec<i64> = committed.iter().chain(&sent).copied().collect();
                prop_assert_eq!(&accepted[..settled.len()], &settled, "a gap, a repeat or a swap");
                prop_assert!(settled.iter().all(|offset| finished.contains(offset)));
                prop_assert_eq!(ledger.len(), accepted.len() - committed.len());
            }
            ledger.rewind();
            while ledger.next_to_send().is_some() {
                ledger.mark_sent();
            }
            ledger.commit();
            prop_assert_eq!(ledger.is_drained(), ledger.len() == 0 || !unsettled.contains(&accepted[accepted.len() - ledger.len()]));
            if ledger.len() == 0 {
                prop_assert_eq!(ledger.bytes(), 0);
            }
        }
    }
}

//! What tracks say of the records they are made of.

use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::run::{commit::output::Output, partitions::lease::Lease};

/// What became of a record, or of a part of it.
pub struct Report {
    pub epoch: u64,
    pub partition: i32,
    pub offset: i64,
    pub event: Event,
}

pub enum Event {
    /// One output; more will come.
    Output(Output),
    /// The last outputs, if any.
    Complete(Vec<Output>),
    /// It will not be completed here.
    Cancelled,
}

/// A record in a track's hands. However the track ends, the record's shard gets to know.
pub struct Receipt {
    offset: i64,
    partition: i32,
    epoch: u64,
    lease: Arc<Lease>,
    reports: Sender<Report>,
    settled: bool,
}

impl Receipt {
    pub fn new(epoch: u64, partition: i32, offset: i64, lease: Arc<Lease>, reports: Sender<Report>) -> Self {
        Self { offset, partition, epoch, lease, reports, settled: false }
    }

    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Takes room for an output of `bytes`, as soon as there is some. `false` if the record is cancelled.
    pub async fn room(&self, bytes: usize) -> bool {
        self.lease.reserve(self.offset, bytes).await
    }

    /// Hands one output over, for which `reserved` bytes of room were taken.
    pub fn output(&self, output: Output, reserved: usize) {
        self.report(Event::Output(Output { reserved, ..output }));
    }

    /// Hands the last outputs over.
    pub fn complete(mut self, outputs: Vec<Output>) {
        self.settled = true;
        self.report(Event::Complete(outputs));
    }

    fn report(&self, event: Event) {
        let Self { epoch, partition, offset, .. } = *self;
        // The loop ends before its tracks only when it no longer wants their reports.
        let _ = self.reports.send(Report { epoch, partition, offset, event });
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.report(Event::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    #[test]
    fn a_receipt_that_is_dropped_without_an_answer_says_so_once() {
        let (reports, heard) = unbounded();
        let receipt = |offset| Receipt::new(1, 2, offset, Arc::default(), reports.clone());
        drop(receipt(7));
        receipt(8).complete(Vec::new());
        let heard: Vec<Report> = heard.try_iter().collect();
        assert_eq!(heard.iter().map(|report| report.offset).collect::<Vec<_>>(), [7, 8]);
        assert!(matches!(heard[0].event, Event::Cancelled));
        assert!(matches!(heard[1].event, Event::Complete(_)));
    }
}

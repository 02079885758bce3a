//! What workers say of the records they have.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::{results::Output, shard::Lease};

/// What became of a record, or of a part of it.
pub struct Worked<'c> {
    pub epoch: u64,
    pub partition: i32,
    pub offset: i64,
    pub news: News<'c>,
}

pub enum News<'c> {
    /// One output; more will come.
    Output(Output<'c>),
    /// The last outputs, if any.
    Complete(Vec<Output<'c>>),
    /// It will not be completed here.
    Abandoned,
}

/// A record in a worker's hands. However the worker ends, the record's shard gets to know.
pub struct Receipt<'c> {
    pub partition: i32,
    pub offset: i64,
    epoch: u64,
    lease: Arc<Lease>,
    results: Sender<Worked<'c>>,
    settled: bool,
}

impl<'c> Receipt<'c> {
    pub fn new(epoch: u64, partition: i32, offset: i64, lease: Arc<Lease>, results: Sender<Worked<'c>>) -> Self {
        Self { partition, offset, epoch, lease, results, settled: false }
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Hands one output over, once there is room for it. False where the record is of no use any more.
    pub fn output(&self, mut output: Output<'c>) -> bool {
        output.reserved = output.bytes();
        if !self.lease.reserve(self.offset, output.reserved) {
            return false;
        }
        self.say(News::Output(output));
        true
    }

    /// Hands the last outputs over.
    pub fn complete(mut self, outputs: Vec<Output<'c>>) {
        self.settled = true;
        self.say(News::Complete(outputs));
    }

    fn say(&self, news: News<'c>) {
        // The loop ends before its workers only when it no longer wants results.
        let _ = self.results.send(Worked { epoch: self.epoch, partition: self.partition, offset: self.offset, news });
    }
}

impl Drop for Receipt<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.say(News::Abandoned);
        }
    }
}

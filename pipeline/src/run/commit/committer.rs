//! The thread that ends transactions, and its successor if librdkafka does not return.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{
    transaction::{Closed, Task, Transactions, TransactionsError},
    watchdog::Watchdog,
};

/// Takes tasks one at a time.
pub struct Committer {
    transactions: Arc<Transactions>,
    watchdog: Arc<Watchdog>,
    tasks: Sender<Task>,
    closed: Receiver<Result<Closed, TransactionsError>>,
}

impl Committer {
    /// # Errors
    /// There are no more threads.
    pub fn start(transactions: Arc<Transactions>) -> Result<Self, TransactionsError> {
        let (tasks, todo) = bounded(1);
        let (done, closed) = bounded(1);
        let watchdog = Arc::new(Watchdog::default());
        let (transactions_there, watchdog_there) = (Arc::clone(&transactions), Arc::clone(&watchdog));
        std::thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || {
                for task in todo {
                    // One that was lost has a successor, which answers in its place.
                    let Ok(closed) = transactions_there.close(task, &watchdog_there) else { return };
                    if done.send(closed).is_err() {
                        return;
                    }
                }
            })
            .map_err(TransactionsError::Thread)?;
        Ok(Self { transactions, watchdog, tasks, closed })
    }

    /// What is waited for before a transaction can be begun.
    pub fn obstacle(&self) -> Option<String> {
        self.transactions.obstacle().clone()
    }

    pub fn take(&self, task: Task) {
        // The thread takes one task at a time, has none now, and ends after this value.
        let _ = self.tasks.send(task);
    }

    pub fn answers(&self) -> &Receiver<Result<Closed, TransactionsError>> {
        &self.closed
    }

    /// Whether the thread hung in a call and has a successor now. Its producer is for a new one to fence, and dropped
    /// once the call returns.
    ///
    /// # Errors
    /// There are no more threads.
    pub fn replaced(&mut self) -> Result<bool, TransactionsError> {
        if !self.watchdog.gives_up() {
            return Ok(false);
        }
        tracing::warn!("a commit hangs and is given up");
        *self = Self::start(Arc::clone(&self.transactions))?;
        Ok(true)
    }
}

impl Drop for Committer {
    /// Whatever the thread is at, a producer that it made later would fence one of the next run's.
    fn drop(&mut self) {
        self.watchdog.give_up();
    }
}

//! The thread that ends transactions, and its successor where librdkafka does not return.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::transaction::{Closed, Job, Transactions, TransactionsError};

/// A call should take a second at most, see [`Transactions`]. After this long it is taken to hang: librdkafka's
/// `send_offsets_to_transaction` may wait for ever for a broker that has left the cluster
/// (confluentinc/librdkafka#5511).
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// Takes jobs one at a time.
pub struct Committer {
    transactions: Arc<Transactions>,
    call: Arc<Call>,
    jobs: Sender<Job>,
    closed: Receiver<Result<Closed, TransactionsError>>,
}

impl Committer {
    /// # Errors
    /// There are no more threads.
    pub fn start(transactions: Arc<Transactions>) -> Result<Self, TransactionsError> {
        let (jobs, todo) = bounded(1);
        let (done, closed) = bounded(1);
        let call = Arc::new(Call::default());
        let (transactions_there, call_there) = (Arc::clone(&transactions), Arc::clone(&call));
        std::thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || {
                for job in todo {
                    let closed = transactions_there.close(job, &call_there);
                    if matches!(closed, Err(TransactionsError::GivenUp)) || done.send(closed).is_err() {
                        return;
                    }
                }
            })
            .map_err(TransactionsError::Thread)?;
        Ok(Self { transactions, call, jobs, closed })
    }

    pub fn take(&self, job: Job) {
        // The thread takes one job at a time, has none now, and ends after this value.
        let _ = self.jobs.send(job);
    }

    pub fn answers(&self) -> &Receiver<Result<Closed, TransactionsError>> {
        &self.closed
    }

    /// True where the thread hung in a call and has a successor now. Its producer is for a new one to fence, and dropped
    /// once the call returns.
    ///
    /// # Errors
    /// There are no more threads.
    pub fn replaced(&mut self) -> Result<bool, TransactionsError> {
        if !self.call.give_up() {
            return Ok(false);
        }
        tracing::warn!("a commit hangs and is given up");
        *self = Self::start(Arc::clone(&self.transactions))?;
        Ok(true)
    }
}

/// The call into librdkafka that a thread is in.
#[derive(Default)]
pub struct Call(Mutex<State>);

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    None,
    Since(Instant),
    /// Whatever comes of it, the thread must not go on: it would fence its successor.
    GivenUp,
}

impl Call {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// It took so long that it was given up.
    pub fn make<R>(&self, call: impl FnOnce() -> R) -> Result<R, TransactionsError> {
        *self.state() = State::Since(Instant::now());
        let result = call();
        let mut state = self.state();
        if matches!(*state, State::GivenUp) {
            return Err(TransactionsError::GivenUp);
        }
        *state = State::None;
        Ok(result)
    }

    fn give_up(&self) -> bool {
        let mut state = self.state();
        let hangs = matches!(*state, State::Since(since) if since.elapsed() > HANGS_AFTER);
        if hangs {
            *state = State::GivenUp;
        }
        hangs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_hangs_is_given_up() {
        let call = Call::default();
        assert!(!call.give_up());
        let made = call.make(|| assert!(!call.give_up()));
        assert!(made.is_ok());
        let hung = call.make(|| {
            *call.state() = State::Since(Instant::now() - HANGS_AFTER - Duration::from_millis(1));
            assert!(call.give_up());
            assert!(!call.give_up(), "it is given up once");
        });
        assert!(matches!(hung, Err(TransactionsError::GivenUp)));
    }
}

//! Calls into librdkafka that may hang.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A call should take a second at most, see [`Transactions`](super::transaction::Transactions). After this long it is
/// taken to hang: librdkafka's `send_offsets_to_transaction` may wait for ever for a broker that has left the cluster
/// (confluentinc/librdkafka#5511).
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// The call into librdkafka that a thread is in.
#[derive(Default)]
pub struct Watchdog(Mutex<Call>);

#[derive(Clone, Copy, Default)]
enum Call {
    #[default]
    None,
    Since(Instant),
    /// Whatever comes of it, the thread must not go on: it would fence its successor.
    Lost,
}

/// The call took so long that another thread took its place.
#[derive(Debug)]
pub struct Lost;

impl Watchdog {
    fn call(&self) -> MutexGuard<'_, Call> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// It took so long that it was taken for lost, or an earlier one was.
    pub fn watch<R>(&self, call: impl FnOnce() -> R) -> Result<R, Lost> {
        let mut state = self.call();
        if matches!(*state, Call::Lost) {
            return Err(Lost);
        }
        *state = Call::Since(Instant::now());
        drop(state);
        let result = call();
        let mut state = self.call();
        if matches!(*state, Call::Lost) {
            return Err(Lost);
        }
        *state = Call::None;
        Ok(result)
    }

    /// Takes this call, or the next, for lost.
    pub fn give_up(&self) {
        *self.call() = Call::Lost;
    }

    /// Whether a call hangs, which is said once: it is lost from then on.
    pub fn gives_up(&self) -> bool {
        let mut state = self.call();
        let hangs = matches!(*state, Call::Since(since) if since.elapsed() > HANGS_AFTER);
        if hangs {
            *state = Call::Lost;
        }
        hangs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_hangs_is_lost() {
        let watchdog = Watchdog::default();
        assert!(!watchdog.gives_up());
        let made = watchdog.watch(|| assert!(!watchdog.gives_up()));
        assert!(made.is_ok());
        let hung = watchdog.watch(|| {
            *watchdog.call() = Call::Since(Instant::now() - HANGS_AFTER - Duration::from_millis(1));
            assert!(watchdog.gives_up());
            assert!(!watchdog.gives_up(), "it is lost once");
        });
        assert!(hung.is_err());
        assert!(watchdog.watch(|| ()).is_err(), "the thread has a successor");
    }
}

//! What the tracks of a shard may do; the loop sets it.

use std::{
    future::poll_fn,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

/// An agreement between the loop and the tracks of one assignment of a partition.
#[derive(Default)]
pub struct Lease(Mutex<State>);

#[derive(Default)]
struct State {
    term: Term,
    /// The first record that is not complete: its blocks may take all the room there is.
    head: Option<i64>,
    /// Bytes of blocks made and not yet committed.
    held: usize,
    /// Bytes of blocks that may be held.
    room: usize,
    /// Tracks that wait for a change.
    waiting: Vec<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Term {
    #[default]
    Running,
    NoNew,
    Over,
}

impl Lease {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// No record is begun any more; those that are may finish.
    pub fn wind_down(&self) {
        self.change(|state| state.term = state.term.max(Term::NoNew));
    }

    /// All tracks are cancelled.
    pub fn revoke(&self) {
        if self.is_valid() {
            self.change(|state| state.term = Term::Over);
        }
    }

    /// Whether a record may be begun.
    pub fn may_begin(&self) -> bool {
        self.lock().term < Term::NoNew
    }

    /// Whether begun tracks may go on.
    pub fn is_valid(&self) -> bool {
        self.lock().term < Term::Over
    }

    /// Sets the head record, and how many bytes of blocks may be held.
    pub fn allow(&self, head: Option<i64>, room: usize) {
        let state = self.lock();
        if state.head != head || state.room != room {
            drop(state);
            self.change(|state| (state.head, state.room) = (head, room));
        }
    }

    /// Takes room for a block of the record at `offset`, as soon as there is some. `false` if the lease is over.
    ///
    /// Records behind the head leave half of the room to it. So the head always goes on: its blocks are sent and
    /// committed whatever the others do, and it is begun, as records are begun in order.
    pub async fn reserve(&self, offset: i64, bytes: usize) -> bool {
        poll_fn(|context| {
            let mut state = self.lock();
            if state.term == Term::Over {
                return Poll::Ready(false);
            }
            let room = if state.head.is_none_or(|head| offset <= head) { state.room } else { state.room / 2 };
            if state.held + bytes <= room || state.held == 0 {
                state.held += bytes;
                return Poll::Ready(true);
            }
            state.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Gives the room of a block back.
    pub fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.change(|state| state.held = state.held.saturating_sub(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::Arc, task::Context};

    use proptest::prelude::*;

    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Alarm(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Alarm {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn rings(alarm: &Alarm) -> usize {
        alarm.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[test]
    fn a_track_without_room_is_woken_by_room_and_by_the_end() {
        for ends in [false, true] {
            let (lease, alarm) = (Lease::default(), Arc::new(Alarm::default()));
            let waker = Waker::from(Arc::clone(&alarm));
            let mut context = Context::from_waker(&waker);
            lease.allow(Some(0), 100);
            assert_eq!(pin!(lease.reserve(0, 80)).poll(&mut context), Poll::Ready(true));
            let mut second = pin!(lease.reserve(0, 80));
            assert_eq!(second.as_mut().poll(&mut context), Poll::Pending);
            assert_eq!(rings(&alarm), 0);
            if ends {
                lease.revoke()
            } else {
                lease.release(80)
            }
            assert_eq!(rings(&alarm), 1);
            assert_eq!(second.as_mut().poll(&mut context), Poll::Ready(!ends));
        }
    }

    #[test]
    fn the_head_has_the_room_that_others_leave() {
        let lease = Lease::default();
        let mut context = Context::from_waker(Waker::noop());
        lease.allow(Some(3), 100);
        assert_eq!(pin!(lease.reserve(4, 40)).poll(&mut context), Poll::Ready(true));
        assert_eq!(pin!(lease.reserve(5, 40)).poll(&mut context), Poll::Pending);
        assert_eq!(pin!(lease.reserve(3, 60)).poll(&mut context), Poll::Ready(true));
    }

    proptest! {
        /// Whoever is refused can go on after enough was given back: no wake-up is lost, and the bound holds.
        #[test]
        fn room_is_bounded_and_never_lost(sizes in prop::collection::vec(1..60usize, 1..40)) {
            let lease = Lease::default();
            lease.allow(Some(0), 100);
            let alarm = Arc::new(Alarm::default());
            let waker = Waker::from(Arc::clone(&alarm));
            let mut context = Context::from_waker(&waker);
            let mut held: Vec<usize> = Vec::new();
            for bytes in sizes {
                let mut reserved = pin!(lease.reserve(0, bytes));
                loop {
                    match reserved.as_mut().poll(&mut context) {
                        Poll::Ready(true) => break,
                        Poll::Ready(false) => prop_assert!(false, "the lease is not over"),
                        Poll::Pending => {
                            let before = rings(&alarm);
                            prop_assert!(!held.is_empty(), "there is room and none is given");
                            lease.release(held.remove(0));
                            prop_assert!(rings(&alarm) > before, "nobody was woken");
                        }
                    }
                }
                held.push(bytes);
                prop_assert!(held.iter().sum::<usize>() <= 100);
            }
        }
    }
}

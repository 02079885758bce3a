//! The scores of one track's windows, computed on whichever worker has time.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use tonearm_schemas::reject::Stage;
use tonearm_stages::{
    infer::{ForwardError, Model},
    windows::Window,
};

use crate::{
    job::said,
    pool::{Piece, Pool, Tag},
};

/// The scores of one track's windows, filled in by whichever worker has them.
#[derive(Default)]
pub struct Scores {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Start frame and scores of each window, in time order; no scores until they are computed.
    windows: Vec<(u64, Option<Vec<f32>>)>,
    pending: usize,
    /// The earliest window that failed.
    failure: Option<(usize, ForwardError)>,
    busy: Duration,
    /// Who waits until nothing is pending.
    waiting: Option<Waker>,
}

/// Start frame and scores of every window, and the time they took; or the first window that failed, and why.
pub type Scored = Result<(Vec<(u64, Vec<f32>)>, Duration), (usize, ForwardError)>;

impl Scores {
    /// Scores windows on idle workers, or here if there is none.
    pub fn score(self: &Arc<Self>, pool: &Pool, tag: &Arc<Tag>, model: &Arc<dyn Model>, windows: &mut Vec<Window>) {
        for window in windows.drain(..) {
            let index = self.expect_one(window.start_frame);
            let (scores, model, at) = (Arc::clone(self), Arc::clone(model), Arc::clone(tag));
            let piece: Piece = Box::new(move || {
                at.at(Stage::Infer);
                let started = Instant::now();
                let result = catch_unwind(AssertUnwindSafe(|| model.forward(&window.values)))
                    .unwrap_or_else(|panic| Err(ForwardError::Panic(said(&*panic))));
                scores.put(index, result, started.elapsed());
            });
            if let Err(piece) = pool.offer(tag, piece) {
                piece();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect_one(&self, start_frame: u64) -> usize {
        let mut state = self.lock();
        state.pending += 1;
        state.windows.push((start_frame, None));
        state.windows.len() - 1
    }

    fn put(&self, index: usize, result: Result<Vec<f32>, ForwardError>, busy: Duration) {
        let mut state = self.lock();
        state.busy += busy;
        match result {
            Ok(scores) => state.windows[index].1 = Some(scores),
            Err(error) if state.failure.as_ref().is_none_or(|(earliest, _)| index < *earliest) => {
                state.failure = Some((index, error));
            }
            Err(_) => {}
        }
        state.pending -= 1;
        if state.pending == 0
            && let Some(waiting) = state.waiting.take()
        {
            drop(state);
            waiting.wake();
        }
    }

    /// Every expected window, once the last has its scores.
    pub async fn all(&self) -> Scored {
        poll_fn(|context| {
            let mut state = self.lock();
            if state.pending > 0 {
                state.waiting = Some(context.waker().clone());
                return Poll::Pending;
            }
            let busy = state.busy;
            Poll::Ready(match state.failure.take() {
                Some(failure) => Err(failure),
                None => {
                    let windows = std::mem::take(&mut state.windows);
                    Ok((windows.into_iter().filter_map(|(start, scores)| Some((start, scores?))).collect(), busy))
                }
            })
        })
        .await
    }
}

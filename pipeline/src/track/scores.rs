//! The scores of one track's windows, computed on whichever worker has time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tonearm_stages::{
    infer::{ForwardError, Model},
    windows::Window,
};

use super::text;
use crate::workers::{Pool, Task};

/// The scores of one track's windows, filled in by whichever worker has them.
#[derive(Default)]
pub struct Scores {
    state: Mutex<ScoresState>,
    all_done: Condvar,
}

#[derive(Default)]
struct ScoresState {
    /// Start frame and scores of each window, in time order; no scores until they are computed.
    windows: Vec<(u64, Option<Vec<f32>>)>,
    pending: usize,
    /// The earliest window that failed.
    failure: Option<(usize, ForwardError)>,
    busy: Duration,
}

/// Start frame and scores of every window, and the time they took; or the first window that failed, and why.
pub type Scored = Result<(Vec<(u64, Vec<f32>)>, Duration), (usize, ForwardError)>;

impl Scores {
    /// Scores windows on idle workers, or here where there is none.
    pub fn score<'env>(self: &Arc<Self>, pool: &Pool<'env>, model: &Arc<dyn Model>, windows: &mut Vec<Window>) {
        for window in windows.drain(..) {
            let index = self.expect_one(window.start_frame);
            let (scores, model) = (Arc::clone(self), Arc::clone(model));
            let piece: Task<'env> = Box::new(move |_| {
                let started = Instant::now();
                let result = catch_unwind(AssertUnwindSafe(|| model.forward(&window.values)))
                    .unwrap_or_else(|panic| Err(ForwardError::Panic(text(&*panic))));
                scores.put(index, result, started.elapsed());
            });
            if let Err(piece) = pool.offer(piece) {
                piece(pool);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ScoresState> {
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
        if state.pending == 0 {
            self.all_done.notify_all();
        }
    }

    /// Waits for every expected window, working on queued pieces meanwhile.
    pub fn wait(&self, pool: &Pool<'_>) -> Scored {
        while self.lock().pending > 0 && pool.help() {}
        let mut state = self.lock();
        while state.pending > 0 {
            state = self.all_done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.failure.take() {
            Some(failure) => Err(failure),
            None => {
                let windows = std::mem::take(&mut state.windows);
                let windows = windows.into_iter().filter_map(|(start, scores)| Some((start, scores?))).collect();
                Ok((windows, state.busy))
            }
        }
    }
}

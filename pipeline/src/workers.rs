//! The pool of CPU threads that all shards share.
//!
//! There are two kinds of tasks: a *record* (decode it, compute its features, see its windows scored) and a *piece* of a
//! record (score one window). Pieces go first, and a record gives one away only to a worker that would be idle, so a
//! single long record spreads over all workers while a full queue of records runs without any hand-over.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// A task. It gets the pool so that it can give pieces of itself away.
pub type Task<'env> = Box<dyn FnOnce(&Pool<'env>) + Send + 'env>;

/// Queues of tasks for threads that call [`Pool::work`]. `'env` is what tasks may borrow.
#[derive(Default)]
pub struct Pool<'env> {
    queues: Mutex<Queues<'env>>,
    changed: Condvar,
}

#[derive(Default)]
struct Queues<'env> {
    pieces: VecDeque<Task<'env>>,
    records: VecDeque<Task<'env>>,
    idle: usize,
    closed: bool,
}

impl<'env> Pool<'env> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs tasks on the calling thread until the pool is closed and empty. Tasks must not panic.
    pub fn work(&self) {
        let mut queues = self.lock();
        loop {
            if let Some(task) = queues.pieces.pop_front().or_else(|| queues.records.pop_front()) {
                drop(queues);
                task(self);
                queues = self.lock();
            } else if queues.closed {
                return;
            } else {
                queues.idle += 1;
                queues = self.changed.wait(queues).unwrap_or_else(PoisonError::into_inner);
                queues.idle -= 1;
            }
        }
    }

    /// Queues a record. The caller bounds how many there are.
    pub fn submit(&self, record: Task<'env>) {
        self.lock().records.push_back(record);
        self.changed.notify_one();
    }

    /// Gives a piece to an idle worker, or back to the caller where there is none.
    pub fn offer(&self, piece: Task<'env>) -> Result<(), Task<'env>> {
        let mut queues = self.lock();
        if queues.idle <= queues.pieces.len() {
            return Err(piece);
        }
        queues.pieces.push_back(piece);
        drop(queues);
        self.changed.notify_one();
        Ok(())
    }

    /// Runs one queued piece on the calling thread, if there is one.
    pub fn help(&self) -> bool {
        let piece = self.lock().pieces.pop_front();
        piece.map(|piece| piece(self)).is_some()
    }

    /// Lets the workers go once the queues are empty.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queues<'env>> {
        // Tasks run outside the lock, so a poisoned queue is still whole.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the pool when dropped, so that an error in the thread that feeds it cannot leave its workers waiting.
pub struct CloseOnDrop<'a, 'env>(pub &'a Pool<'env>);

impl Drop for CloseOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    #[test]
    fn every_task_runs_before_the_workers_leave() {
        let ran = AtomicUsize::new(0);
        let pool = Pool::new();
        for _ in 0..100 {
            pool.submit(Box::new(|_| _ = ran.fetch_add(1, Ordering::Relaxed)));
        }
        pool.close();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| pool.work());
            }
        });
        assert_eq!(ran.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn a_piece_reaches_an_idle_worker_while_its_record_is_running() {
        let met = Barrier::new(2);
        let pool = Pool::new();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| pool.work());
            }
            pool.submit(Box::new(|pool| {
                // Both sides of the barrier can only be reached on two threads at once.
                let mut piece: Task<'_> = Box::new(|_| _ = met.wait());
                while let Err(back) = pool.offer(piece) {
                    piece = back;
                    std::thread::yield_now();
                }
                met.wait();
                pool.close();
            }));
        });
    }

    #[test]
    fn a_piece_comes_back_when_every_worker_is_busy() {
        let pool = Pool::new();
        assert!(pool.offer(Box::new(|_| ())).is_err());
    }
}

//! The pool of CPU threads that all tracks share.
//!
//! There are two kinds of work: a *track*, a future that is polled here, and a *piece* of one (score one window).
//! Pieces go first, and a track gives one away only to a worker that would be idle, so a single long track spreads over
//! all workers while a full queue of them runs without any hand-over. Tracks that were put down and can go on come
//! next, new ones last.

use std::{
    collections::VecDeque,
    io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tonearm_schemas::reject::Stage;

/// A part of a track that any worker may do.
pub type Piece = Box<dyn FnOnce() + Send>;
type Runnable = async_task::Runnable<Arc<Tag>>;

/// Tracks that may be begun and not ended at a time, for each worker: one that runs, and one that waits. What a begun
/// track holds (a decoder, a block) is bounded by this, whatever the queue holds.
const BEGUN_PER_WORKER: usize = 2;

/// Which track a worker is at, for whoever asks what it does.
pub struct Tag {
    id: String,
    stage: AtomicU8,
    /// Milliseconds from `made` to the last step.
    moved: AtomicU64,
    made: Instant,
}

impl Tag {
    pub fn new(id: String, stage: Stage) -> Arc<Self> {
        let tag = Self { id, stage: AtomicU8::new(0), moved: AtomicU64::new(0), made: Instant::now() };
        tag.at(stage);
        Arc::new(tag)
    }

    /// Notes a step forward.
    pub fn at(&self, stage: Stage) {
        let number = Stage::ALL.iter().position(|known| *known == stage).unwrap_or(0);
        self.stage.store(number as u8, Ordering::Relaxed);
        self.moved.store(self.made.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub fn stage(&self) -> Stage {
        Stage::ALL.get(usize::from(self.stage.load(Ordering::Relaxed))).copied().unwrap_or(Stage::Decode)
    }

    /// For how long there was no step forward.
    fn still(&self) -> Duration {
        self.made.elapsed().saturating_sub(Duration::from_millis(self.moved.load(Ordering::Relaxed)))
    }
}

/// A worker that is at a track.
#[derive(Clone, Debug)]
pub struct Occupied {
    pub id: String,
    pub stage: Stage,
    /// For how long the track has made no step forward.
    pub still: Duration,
}

/// The threads.
pub struct Workers {
    pool: Pool,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// # Errors
    /// A thread cannot be started.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let slots = (0..count.get()).map(|_| Mutex::default()).collect();
        let queues = Mutex::new(Queues { may_begin: BEGUN_PER_WORKER * count.get(), ..Queues::default() });
        let pool = Pool(Arc::new(Shared { queues, changed: Condvar::new(), slots }));
        let mut workers = Self { pool, threads: Vec::new() };
        for number in 0..count.get() {
            let pool = workers.pool.clone();
            let thread =
                std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || pool.work(number))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What the workers are at.
    pub fn occupied(&self) -> Vec<Occupied> {
        let slots = self.pool.0.slots.iter();
        let tags = slots.filter_map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).clone());
        tags.map(|tag| Occupied { id: tag.id.clone(), stage: tag.stage(), still: tag.still() }).collect()
    }

    /// Waits until all there is to do is done.
    pub fn finish(mut self) {
        self.pool.close();
        for thread in self.threads.drain(..) {
            // What panics on a worker is caught there.
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.pool.close();
    }
}

/// The queues that the threads work on.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    queues: Mutex<Queues>,
    changed: Condvar,
    /// What each worker is at.
    slots: Vec<Mutex<Option<Arc<Tag>>>>,
}

#[derive(Default)]
struct Queues {
    pieces: VecDeque<(Arc<Tag>, Piece)>,
    resumed: VecDeque<Runnable>,
    records: VecDeque<Runnable>,
    /// Records that may still be begun.
    may_begin: usize,
    /// Tracks that have not ended.
    alive: usize,
    idle: usize,
    closed: bool,
}

enum Work {
    Track(Runnable),
    Piece(Arc<Tag>, Piece),
}

impl Pool {
    /// Queues a record's track. It begins behind those that were queued before, and when there is room for one more.
    pub fn spawn_record(&self, tag: Arc<Tag>, track: impl Future<Output = ()> + Send + 'static) {
        let begun = Begun(self.clone());
        let runnable = self.task(tag, async move {
            let _begun = begun;
            track.await;
        });
        self.lock().records.push_back(runnable);
        self.0.changed.notify_one();
    }

    /// Queues a track that is fed: it waits for what it is made of, so it takes no place of those that are not.
    pub fn spawn_fed(&self, tag: Arc<Tag>, track: impl Future<Output = ()> + Send + 'static) {
        self.task(tag, track).schedule();
    }

    fn task(&self, tag: Arc<Tag>, track: impl Future<Output = ()> + Send + 'static) -> Runnable {
        self.lock().alive += 1;
        let alive = Alive(self.clone());
        let pool = self.clone();
        let resume = move |runnable: Runnable| {
            pool.lock().resumed.push_back(runnable);
            pool.0.changed.notify_one();
        };
        let track = move |_: &Arc<Tag>| async move {
            let _alive = alive;
            track.await;
        };
        let (runnable, task) = async_task::Builder::new().metadata(tag).spawn(track, resume);
        task.detach();
        runnable
    }

    /// Gives a piece to an idle worker.
    ///
    /// # Errors
    /// No worker is idle; the piece comes back.
    pub fn offer(&self, tag: &Arc<Tag>, piece: Piece) -> Result<(), Piece> {
        let mut queues = self.lock();
        if queues.idle <= queues.pieces.len() {
            return Err(piece);
        }
        queues.pieces.push_back((Arc::clone(tag), piece));
        drop(queues);
        self.0.changed.notify_one();
        Ok(())
    }

    fn work(&self, number: usize) {
        while let Some(work) = self.next() {
            let tag = match &work {
                Work::Track(runnable) => runnable.metadata(),
                Work::Piece(tag, _) => tag,
            };
            tag.at(tag.stage());
            self.note(number, Some(Arc::clone(tag)));
            // Tracks answer for their own panics; this is the guard behind them, so that a worker never ends.
            let done = catch_unwind(AssertUnwindSafe(|| match work {
                Work::Track(runnable) => _ = runnable.run(),
                Work::Piece(_, piece) => piece(),
            }));
            self.note(number, None);
            if done.is_err() {
                tracing::error!("a worker caught a panic");
            }
        }
    }

    fn note(&self, number: usize, tag: Option<Arc<Tag>>) {
        if let Some(slot) = self.0.slots.get(number) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = tag;
        }
    }

    /// Waits for something to do. `None` once the pool is closed and nothing can come any more.
    fn next(&self) -> Option<Work> {
        let mut queues = self.lock();
        loop {
            if let Some((tag, piece)) = queues.pieces.pop_front() {
                return Some(Work::Piece(tag, piece));
            }
            if let Some(track) = queues.resumed.pop_front() {
                return Some(Work::Track(track));
            }
            if queues.may_begin > 0
                && let Some(track) = queues.records.pop_front()
            {
                queues.may_begin -= 1;
                return Some(Work::Track(track));
            }
            if queues.closed && queues.alive == 0 {
                return None;
            }
            queues.idle += 1;
            queues = self.0.changed.wait(queues).unwrap_or_else(PoisonError::into_inner);
            queues.idle -= 1;
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Nothing that can panic runs under this lock.
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record that was begun, until it ends.
struct Begun(Pool);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.lock().may_begin += 1;
        self.0.0.changed.notify_one();
    }
}

/// A track, until it ends.
struct Alive(Pool);

impl Drop for Alive {
    fn drop(&mut self) {
        let mut queues = self.0.lock();
        queues.alive -= 1;
        let last = queues.alive == 0;
        drop(queues);
        if last {
            self.0.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, atomic::AtomicUsize, mpsc};

    use futures_lite::future;

    use super::*;

    fn tag() -> Arc<Tag> {
        Tag::new("a-0-0".to_owned(), Stage::Decode)
    }

    fn workers(count: usize) -> Workers {
        Workers::start(NonZeroUsize::new(count).expect("workers")).expect("threads")
    }

    #[test]
    fn every_track_ends_before_the_workers_leave() {
        let (workers, ran) = (workers(3), Arc::new(AtomicUsize::new(0)));
        for _ in 0..100 {
            let ran = Arc::clone(&ran);
            workers.pool().spawn_record(tag(), async move {
                future::yield_now().await;
                ran.fetch_add(1, Ordering::Relaxed);
            });
        }
        workers.finish();
        assert_eq!(ran.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn a_piece_reaches_an_idle_worker_while_its_track_is_running() {
        let (workers, met) = (workers(2), Arc::new(Barrier::new(2)));
        let pool = workers.pool().clone();
        workers.pool().spawn_record(tag(), async move {
            // Both sides of the barrier can only be reached on two threads at once.
            let there = Arc::clone(&met);
            let mut piece: Piece = Box::new(move || _ = there.wait());
            while let Err(back) = pool.offer(&tag(), piece) {
                piece = back;
                std::thread::yield_now();
            }
            met.wait();
        });
        workers.finish();
    }

    #[test]
    fn a_piece_comes_back_if_every_worker_is_busy() {
        let workers = workers(1);
        let (said, hear) = mpsc::channel();
        let pool = workers.pool().clone();
        workers.pool().spawn_record(tag(), async move {
            let _ = said.send(pool.offer(&tag(), Box::new(|| ())).is_err());
        });
        assert_eq!(hear.recv(), Ok(true));
    }

    #[test]
    fn a_track_that_panics_takes_no_worker_with_it() {
        let (workers, ran) = (workers(1), Arc::new(AtomicUsize::new(0)));
        for _ in 0..10 {
            workers.pool().spawn_record(tag(), async { panic!("as planned") });
        }
        let counted = Arc::clone(&ran);
        workers.pool().spawn_record(tag(), async move { _ = counted.fetch_add(1, Ordering::Relaxed) });
        workers.finish();
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }

    /// Closed at first; who waits is woken when it opens.
    #[derive(Default)]
    struct Gate(Mutex<(bool, Vec<std::task::Waker>)>);

    impl Gate {
        async fn pass(&self) {
            std::future::poll_fn(|context| {
                let mut gate = self.0.lock().expect("the gate");
                gate.1.push(context.waker().clone());
                if gate.0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
        }

        fn open(&self) {
            let mut gate = self.0.lock().expect("the gate");
            gate.0 = true;
            gate.1.drain(..).for_each(std::task::Waker::wake);
        }
    }

    #[test]
    fn tracks_that_wait_hold_no_worker_and_only_so_many_are_begun() {
        let workers = workers(1);
        let (begun, all_begun) = mpsc::channel();
        let (gate, went) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        let (fed, wait) = mpsc::channel();
        for number in 0..5 {
            let (begun, gate, went) = (begun.clone(), Arc::clone(&gate), Arc::clone(&went));
            workers.pool().spawn_record(tag(), async move {
                let _ = begun.send(number);
                gate.pass().await;
                went.fetch_add(1, Ordering::Relaxed);
            });
        }
        // On one worker two are begun, and one that is fed beside them.
        let two: Vec<i32> = all_begun.iter().take(2).collect();
        assert_eq!(two, [0, 1]);
        workers.pool().spawn_fed(tag(), async move { _ = fed.send(()) });
        assert_eq!(wait.recv(), Ok(()));
        assert!(all_begun.try_recv().is_err(), "a third was begun");
        gate.open();
        workers.finish();
        assert_eq!(went.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_worker_tells_what_it_is_at() {
        let workers = workers(1);
        let (at, stop) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (here, until) = (Arc::clone(&at), Arc::clone(&stop));
        workers.pool().spawn_record(Tag::new("audio-3-7".to_owned(), Stage::Infer), async move {
            here.wait();
            until.wait();
        });
        at.wait();
        let occupied = workers.occupied();
        assert_eq!(
            occupied.iter().map(|at| (at.id.as_str(), at.stage)).collect::<Vec<_>>(),
            [("audio-3-7", Stage::Infer)]
        );
        stop.wait();
        workers.finish();
    }
}

//! Two strangers who look on: one reads committed results as they come, one asks where the group is.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::PARTITIONS;
use crate::{
    broker::Topics,
    records::{EndsOf, Positions, Reader},
    verifier::{Sample, Source},
};

/// Often enough to meet commits that are early, seldom enough to cost the workers nothing.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A broker that is away is asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A committed result, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub source: Source,
    /// When its record was published, in milliseconds since 1970.
    pub published_ms: i64,
}

pub struct Watch {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    stop: Arc<AtomicBool>,
    reading: JoinHandle<()>,
    asking: JoinHandle<Vec<Sample>>,
}

impl Watch {
    pub fn start(topics: &Topics) -> Self {
        let results = [topics.predictions.as_str(), topics.rejected.as_str()];
        let reader = Reader::new(&results);
        let positions = Positions::new(&topics.group, &topics.audio, PARTITIONS);
        let ends = EndsOf::new(&results, PARTITIONS, "read_uncommitted");
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (came, stopped) = (Arc::clone(&arrivals), Arc::clone(&stop));
        let reading = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(result) = reader.next(LOOK_EVERY) {
                    let (source, published_ms) = (result.source(), result.published_ms());
                    let arrival = Arrival { at: Instant::now(), source, published_ms };
                    came.lock().expect("no panic while it is held").push(arrival);
                }
            }
        });
        let stopped = Arc::clone(&stop);
        let asking = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                // In this order: a result that was written before the position is below the end.
                if let (Ok(positions), Ok(ends)) = (positions.now(ANSWER_WITHIN), ends.now(ANSWER_WITHIN)) {
                    samples.push(Sample { positions, ends });
                }
                std::thread::sleep(LOOK_EVERY);
            }
            samples
        });
        Self { arrivals, stop, reading, asking }
    }

    /// In the order they came.
    pub fn arrivals(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.arrivals.lock().expect("no panic while it is held")
    }

    /// Where the group was on the way.
    pub fn stop(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        self.reading.join().expect("committed results can be read");
        self.asking.join().expect("the group can be asked")
    }
}

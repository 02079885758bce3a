//! Records that keep coming while things go wrong.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{Options, PARTITIONS};
use crate::{
    audio::wav,
    chance::Chance,
    poison::{self, noise},
    records::{Input, Publisher},
};

/// Between two records. A worker of one thread makes at least twice as many, so that one alone keeps up.
const PERIOD: Duration = Duration::from_millis(60);

/// Publishes in turn to all partitions, until it is stopped.
pub struct Feed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Feed {
    pub fn start(topic: &str, Options { seed, poison, .. }: Options) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut publisher = Publisher::new(topic);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut chance = Chance::of(seed);
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let partition = n as i32 % PARTITIONS;
                let record = if chance.below(100) < poison { poison::any } else { record };
                publisher.send(&record(n, partition, &mut chance));
                std::thread::sleep(PERIOD);
            }
            publisher.finish().len()
        });
        Self { stop, thread }
    }

    /// How many records were published.
    pub fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the brokers take every record")
    }
}

/// Mostly short music; some of it longer than a commit interval, some of it noise, some without a key.
fn record(n: usize, partition: i32, chance: &mut Chance) -> Input {
    let hz = 80.0 + (n % 400) as f32;
    let value = match chance.below(40) {
        0 => wav(hz, 15.0, 8_000, 1),
        1 => noise(200_000, chance),
        2..6 => noise(100, chance),
        _ => wav(hz, 0.3, 8_000, 1),
    };
    let key = (chance.below(10) > 0).then(|| format!("track-{n}").into_bytes());
    Input { partition, key, value: Some(value), ..Input::default() }
}

//! How long a transaction may take: what it carries, over a link that is as slow as it has turned out to be.
//!
//! Readers of results see nothing behind an unfinished transaction, and a killed process leaves one open until its time
//! is over, unless a process with the same instance id starts before. So the time is short for usual results, and long
//! only for those that need it: the reject of a large record over a slow link.

use std::time::{Duration, Instant};

/// The slowest link that the short time is enough for.
const USUAL_BYTES_PER_S: u64 = 4 << 20;
const LEAST_BYTES_PER_S: u64 = 64 << 10;
/// What the short time carries, in seconds of the link.
const SHORT_S: u64 = 4;
/// Kafka's `transaction.max.timeout.ms` by default.
const LONGEST: Duration = Duration::from_secs(900);
/// How long after a large result the time is short again.
const KEPT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Allowance {
    short: Duration,
    bytes_per_s: u64,
    /// What producers are made with.
    granted: Duration,
    needed: Instant,
}

impl Allowance {
    pub fn new(short: Duration) -> Self {
        Self { short, bytes_per_s: USUAL_BYTES_PER_S, granted: short, needed: Instant::now() }
    }

    /// The time of a transaction of the next producer.
    pub fn granted(&self) -> Duration {
        self.granted
    }

    /// Whether a transaction of `bytes` may be expected to end in time.
    pub fn carries(&mut self, bytes: usize) -> bool {
        let needs = self.time_for(bytes);
        if needs > self.short {
            self.needed = Instant::now();
        }
        needs <= self.granted
    }

    /// Grants the time for a transaction of `bytes` from now on.
    pub fn grant(&mut self, bytes: usize) {
        self.granted = self.time_for(bytes).max(self.granted);
    }

    /// A transaction of `bytes` took longer than it may.
    pub fn expired(&mut self, bytes: usize) {
        if bytes as u64 > LEAST_BYTES_PER_S {
            self.bytes_per_s = (self.bytes_per_s / 2).max(LEAST_BYTES_PER_S);
        }
    }

    /// Goes back to the short time if nothing has needed a long one for a while. Returns whether that is another.
    pub fn shorten(&mut self) -> bool {
        let shorter = self.granted > self.short && self.needed.elapsed() >= KEPT;
        if shorter {
            self.granted = self.short;
        }
        shorter
    }

    fn time_for(&self, bytes: usize) -> Duration {
        let bytes = bytes as u64;
        if bytes <= SHORT_S * self.bytes_per_s {
            return self.short;
        }
        // Twice what the link should take.
        (self.short + Duration::from_secs(2 * bytes / self.bytes_per_s)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(5);

    #[test]
    fn usual_results_have_the_short_time() {
        let mut allowance = Allowance::new(SHORT);
        assert!(allowance.carries(16 << 20));
        assert_eq!(allowance.granted(), SHORT);
    }

    #[test]
    fn a_large_result_has_twice_the_time_of_its_link() {
        let mut allowance = Allowance::new(SHORT);
        assert!(!allowance.carries(40 << 20));
        allowance.grant(40 << 20);
        assert!(allowance.carries(40 << 20));
        assert_eq!(allowance.granted(), Duration::from_secs(5 + 20));
        assert!(!allowance.shorten(), "it was needed just now");
        allowance.needed -= KEPT;
        assert!(allowance.shorten());
        assert_eq!(allowance.granted(), SHORT);
    }

    #[test]
    fn a_link_that_is_slower_still_is_given_more_until_it_is_enough() {
        let mut allowance = Allowance::new(SHORT);
        let mut tries = 0;
        // A megabyte over 100 kB/s.
        while allowance.granted() < Duration::from_secs(10) {
            allowance.expired(1 << 20);
            if !allowance.carries(1 << 20) {
                allowance.grant(1 << 20);
            }
            tries += 1;
        }
        assert!(tries <= 6, "{tries}");
        allowance.grant(usize::MAX >> 10);
        assert_eq!(allowance.granted(), LONGEST);
    }
}

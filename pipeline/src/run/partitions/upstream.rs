//! Open transactions of producers upstream: what is behind the first record of one is not to be read before its end.

use std::time::{Duration, Instant};

use super::membership::Ends;

/// A transaction that is waited for is named in the log after this long, and then this often.
const SAY_AFTER: Duration = Duration::from_secs(30);
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What a shard has to wait for.
#[derive(Debug, Default)]
pub struct Upstream(Option<Wait>);

#[derive(Debug)]
struct Wait {
    /// Where the transaction begins.
    at: i64,
    since: Instant,
    /// When to say so.
    say: Instant,
}

impl Upstream {
    /// Notes the ends of the partition, and the position that is committed. Returns for how long it has waited for an
    /// open transaction if it is time to say so.
    pub fn watch(&mut self, ends: Ends, committed: i64, now: Instant) -> Option<Duration> {
        if ends.log <= ends.stable || committed < ends.stable {
            self.0 = None;
            return None;
        }
        let fresh = || Wait { at: ends.stable, since: now, say: now + SAY_AFTER };
        let wait = self.0.take_if(|wait| wait.at == ends.stable).unwrap_or_else(fresh);
        let wait = self.0.insert(wait);
        if now < wait.say {
            return None;
        }
        wait.say = now + SAY_AGAIN;
        Some(now.duration_since(wait.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(log: i64, stable: i64) -> Ends {
        Ends { log, stable, read: None }
    }

    #[test]
    fn a_transaction_is_named_after_half_a_minute_and_each_minute_then() {
        let (mut upstream, start) = (Upstream::default(), Instant::now());
        let said: Vec<u64> = (0..200)
            .filter_map(|second| upstream.watch(ends(9, 5), 5, start + Duration::from_secs(second)))
            .map(|waited| waited.as_secs())
            .collect();
        assert_eq!(said, [30, 90, 150]);
    }

    #[test]
    fn only_the_same_transaction_is_waited_for_longer() {
        let (mut upstream, start) = (Upstream::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let steps = [
            (0, ends(9, 5), 5),
            // It ends, and another begins.
            (29, ends(12, 8), 8),
            (31, ends(12, 8), 8),
            // There is something to do before it.
            (58, ends(12, 8), 7),
            (60, ends(12, 8), 8),
            // Nothing is open.
            (89, ends(12, 12), 12),
            (91, ends(12, 8), 8),
        ];
        for (second, ends, committed) in steps {
            assert_eq!(upstream.watch(ends, committed, at(second)), None, "at {second} s");
        }
        assert_eq!(upstream.watch(ends(12, 8), 8, at(121)), Some(SAY_AFTER));
    }
}

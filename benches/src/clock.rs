//! Two clocks at once: the time that passed, and the CPU time this process took of it, all threads together.

use std::time::{Duration, Instant};

use nix::{
    sys::time::TimeValLike,
    time::{ClockId, clock_gettime},
};

/// One measurement, in seconds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Time {
    pub cpu_s: f64,
    pub wall_s: f64,
}

/// Measures `work`.
pub fn time(work: impl FnOnce()) -> Time {
    let (cpu, wall) = (cpu(), Instant::now());
    work();
    Time { cpu_s: (self::cpu() - cpu).as_secs_f64(), wall_s: wall.elapsed().as_secs_f64() }
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock");
    Duration::from_nanos(now.num_nanoseconds() as u64)
}

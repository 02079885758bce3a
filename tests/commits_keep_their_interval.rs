//! `runtime.commit_interval_ms`: commits begin that far apart under load, and a result after a pause does not wait for one.

use std::{
    thread,
    time::{Duration, Instant},
};

use tonearm_tests::{
    PATIENCE,
    audio::wav,
    broker::Topics,
    program::Run,
    records::{Input, Reader, publish},
};

/// Long beside what a result takes, so that a wait for it shows on any machine.
const INTERVAL: Duration = Duration::from_secs(3);

#[test]
fn commits_under_load_begin_an_interval_apart_and_none_is_waited_for_after_a_pause() {
    let topics = Topics::new(1);
    let reader = Reader::new(&[&topics.predictions]);
    let record = || publish(&topics.audio, &[Input::new(0, "track", wav(110.0, 0.3, 8_000, 1))]);
    let started = Instant::now();
    let running = Run::new(&topics).set("runtime.commit_interval_ms", INTERVAL.as_millis()).ready();

    let (mut commits, mut published) = (0.0, 0);
    while commits < 2.0 {
        assert!(started.elapsed() < PATIENCE, "{commits} commits: {}", running.log());
        record();
        published += 1;
        commits = running.metrics().sum("tonearm_commits_total");
    }
    let intervals = started.elapsed().as_secs_f64() / INTERVAL.as_secs_f64();
    assert!(commits <= intervals, "{commits} commits in {intervals:.2} intervals");
    reader.take(published);

    thread::sleep(INTERVAL);
    let after_a_pause = Instant::now();
    record();
    reader.take(1);
    let waited = after_a_pause.elapsed();
    assert!(waited < INTERVAL, "the result took {waited:?}");
    running.stop();
}

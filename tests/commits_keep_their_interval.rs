//! `runtime.commit_interval_ms`: commits begin that far apart under load, and a result after a pause does not wait for
//! one.

use std::{
    thread,
    time::{Duration, Instant},
};

use tonearm_tests::{
    PATIENCE,
    audio::wav,
    broker::Topics,
    models,
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
    let run = Run::new(&topics).model(&models::tiny());
    let running = run.set("runtime.commit_interval_ms", INTERVAL.as_millis()).ready();

    // There is always something to commit.
    let deadline = Instant::now() + PATIENCE;
    let (mut before_the_first, mut published) = (Instant::now(), 0);
    let metrics = loop {
        assert!(Instant::now() < deadline, "no second commit: {}", running.log());
        let asked = Instant::now();
        let metrics = running.metrics();
        match metrics.sum("tonearm_commits_total") {
            0.0 => before_the_first = asked,
            1.0 => {}
            _ => break metrics,
        }
        record();
        published += 1;
    };
    let commits = metrics.sum("tonearm_commits_total");
    // A commit counts when it is done, so the first had begun a little before.
    let took = before_the_first.elapsed() + Duration::from_secs_f64(metrics.value("tonearm_commit_seconds_sum"));
    assert!(took >= INTERVAL.mul_f64(commits - 1.0), "{commits} commits within {took:?}");
    reader.take(published);

    thread::sleep(INTERVAL);
    let after_a_pause = Instant::now();
    record();
    reader.take(1);
    let waited = after_a_pause.elapsed();
    assert!(waited < INTERVAL, "the result took {waited:?}");
    running.stop();
}

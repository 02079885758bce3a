//! Partitions are worked on side by side: a slow record holds no other partition back, one partition with all the load
//! uses the whole machine, and no record takes so long that its process loses its place in the group.

use std::{fs, time::Duration};

use tonearm_tests::{
    audio::wav,
    broker::Topics,
    models::{self, WINDOW},
    program::{Run, Running},
    records::{Input, Reader, committed, publish, read_all},
    wait,
};

const SHORT_RECORDS: usize = 20;

/// Two workers that take this long for a window.
fn run(topics: &Topics, per_window_ms: u64) -> Run {
    Run::new(topics).model(&models::slow(Duration::from_millis(per_window_ms))).set("runtime.workers", 2)
}

fn of_windows(partition: i32, key: &str, windows: usize) -> Input {
    Input::new(partition, key, wav(110.0, windows as f32 * WINDOW.as_secs_f32(), 8_000, 1))
}

#[test]
fn a_slow_record_holds_no_other_partition_back() {
    let topics = Topics::new(2);
    let running = run(&topics, 50).ready();
    // 8 s of work, beside 1 s.
    publish(&topics.audio, &[of_windows(0, "long", 160)]);
    wait("the long record in flight", || (running.metrics().sum("tonearm_in_flight_bytes") > 0.0).then_some(()));
    let short = |n| of_windows(1, &format!("short-{n}"), 1);
    publish(&topics.audio, &(0..SHORT_RECORDS).map(short).collect::<Vec<_>>());
    let first = Reader::new(&[&topics.predictions]).take(SHORT_RECORDS);
    assert!(first.iter().all(|result| result.partition == 1), "the long record was done before the short ones");
    wait("the short records committed", || {
        (committed(&topics.group, &topics.audio, 2) == [None, Some(SHORT_RECORDS as i64)]).then_some(())
    });
    wait("the long record's result", || (read_all(&topics.predictions).len() == SHORT_RECORDS + 1).then_some(()));
    running.stop();
}

/// CPU time of each worker, in the kernel's ticks.
fn worker_ticks(running: &Running) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", running.id())).expect("the program runs");
    let stat = |task: &fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    let ticks = |stat: &str| -> Option<u64> {
        // proc(5): fields 14 and 15 are user and system time; the name before them is in brackets.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    let stats: Vec<String> = tasks.flatten().map(|task| stat(&task)).collect();
    stats.iter().filter(|stat| stat.contains("(worker-")).filter_map(|stat| ticks(stat)).collect()
}

fn assert_shared(ticks: &[u64]) {
    let all: u64 = ticks.iter().sum();
    // Half of an even share: the start and the end of a track are one worker's.
    assert!(ticks.iter().all(|&ticks| ticks * 2 * 2 >= all), "ticks of the workers: {ticks:?}");
}

#[test]
fn one_long_record_is_worked_on_by_all_workers() {
    let topics = Topics::new(1);
    let running = run(&topics, 20).ready();
    publish(&topics.audio, &[of_windows(0, "long", 100)]);
    Reader::new(&[&topics.predictions]).take(1);
    assert_shared(&worker_ticks(&running));
    running.stop();
}

#[test]
fn one_partition_with_all_the_load_uses_all_workers() {
    let topics = Topics::new(4);
    let running = run(&topics, 10).ready();
    let record = |n| of_windows(2, &format!("track-{n}"), 6);
    publish(&topics.audio, &(0..30).map(record).collect::<Vec<_>>());
    Reader::new(&[&topics.predictions]).take(30);
    assert_shared(&worker_ticks(&running));
    running.stop();
}

#[test]
fn a_record_longer_than_the_poll_interval_costs_no_membership() {
    let topics = Topics::new(1);
    let config = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    // The least that brokers allow; librdkafka wants the poll interval at least as long.
    let properties = "\"session.timeout.ms\" = 6000\n\"max.poll.interval.ms\" = 6000\n";
    fs::write(config.path(), format!("[kafka.properties]\n{properties}")).expect("a file");
    let running = run(&topics, 500)
        .config(config.path())
        .set("kafka.group_protocol", "classic")
        .set("runtime.workers", 1)
        .ready();
    publish(&topics.audio, &[of_windows(0, "long", 14)]);
    let result = Reader::new(&[&topics.predictions]).take(1).remove(0).prediction();
    assert!(result.timing_ms.total > 6000.0, "it took {} ms, so this shows nothing", result.timing_ms.total);
    let metrics = running.metrics();
    assert_eq!(metrics.value("tonearm_rebalances_total{event=\"lost\"}"), 0.0);
    assert_eq!(metrics.value("tonearm_rebalances_total{event=\"assigned\"}"), 1.0);
    let log = running.stop();
    assert!(!log.contains("poll"), "{log}");
}

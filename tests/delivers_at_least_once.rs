//! `delivery = "at-least-once"`: everything has a result, in order; after a crash some may have two.

use std::{collections::BTreeSet, time::Duration};

use tonearm_tests::{
    audio::wav,
    broker::Topics,
    chance, models,
    program::Run,
    records::{Input, Reader, committed, publish, read_all},
    wait,
};

const PARTITIONS: i32 = 2;
const RECORDS: usize = 60;

fn backlog(topics: &Topics) {
    let input =
        |n: usize| Input::new(n as i32 % PARTITIONS, &format!("track-{n:03}"), wav(90.0 + n as f32, 0.3, 8_000, 1));
    publish(&topics.audio, &(0..RECORDS).map(input).collect::<Vec<_>>());
}

fn run(topics: &Topics) -> Run {
    // Slow enough that a process is killed or stopped at work.
    Run::new(topics).model(&models::slow(Duration::from_millis(20))).set("runtime.delivery", "at-least-once")
}

fn all_committed(topics: &Topics) -> bool {
    let end = RECORDS as i64 / i64::from(PARTITIONS);
    committed(&topics.group, &topics.audio, PARTITIONS).iter().all(|position| *position == Some(end))
}

#[test]
fn every_record_has_a_result_in_order_and_offsets_are_committed() {
    let topics = Topics::new(PARTITIONS);
    backlog(&topics);
    let running = run(&topics).start();
    Reader::new(&[&topics.predictions]).take(RECORDS);
    wait("the group's offsets", || all_committed(&topics).then_some(()));
    running.stop();
    let results: Vec<(i32, String)> =
        read_all(&topics.predictions).iter().map(|result| (result.partition, result.key_text())).collect();
    assert_eq!(results.len(), RECORDS);
    assert!(results.is_sorted(), "{results:?}");
}

#[test]
fn a_second_run_repeats_nothing_after_a_clean_stop() {
    let topics = Topics::new(PARTITIONS);
    backlog(&topics);
    let reader = Reader::new(&[&topics.predictions]);
    let first = run(&topics).start();
    reader.take(5);
    first.stop();
    let second = run(&topics).start();
    reader.take(RECORDS - 5);
    wait("the group's offsets", || all_committed(&topics).then_some(()));
    second.stop();
    assert_eq!(read_all(&topics.predictions).len(), RECORDS);
}

#[test]
fn a_killed_process_loses_nothing() {
    let topics = Topics::new(PARTITIONS);
    topics.session_timeout(Duration::from_secs(3));
    backlog(&topics);
    let instance = chance::name("instance");
    let reader = Reader::new(&[&topics.predictions]);
    let first = run(&topics).set("kafka.instance_id", &instance).start();
    reader.take(10);
    first.kill();
    let second = run(&topics).set("kafka.instance_id", &instance).start();
    wait("the group's offsets", || all_committed(&topics).then_some(()));
    second.stop();
    let distinct: BTreeSet<String> = read_all(&topics.predictions).iter().map(|result| result.key_text()).collect();
    assert_eq!(distinct.len(), RECORDS);
}

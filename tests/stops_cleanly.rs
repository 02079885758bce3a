//! SIGTERM finishes or abandons what is being worked on within a deadline, commits, and leaves the group; a second
//! signal stops at once.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use tonearm_tests::{
    audio::wav,
    broker::{Topics, brokers},
    models::{self, WINDOW},
    program::{Run, Running},
    records::{Input, Reader, committed, publish, read_all},
    wait, wait_within,
};

const PARTITIONS: i32 = 4;
/// What may come on top of a deadline on a busy machine: a commit, and leaving the group.
const MARGIN: Duration = Duration::from_secs(8);

fn short_records(topics: &Topics, count: usize) {
    let record =
        |n: usize| Input::new(n as i32 % PARTITIONS, &format!("track-{n}"), wav(80.0 + n as f32, 0.3, 8_000, 1));
    publish(&topics.audio, &(0..count).map(record).collect::<Vec<_>>());
}

/// Publishes one record that takes a worker four seconds, and waits until it is being worked on.
fn start_on_long_record(topics: &Topics, drain_timeout_ms: u64) -> Running {
    let model = models::slow(Duration::from_millis(400));
    let run = Run::new(topics).model(&model).set("runtime.workers", 1);
    let running = run.set("runtime.drain_timeout_ms", drain_timeout_ms).ready();
    publish(&topics.audio, &[Input::new(0, "long", wav(110.0, 10.0 * WINDOW.as_secs_f32(), 8_000, 1))]);
    wait("the record in flight", || (running.metrics().sum("tonearm_in_flight_bytes") > 0.0).then_some(()));
    running
}

#[test]
fn sigterm_under_load_commits_what_is_done_and_leaves_the_rest_to_the_next_run() {
    const RECORDS: usize = 200;
    let model = models::slow(Duration::from_millis(20));
    let topics = Topics::new(PARTITIONS);
    short_records(&topics, RECORDS);
    let reader = Reader::new(&[&topics.predictions]);
    let mut first = Run::new(&topics).model(&model).start();
    reader.take(8);
    first.signal(Signal::SIGTERM);
    let status = first.wait_within(Duration::from_secs(10) + MARGIN);
    assert_eq!(status.code(), Some(0), "it ended with {status}");

    let results = read_all(&topics.predictions);
    assert!(results.len() < RECORDS, "the load was gone before the signal came");
    let of_partition = |partition| results.iter().filter(|result| result.partition == partition).count() as i64;
    for (partition, position) in committed(&topics.group, &topics.audio, PARTITIONS).into_iter().enumerate() {
        assert_eq!(position.unwrap_or(0), of_partition(partition as i32), "partition {partition}");
    }

    let second = Run::new(&topics).model(&model).start();
    reader.take(RECORDS - 8);
    second.stop();
    let mut keys: Vec<String> = read_all(&topics.predictions).iter().map(|result| result.key_text()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), RECORDS, "lost");
    assert_eq!(read_all(&topics.predictions).len(), RECORDS, "repeated");
}

#[test]
fn sigterm_waits_for_a_record_being_worked_on() {
    let topics = Topics::new(1);
    let running = start_on_long_record(&topics, 120_000);
    assert_eq!(read_all(&topics.predictions).len(), 0, "the record was done before the signal came");
    running.stop();
    assert_eq!(read_all(&topics.predictions).len(), 1);
    assert_eq!(committed(&topics.group, &topics.audio, 1), [Some(1)]);
}

#[test]
fn a_record_that_is_not_done_in_time_is_left_to_the_next_run() {
    let topics = Topics::new(1);
    let mut running = start_on_long_record(&topics, 200);
    running.signal(Signal::SIGTERM);
    let status = running.wait_within(Duration::from_millis(200) + MARGIN);
    assert_eq!(status.code(), Some(0), "it ended with {status}");
    assert_eq!(read_all(&topics.predictions).len(), 0, "the record was done in time, so this shows nothing");
    assert_eq!(committed(&topics.group, &topics.audio, 1), [None]);

    let next = Run::new(&topics).model(&models::tiny()).start();
    Reader::new(&[&topics.predictions]).take(1);
    next.stop();
    assert_eq!(read_all(&topics.predictions).len(), 1);
}

#[test]
fn a_worker_that_is_stuck_outlives_no_deadline() {
    const DRAIN: Duration = Duration::from_secs(1);
    // Two seconds for the last commit and for leaving the group, as promised; the rest is for busy machines.
    const GRACE: Duration = Duration::from_millis(2_500);
    let topics = Topics::new(1);
    let model = models::stuck_by_sound(Duration::from_secs(300));
    let run = Run::new(&topics).model(&model).set("runtime.workers", 1);
    let mut running = run.set("runtime.drain_timeout_ms", DRAIN.as_millis()).ready();
    publish(&topics.audio, &[Input::new(0, "stuck", wav(110.0, 0.5, 8_000, 1))]);
    wait("the record in flight", || (running.metrics().sum("tonearm_in_flight_bytes") > 0.0).then_some(()));
    running.signal(Signal::SIGTERM);
    let asked = Instant::now();
    running.wait_within(DRAIN + GRACE);
    println!("stopped after {:?}", asked.elapsed());
    assert_eq!(committed(&topics.group, &topics.audio, 1), [None]);
}

#[test]
fn a_second_signal_stops_at_once() {
    let topics = Topics::new(1);
    let mut running = start_on_long_record(&topics, 240_000);
    running.signal(Signal::SIGTERM);
    wait("the first signal's answer", || running.log().contains("stopping").then_some(()));
    assert_eq!(running.ended(), None, "it should be finishing the record");
    let asked = Instant::now();
    running.signal(Signal::SIGTERM);
    let status = running.wait_within(Duration::from_secs(3));
    println!("stopped after {:?}", asked.elapsed());
    // As a shell names the end by this signal.
    assert_eq!(status.code(), Some(128 + Signal::SIGTERM as i32));
}

#[test]
fn ctrl_c_is_as_good_as_sigterm() {
    let topics = Topics::new(1);
    let mut running = Run::new(&topics).model(&models::tiny()).ready();
    running.signal(Signal::SIGINT);
    let status = running.wait_within(MARGIN);
    assert_eq!(status.code(), Some(0), "it ended with {status}");
}

#[test]
fn the_group_is_empty_after_a_stop() {
    let topics = Topics::new(PARTITIONS);
    // A member that only went away would keep its partitions for this long.
    topics.session_timeout(Duration::from_secs(45));
    short_records(&topics, 8);
    let running = Run::new(&topics).model(&models::tiny()).start();
    Reader::new(&[&topics.predictions]).take(8);
    running.stop();

    let next: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", &topics.group)
        .set("group.protocol", "consumer")
        .create()
        .expect("a consumer");
    next.subscribe(&[&topics.audio]).expect("a subscription");
    wait_within(Duration::from_secs(20), "all partitions for the next member", || {
        let _ = next.poll(Duration::from_millis(50));
        let assigned = next.assignment().expect("an assignment").count();
        (assigned == PARTITIONS as usize).then_some(())
    });
}

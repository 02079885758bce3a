//! Killing a process at any moment loses nothing and repeats nothing for a reader of committed results.

use std::{collections::BTreeSet, time::Duration};

use nix::sys::signal::Signal;
use tonearm_schemas::reject::header;
use tonearm_tests::{
    audio::wav,
    broker::Topics,
    chance::{self, Chance},
    program::{Run, Running},
    records::{Input, Reader, Record, committed, publish, read_all},
    wait,
};

const PARTITIONS: i32 = 4;
const RECORDS: i64 = 200;
/// As often as fits into a minute: members that were killed keep their partitions for 3 s.
const KILLS: u32 = 4;

/// Short records, every tenth of them broken.
fn backlog(topics: &Topics) -> i64 {
    topics.session_timeout(Duration::from_secs(3));
    let inputs: Vec<Input> = (0..RECORDS)
        .map(|n| {
            let value = if n % 10 == 9 { vec![n as u8; 100] } else { wav(100.0 + n as f32, 0.3, 8_000, 1) };
            Input::new(n as i32 % PARTITIONS, &format!("track-{n}"), value)
        })
        .collect();
    publish(&topics.audio, &inputs);
    RECORDS / i64::from(PARTITIONS)
}

/// Partition and offset of the record a result is of.
fn source(result: &Record) -> (i32, i64) {
    let header = |name| result.header(name).first().and_then(|text| text.parse::<i64>().ok());
    match (header(header::PARTITION), header(header::OFFSET)) {
        (Some(partition), Some(offset)) => (partition as i32, offset),
        _ => match result.prediction().source {
            tonearm_schemas::prediction::Source::Record { partition, offset, .. } => (partition, offset),
            tonearm_schemas::prediction::Source::File { .. } => panic!("a prediction of a record has no file"),
        },
    }
}

/// Every record has one result, in order, and the group is where the results are.
fn assert_exactly_once(topics: &Topics, per_partition: i64) {
    let mut all = BTreeSet::new();
    for topic in [&topics.predictions, &topics.rejected] {
        let mut last = (0, -1);
        for result in read_all(topic) {
            let source = source(&result);
            assert_eq!(result.partition, source.0);
            assert!(all.insert(source), "{source:?} has two results");
            assert!(last < source, "{source:?} comes after {last:?} in {topic}");
            last = source;
        }
    }
    let missing: Vec<(i32, i64)> = (0..PARTITIONS)
        .flat_map(|partition| (0..per_partition).map(move |offset| (partition, offset)))
        .filter(|source| !all.contains(source))
        .collect();
    assert!(missing.is_empty(), "no result of {missing:?}");
    assert_eq!(all.len() as i64, per_partition * i64::from(PARTITIONS));
    // Positions may lie behind the last record by the markers of transactions, never before it.
    for position in committed(&topics.group, &topics.audio, PARTITIONS) {
        assert!(position.is_some_and(|position| position >= per_partition), "the group is at {position:?}");
    }
}

/// Ends processes at random moments until `KILLS` of them are gone, then lets the last one finish.
fn end_again_and_again(end: impl Fn(Running)) {
    let mut chance = Chance::new();
    let topics = Topics::new(PARTITIONS);
    let per_partition = backlog(&topics);
    let instance = chance::name("instance");
    let start = || Run::new(&topics).set("kafka.instance_id", &instance).set("runtime.commit_interval_ms", 50).start();
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let mut came = 0;
    for kill in 0..KILLS {
        let running = start();
        // Not before it writes, or half of the kills would meet a program that has done nothing yet. From then on any
        // moment is as good as another: this wait is the point of the test.
        let target = came + chance.below(20) as usize;
        while came <= target && came < RECORDS as usize - 20 * (KILLS - kill) as usize {
            came += reader.take(1).len();
        }
        std::thread::sleep(Duration::from_millis(chance.below(250)));
        end(running);
    }
    let running = start();
    reader.take(RECORDS as usize - came);
    running.stop();
    assert_exactly_once(&topics, per_partition);
}

#[test]
fn a_process_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    end_again_and_again(Running::kill);
}

#[test]
fn a_process_that_is_stopped_again_and_again_loses_and_repeats_nothing() {
    end_again_and_again(|running| {
        // A program answers signals once it is up.
        running.wait_until_ready();
        running.stop();
    });
}

#[test]
fn a_process_takes_over_from_another_that_is_killed() {
    let mut chance = Chance::new();
    let topics = Topics::new(PARTITIONS);
    topics.session_timeout(Duration::from_secs(3));
    let (first, second) = (Run::new(&topics).ready(), Run::new(&topics).ready());
    // Both are at work before the first record comes.
    let partitions = |running: &Running| running.metrics().value("tonearm_assigned_partitions");
    wait("two partitions for each", || ((partitions(&first), partitions(&second)) == (2.0, 2.0)).then_some(()));
    let per_partition = backlog(&topics);
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let before = 20 + chance.below(40) as usize;
    reader.take(before);
    std::thread::sleep(Duration::from_millis(chance.below(250)));
    first.kill();
    reader.take(RECORDS as usize - before);
    second.stop();
    assert_exactly_once(&topics, per_partition);
}

#[test]
fn a_process_that_joins_or_leaves_under_load_loses_and_repeats_nothing() {
    let topics = Topics::new(PARTITIONS);
    let per_partition = backlog(&topics);
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let first = Run::new(&topics).start();
    reader.take(20);
    let second = Run::new(&topics).ready();
    let partitions = || second.metrics().value("tonearm_assigned_partitions");
    wait("partitions for the second process", || (partitions() == 2.0).then_some(()));
    first.signal(Signal::SIGTERM);
    reader.take(RECORDS as usize - 20);
    first.stop();
    second.stop();
    assert_exactly_once(&topics, per_partition);
}

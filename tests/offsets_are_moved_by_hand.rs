//! An operator sees where the group is, and moves it while nobody is in it.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use tonearm_tests::{
    PATIENCE,
    answers::{FAILED, USAGE, assert_says_only, with},
    audio::wav,
    broker::{Topics, brokers},
    program::{Answer, Run},
    records::{Input, Reader, committed, publish, read_all},
    wait,
};

fn offsets(topics: &Topics, arguments: &[&str]) -> Answer {
    with(&topics.options(), &[&["offsets"], arguments, &["--brokers", brokers()]].concat())
}

fn tracks(partition: i32, count: usize) -> Vec<Input> {
    (0..count).map(|n| Input::new(partition, &format!("{partition}-{n}"), wav(220.0, 0.3, 8_000, 1))).collect()
}

/// The numbers of a line of `offsets show`.
fn numbers(answer: &Answer, partition: i32) -> Vec<String> {
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    let rows = answer.out.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    rows.into_iter().find(|row| row[0] == partition.to_string()).expect("a line for each partition")
}

#[test]
fn positions_are_shown_with_what_is_left() {
    let topics = Topics::new(2);
    publish(&topics.audio, &tracks(1, 3));
    let before = offsets(&topics, &["show"]);
    assert_eq!(numbers(&before, 0), ["0", "none", "0", "0", "0"]);
    assert_eq!(numbers(&before, 1), ["1", "none", "0", "3", "3"]);
    assert_eq!(offsets(&topics, &["skip", "--partition", "1", "--to", "2", "--yes"]).code, Some(0));
    assert_eq!(numbers(&offsets(&topics, &["show"]), 1), ["1", "2", "0", "3", "1"]);
}

#[test]
fn a_record_that_is_skipped_gets_no_result_and_those_behind_it_do() {
    let topics = Topics::new(2);
    publish(&topics.audio, &[tracks(0, 2), tracks(1, 2)].concat());
    let unasked = offsets(&topics, &["skip", "--partition", "1"]);
    assert_eq!(unasked.code, Some(USAGE), "{unasked:?}");
    assert!(unasked.out.contains("offset 0: key \"1-0\"") && unasked.err.contains("--yes"), "{unasked:?}");
    assert_eq!(committed(&topics.group, &topics.audio, 2), [None, None]);
    assert_eq!(offsets(&topics, &["skip", "--partition", "1", "--yes"]).code, Some(0));
    assert_eq!(committed(&topics.group, &topics.audio, 2), [None, Some(1)]);
    let running = Run::new(&topics).ready();
    Reader::new(&[&topics.predictions]).take(3);
    running.stop();
    let sources: BTreeSet<(i32, i64)> = read_all(&topics.predictions).iter().map(|record| record.source()).collect();
    assert_eq!(sources, BTreeSet::from([(0, 0), (0, 1), (1, 1)]));
}

#[test]
fn a_group_with_members_is_not_moved() {
    for protocol in ["consumer", "classic"] {
        let topics = Topics::new(1);
        publish(&topics.audio, &tracks(0, 2));
        let mut running = Run::new(&topics).set("kafka.group_protocol", protocol).ready();
        wait("both are committed", || (committed(&topics.group, &topics.audio, 1) == [Some(2)]).then_some(()));
        let refused = offsets(&topics, &["reset", "--to", "earliest", "--yes"]);
        assert_eq!(refused.code, Some(FAILED), "{refused:?}");
        assert!(refused.err.contains(&topics.group) && refused.err.contains("stop every `tonearm run`"), "{refused:?}");
        assert_eq!(committed(&topics.group, &topics.audio, 1), [Some(2)]);
        // A terminal that goes away ends it as an operator would.
        running.signal(Signal::SIGHUP);
        assert_eq!(running.wait_within(PATIENCE).code(), Some(0), "{}", running.log());
        assert!(running.log().contains("left the group"), "{}", running.log());
        assert_eq!(offsets(&topics, &["reset", "--to", "earliest", "--yes"]).code, Some(0));
        assert_eq!(committed(&topics.group, &topics.audio, 1), [Some(0)]);
    }
}

#[test]
fn a_time_is_the_first_record_published_then_or_later() {
    let topics = Topics::new(1);
    let published_at = |ms| Input { timestamp_ms: Some(ms), ..tracks(0, 1).remove(0) };
    publish(&topics.audio, &[published_at(1_767_225_600_000), published_at(1_767_225_660_000)]);
    let to = |time: &str| {
        let answer = offsets(&topics, &["reset", "--to", time, "--yes"]);
        assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
        committed(&topics.group, &topics.audio, 1)
    };
    assert_eq!(to("2026-01-01T00:00:00Z"), [Some(0)]);
    assert_eq!(to("2026-01-01T00:00:01Z"), [Some(1)]);
    assert_eq!(to("2026-01-01T00:02:00Z"), [Some(2)]);
    assert_eq!(to("latest"), [Some(2)]);
    assert_eq!(to("1"), [Some(1)]);
}

#[test]
fn places_that_are_not_there_are_named() {
    let topics = Topics::new(2);
    publish(&topics.audio, &tracks(1, 2));
    let refused = |arguments: &[&str], fragments: &[&str]| {
        let answer = offsets(&topics, &[arguments, &["--yes"]].concat());
        assert_says_only(&answer, USAGE, fragments);
    };
    refused(&["skip", "--partition", "2"], &["--partition 2", "0 to 1", &topics.audio]);
    refused(&["skip", "--partition", "1", "--to", "3"], &["--to 3", "at 0", "ends at 2"]);
    refused(&["skip", "--partition", "1", "--to", "0"], &["--to 0 is not ahead"]);
    refused(&["reset", "--to", "3"], &["--to 3", "0..=0", "partition 0"]);
    refused(&["reset", "--to", "soon"], &["--to \"soon\"", "earliest, latest"]);
    let end = offsets(&topics, &["skip", "--partition", "0", "--yes"]);
    assert_says_only(&end, FAILED, &["no record to skip", "partition 0", &topics.audio]);
    assert_eq!(committed(&topics.group, &topics.audio, 2), [None, None]);
}

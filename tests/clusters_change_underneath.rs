//! Topics are made anew, grow and lose records, groups are forgotten, and producers upstream leave transactions open:
//! each record that is there has its one result all the same, and what is not there is said.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rdkafka::{
    ClientConfig, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use tonearm_tests::{
    PATIENCE,
    audio::wav,
    broker::{Topics, brokers, create, delete, delete_group, delete_records, grow, recreate},
    chance, models,
    program::{Run, Running},
    records::{Input, Positions, Reader, Record, committed, publish, read_all},
    wait,
};

/// As long as a model may take for a track in tests that need records in flight.
const SLOW: Duration = Duration::from_millis(100);

/// Short tracks for a partition, each with a key of its own.
fn tracks(partition: i32, name: &str, count: usize) -> Vec<Input> {
    let track = |n: usize| Input::new(partition, &format!("{name}-{n:02}"), wav(220.0, 0.3, 8_000, 1));
    (0..count).map(track).collect()
}

fn run(topics: &Topics) -> Run {
    Run::new(topics).model(&models::tiny())
}

/// Runs until there are `results` in all, and returns what was logged.
fn run_until(run: Run, topics: &Topics, results: usize) -> String {
    let running = run.start();
    Reader::new(&[&topics.predictions, &topics.rejected]).take(results);
    running.stop()
}

/// All predictions and rejects.
fn results(topics: &Topics) -> Vec<Record> {
    [read_all(&topics.predictions), read_all(&topics.rejected)].concat()
}

/// How many results there are of each key.
fn counts(topics: &Topics) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    results(topics).iter().for_each(|result| *counts.entry(result.key_text()).or_default() += 1);
    counts
}

/// Each of `inputs` has one result.
#[track_caller]
fn assert_once(topics: &Topics, inputs: &[Input]) {
    let counts = counts(topics);
    for input in inputs {
        let key = String::from_utf8_lossy(input.key.as_deref().unwrap_or_default()).into_owned();
        assert_eq!(counts.get(&key), Some(&1), "results of {key}: {counts:?}");
    }
}

/// Waits until the group has passed `ends` in the topic that is there.
#[track_caller]
fn wait_until_committed(topics: &Topics, ends: &[i64]) {
    let positions = Positions::new(&topics.group, &topics.audio, ends.len() as i32);
    let ends: Vec<Option<i64>> = ends.iter().copied().map(Some).collect();
    // The group's coordinator may just be starting.
    wait("all is committed", || positions.now(PATIENCE).is_ok_and(|found| found == ends).then_some(()));
}

/// What the group's position in partition 0 says of the topic it is in.
fn topic_of_position(topics: &Topics) -> String {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", &topics.group)
        .create()
        .expect("a consumer");
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topics.audio, 0);
    let found = consumer.committed_offsets(asked, PATIENCE).expect("the broker answers");
    let metadata = found.elements()[0].metadata().to_owned();
    let topic = metadata.strip_prefix("tonearm topic=").expect("a position of ours names its topic");
    topic.split(' ').next().expect("an id").to_owned()
}

/// Makes the input topic anew while records of the old one are worked on: at once, or when the process has missed it.
fn assert_a_new_topic_is_read(protocol: &str, old: usize, new: usize, at_once: bool) {
    let topics = Topics::new(1);
    let (old, new) = (tracks(0, "old", old), tracks(0, "new", new));
    publish(&topics.audio, &old);
    let running = Run::new(&topics).model(&models::slow(SLOW)).set("kafka.group_protocol", protocol).start();
    Reader::new(&[&topics.predictions]).take(4);
    let before = topic_of_position(&topics);
    delete(&topics.audio);
    if !at_once {
        wait("the topic is missed", || running.log().contains("nknown topic").then_some(()));
    }
    create(&[(&topics.audio, 1)]);
    publish(&topics.audio, &new);
    wait_until_committed(&topics, &[new.len() as i64]);
    let log = running.stop();
    assert_once(&topics, &new);
    assert!(counts(&topics).values().all(|count| *count == 1), "{:?}", counts(&topics));
    assert_ne!(topic_of_position(&topics), before);
    assert!(log.contains("the topic was deleted and made again"), "{log}");
}

#[test]
fn a_topic_made_anew_at_once_is_read_from_its_first_record() {
    assert_a_new_topic_is_read("consumer", 20, 30, true);
}

#[test]
fn a_topic_made_anew_later_is_read_from_its_first_record() {
    assert_a_new_topic_is_read("consumer", 20, 30, false);
}

#[test]
fn a_topic_made_anew_at_once_is_read_from_its_first_record_by_a_classic_group() {
    assert_a_new_topic_is_read("classic", 20, 30, true);
}

#[test]
fn a_topic_made_anew_later_is_read_from_its_first_record_by_a_classic_group() {
    assert_a_new_topic_is_read("classic", 20, 30, false);
}

/// No read fails, and no record comes that a commit could find out by.
#[test]
fn a_topic_made_anew_that_ends_where_the_old_one_ended_is_read() {
    let topics = Topics::new(1);
    let (old, new) = (tracks(0, "old", 5), tracks(0, "new", 5));
    publish(&topics.audio, &old);
    let running = run(&topics).set("kafka.group_protocol", "classic").start();
    wait_until_committed(&topics, &[5]);
    running.signal(Signal::SIGSTOP);
    recreate(&topics.audio, 1);
    publish(&topics.audio, &new);
    running.signal(Signal::SIGCONT);
    Reader::new(&[&topics.predictions]).take(10);
    wait_until_committed(&topics, &[5]);
    running.stop();
    assert_once(&topics, &[old, new].concat());
}

#[test]
fn a_topic_made_anew_with_other_partitions_is_read() {
    for (protocol, partitions) in [("classic", 1), ("consumer", 1), ("classic", 3), ("consumer", 3)] {
        let topics = Topics::with_partitions(2, 3);
        let every = |name: &str, partitions: i32| -> Vec<Input> {
            (0..partitions).flat_map(|partition| tracks(partition, &format!("{name}-{partition}"), 5)).collect()
        };
        let (old, new) = (every("old", 2), every("new", partitions));
        publish(&topics.audio, &old);
        let running = run(&topics).set("kafka.group_protocol", protocol).start();
        wait_until_committed(&topics, &[5, 5]);
        recreate(&topics.audio, partitions);
        publish(&topics.audio, &new);
        wait_until_committed(&topics, &vec![5; partitions as usize]);
        running.wait_until_ready();
        running.stop();
        assert_once(&topics, &[old, new].concat());
    }
}

#[test]
fn a_topic_made_anew_while_nobody_runs_is_read_from_its_first_record() {
    let topics = Topics::new(1);
    let (old, new) = (tracks(0, "old", 20), tracks(0, "new", 30));
    publish(&topics.audio, &old);
    run_until(run(&topics), &topics, 20);
    let before = topic_of_position(&topics);
    recreate(&topics.audio, 1);
    publish(&topics.audio, &new);
    run_until(run(&topics), &topics, 50);
    assert_once(&topics, &[old, new].concat());
    assert_eq!(committed(&topics.group, &topics.audio, 1), [Some(30)]);
    assert_ne!(topic_of_position(&topics), before);
}

fn upstream() -> ThreadedProducer<DefaultProducerContext> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("transactional.id", chance::name("upstream"))
        .create()
        .expect("a producer");
    producer.init_transactions(PATIENCE).expect("the broker keeps transactions");
    producer
}

fn lag(running: &Running, partition: i32) -> Option<f64> {
    let series = format!("tonearm_lag_records{{partition=\"{partition}\"}}");
    running.metrics().named("tonearm_lag_records").find(|(name, _)| *name == series).map(|(_, lag)| lag)
}

#[test]
fn records_of_an_open_transaction_are_lag_until_they_are_committed_and_predicted() {
    let topics = Topics::new(1);
    let producer = upstream();
    let begin = |inputs: &[Input]| {
        producer.begin_transaction().expect("a transaction");
        for input in inputs {
            let (key, value) = (input.key.as_deref().expect("a key"), input.value.as_deref().expect("a value"));
            producer.send(BaseRecord::to(&topics.audio).partition(0).key(key).payload(value)).expect("it is queued");
        }
        producer.flush(PATIENCE).expect("the broker takes them");
    };
    let inputs = tracks(0, "upstream", 3);
    begin(&inputs);
    let running = run(&topics).ready();
    wait("a lag before the first commit", || (lag(&running, 0) == Some(3.0)).then_some(()));
    assert_eq!(committed(&topics.group, &topics.audio, 1), [None]);
    producer.commit_transaction(PATIENCE).expect("a commit");
    Reader::new(&[&topics.predictions]).take(3);
    // The fourth offset is the transaction's marker.
    wait_until_committed(&topics, &[4]);
    wait("no lag", || (lag(&running, 0) == Some(0.0)).then_some(()));
    // Nobody is to see these, and they are passed with their marker.
    begin(&tracks(0, "void", 2));
    wait("a lag", || (lag(&running, 0) == Some(2.0)).then_some(()));
    producer.abort_transaction(PATIENCE).expect("an abort");
    wait_until_committed(&topics, &[7]);
    wait("no lag", || (lag(&running, 0) == Some(0.0)).then_some(()));
    running.stop();
    assert_once(&topics, &inputs);
    assert_eq!(counts(&topics).len(), inputs.len());
}

#[test]
fn a_transaction_upstream_that_stays_open_is_named_after_half_a_minute() {
    let topics = Topics::new(2);
    publish(&topics.audio, &tracks(1, "before", 3));
    let producer = upstream();
    producer.begin_transaction().expect("a transaction");
    producer.send(BaseRecord::to(&topics.audio).partition(1).key(b"open").payload(b"open")).expect("it is queued");
    producer.flush(PATIENCE).expect("the broker takes it");
    let began = Instant::now();
    let running = run(&topics).ready();
    let line = wait("the transaction is named", || {
        let log = running.log();
        log.lines().find(|line| line.contains("an open transaction of its producer")).map(str::to_owned)
    });
    assert!(began.elapsed() >= Duration::from_secs(30), "named after {:?}", began.elapsed());
    for fragment in ["WARN", "partition=1", "offset=3", "waited for 30 s"] {
        assert!(line.contains(fragment), "{line}");
    }
    assert_eq!((lag(&running, 0), lag(&running, 1)), (Some(0.0), Some(1.0)));
    producer.abort_transaction(PATIENCE).expect("an abort");
    wait("no lag", || (lag(&running, 1) == Some(0.0)).then_some(()));
    let log = running.stop();
    assert_eq!(log.matches("an open transaction of its producer").count(), 1, "{log}");
}

/// The group's offsets expire between two runs, and a few records come meanwhile.
fn assert_positions_are_read_back(topics: &Topics, first: &[Input], then: &[Input]) {
    publish(&topics.audio, first);
    run_until(run(topics), topics, first.len());
    delete_group(&topics.group);
    publish(&topics.audio, then);
    let log = run_until(run(topics), topics, first.len() + then.len());
    assert_once(topics, &[first, then].concat());
    assert!(log.contains("read back from its results"), "{log}");
}

#[test]
fn positions_that_the_brokers_forgot_are_read_back_from_results() {
    let topics = Topics::new(2);
    let first = [tracks(0, "a", 5), tracks(1, "b", 5)].concat();
    assert_positions_are_read_back(&topics, &first, &[tracks(0, "c", 2), tracks(1, "d", 2)].concat());
}

#[test]
fn positions_are_read_back_from_results_in_other_partitions() {
    let topics = Topics::with_partitions(2, 3);
    let first = [tracks(0, "a", 5), tracks(1, "b", 5)].concat();
    assert_positions_are_read_back(&topics, &first, &[tracks(0, "c", 2), tracks(1, "d", 2)].concat());
}

#[test]
fn positions_are_read_back_from_rejects_where_there_are_no_others() {
    let topics = Topics::new(1);
    let noise = |name: &str| Input::new(0, name, b"no audio at all".to_vec());
    assert_positions_are_read_back(&topics, &[noise("a"), noise("b")], &[noise("c")]);
}

#[test]
fn results_of_an_older_topic_of_the_same_name_are_not_taken_for_those_of_this_one() {
    let topics = Topics::new(1);
    let (old, new, more) = (tracks(0, "old", 10), tracks(0, "new", 3), tracks(0, "more", 12));
    publish(&topics.audio, &old);
    run_until(run(&topics), &topics, 10);
    recreate(&topics.audio, 1);
    delete_group(&topics.group);
    publish(&topics.audio, &new);
    run_until(run(&topics), &topics, 13);
    assert_once(&topics, &[&old[..], &new].concat());
    // From now on the topics have an offset in common, and both have results.
    delete_group(&topics.group);
    publish(&topics.audio, &more);
    run_until(run(&topics), &topics, 25);
    assert_once(&topics, &[old, new, more].concat());
}

#[test]
fn a_group_without_positions_starts_where_it_is_told_to() {
    let topics = Topics::new(1);
    let (first, then) = (tracks(0, "a", 5), tracks(0, "b", 2));
    publish(&topics.audio, &first);
    run_until(run(&topics), &topics, 5);

    delete_group(&topics.group);
    let mut refused = run(&topics).set("kafka.missing_offsets", "stop").start();
    assert_eq!(refused.wait_within(PATIENCE).code(), Some(3), "{}", refused.log());
    let log = refused.log();
    assert!(log.contains("no position in partition 0") && log.contains("tonearm offsets reset"), "{log}");

    let latest = run(&topics).set("kafka.missing_offsets", "latest").ready();
    publish(&topics.audio, &then);
    wait_until_committed(&topics, &[7]);
    latest.stop();
    assert_once(&topics, &[first, then].concat());

    delete_group(&topics.group);
    run_until(run(&topics).set("kafka.missing_offsets", "earliest"), &topics, 14);
    assert!(counts(&topics).values().all(|count| *count == 2), "{:?}", counts(&topics));
}

#[test]
fn records_deleted_while_nobody_runs_are_counted() {
    let topics = Topics::new(1);
    let (first, then) = (tracks(0, "a", 10), tracks(0, "b", 10));
    publish(&topics.audio, &first);
    run_until(run(&topics), &topics, 10);
    publish(&topics.audio, &then);
    delete_records(&topics.audio, 0, 15);
    let running = run(&topics).start();
    Reader::new(&[&topics.predictions]).take(15);
    assert_eq!(running.metrics().value("tonearm_skipped_records_total"), 5.0);
    let log = running.stop();
    assert_once(&topics, &[&first[..], &then[5..]].concat());
    assert!(log.contains("deleted records before they were read") && log.contains("from=10 to=15"), "{log}");
}

#[test]
fn records_deleted_behind_the_back_of_a_slow_process_are_counted() {
    const COUNT: usize = 60;
    const BEFORE: i64 = 50;
    let topics = Topics::new(1);
    // More than is read ahead.
    let track = |n: usize| Input::new(0, &n.to_string(), wav(220.0, 10.0, 8_000, 1));
    let inputs: Vec<Input> = (0..COUNT).map(track).collect();
    publish(&topics.audio, &inputs);
    let slow = models::slow(Duration::from_millis(10));
    let running = Run::new(&topics).model(&slow).set("runtime.in_flight_mib", 1).start();
    Reader::new(&[&topics.predictions]).take(1);
    delete_records(&topics.audio, 0, BEFORE);
    wait_until_committed(&topics, &[COUNT as i64]);
    let skipped = running.metrics().value("tonearm_skipped_records_total");
    let log = running.stop();
    let from = BEFORE - skipped as i64;
    assert!(0 < from && from < BEFORE, "{skipped} are skipped");
    assert!(log.contains(&format!("from={from} to={BEFORE}")), "{log}");
    let results: Vec<i64> = results(&topics).iter().map(|result| result.source().1).collect();
    let expected: Vec<i64> = (0..from).chain(BEFORE..COUNT as i64).collect();
    assert_eq!(results, expected);
}

/// In every partition of results, those of an input partition are in its order.
fn assert_in_order(topics: &Topics) {
    let mut last: BTreeMap<(i32, i32), i64> = BTreeMap::new();
    for result in results(topics) {
        let (partition, offset) = result.source();
        let before = last.insert((result.partition, partition), offset);
        assert!(before.is_none_or(|before| before < offset), "{before:?} of partition {partition} before {offset}");
    }
}

#[test]
fn partitions_that_the_input_gets_are_read_before_the_results_have_as_many() {
    let topics = Topics::new(1);
    let running = run(&topics).ready();
    let [a, b, c, d] = [tracks(0, "a", 5), tracks(1, "b", 5), tracks(0, "c", 5), tracks(1, "d", 5)];
    publish(&topics.audio, &a);
    grow(&topics.audio, 2);
    publish(&topics.audio, &b);
    wait_until_committed(&topics, &[5, 5]);
    for topic in [&topics.predictions, &topics.rejected] {
        grow(topic, 2);
    }
    wait("the results topics are seen to have grown", || {
        running.log().contains("inputs: 2, outputs: 2, rejected: 2").then_some(())
    });
    publish(&topics.audio, &[&c[..], &d].concat());
    wait_until_committed(&topics, &[10, 10]);
    running.stop();
    assert_once(&topics, &[a, b, c, d].concat());
    assert_in_order(&topics);
    for result in results(&topics).iter().filter(|result| result.source().1 >= 5) {
        assert_eq!(result.partition, result.source().0, "of {}", result.key_text());
    }
}

#[test]
fn partitions_that_the_input_gets_after_the_results_keep_their_numbers() {
    let topics = Topics::new(1);
    let running = run(&topics).ready();
    let (a, b) = (tracks(0, "a", 5), tracks(1, "b", 5));
    publish(&topics.audio, &a);
    for topic in [&topics.predictions, &topics.rejected, &topics.audio] {
        grow(topic, 2);
    }
    publish(&topics.audio, &b);
    wait_until_committed(&topics, &[5, 5]);
    running.stop();
    assert_once(&topics, &[a, b].concat());
    assert_in_order(&topics);
    assert!(results(&topics).iter().all(|result| result.partition == result.source().0));
}

#[test]
fn a_partition_whose_blocks_have_no_partition_yet_waits_for_it() {
    let topics = Topics::between_stages(1);
    let running = run(&topics).set("runtime.stages", "decode").ready();
    let [a, b, c] = [tracks(0, "a", 3), tracks(1, "b", 3), tracks(0, "c", 3)];
    grow(&topics.audio, 2);
    publish(&topics.audio, &[&a[..], &b].concat());
    let held = |running: &Running| {
        running.get("/health/ready").filter(|(status, body)| *status == 503 && body.contains("partition 1 at offset 0"))
    };
    let (_, body) = wait("a partition that is held", || held(&running));
    assert!(body.contains(&topics.pcm), "{body}");
    publish(&topics.audio, &c);
    wait("the other partition goes on", || {
        (committed(&topics.group, &topics.audio, 2) == [Some(6), None]).then_some(())
    });
    grow(&topics.pcm, 2);
    wait_until_committed(&topics, &[6, 3]);
    running.wait_until_ready();
    running.stop();
    let blocks: BTreeSet<(i32, String)> =
        read_all(&topics.pcm).iter().map(|block| (block.partition, block.key_text())).collect();
    let of =
        |input: &Input| (input.partition, String::from_utf8_lossy(input.key.as_deref().unwrap_or_default()).into());
    assert_eq!(blocks, [a, b, c].concat().iter().map(of).collect());
}

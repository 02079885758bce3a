//! Killing a process at any moment loses nothing and repeats nothing for a reader of committed results.

use std::time::Duration;

use nix::sys::signal::Signal;
use tonearm_tests::{
    PATIENCE,
    audio::wav,
    broker::Topics,
    chance::{self, Chance},
    models,
    program::{Run, Running},
    records::{EndsOf, Input, Positions, Reader, committed, publish, read_all},
    verifier::{History, verify},
    wait, wait_within,
};

const PARTITIONS: i32 = 4;
const RECORDS: usize = 200;
/// As often as fits into a minute: members that were killed keep their partitions for 3 s.
const KILLS: usize = 4;

/// A process whose records keep a worker busy for a while, so that most kills meet it at work.
fn run(topics: &Topics) -> Run {
    Run::new(topics).model(&models::slow(Duration::from_millis(10)))
}

/// Short records, every tenth of them broken.
fn backlog(topics: &Topics, records: usize) {
    topics.session_timeout(Duration::from_secs(3));
    let inputs: Vec<Input> = (0..records)
        .map(|n| {
            let value = if n % 10 == 9 { vec![n as u8; 100] } else { wav(100.0 + (n % 400) as f32, 0.3, 8_000, 1) };
            Input::new(n as i32 % PARTITIONS, &format!("track-{n}"), value)
        })
        .collect();
    publish(&topics.audio, &inputs);
}

/// Every record has one result, in order, and the group is where the results are.
#[track_caller]
fn assert_exactly_once(topics: &Topics, records: usize) {
    let verdict = verify(&History {
        published: read_all(&topics.audio),
        predictions: read_all(&topics.predictions),
        rejected: read_all(&topics.rejected),
        positions: committed(&topics.group, &topics.audio, PARTITIONS),
    });
    println!("{verdict}");
    verdict.assert_faultless();
    assert_eq!(verdict.records, records);
}

/// Ends processes at random moments until `KILLS` of them are gone, then lets the last one finish.
fn end_again_and_again(end: impl Fn(Running)) {
    let mut chance = Chance::new();
    let topics = Topics::new(PARTITIONS);
    backlog(&topics, RECORDS);
    let instance = chance::name("instance");
    let start = || run(&topics).set("kafka.instance_id", &instance).set("runtime.commit_interval_ms", 50).start();
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let mut came = 0;
    for kill in 0..KILLS {
        let running = start();
        // Not before it writes, or half of the kills would meet a program that has done nothing yet. From then on any
        // moment is as good as another: this wait is the point of the test.
        let target = came + chance.below(20) as usize;
        while came <= target && came < RECORDS - 20 * (KILLS - kill) {
            came += reader.take(1).len();
        }
        // A signal before its first line finds no program yet that would hear it.
        wait("its log", || (!running.log().is_empty()).then_some(()));
        std::thread::sleep(Duration::from_millis(chance.below(250)));
        end(running);
    }
    let running = start();
    reader.take(RECORDS - came);
    // All may have come from those before it.
    running.wait_until_ready();
    running.stop();
    assert_exactly_once(&topics, RECORDS);
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

/// Kills one of two processes `kills` times, at random moments all over the `records`.
fn kill_one_of_two_again_and_again(records: usize, kills: usize) {
    let mut chance = Chance::new();
    let topics = Topics::new(PARTITIONS);
    backlog(&topics, records);
    let instances = [chance::name("instance"), chance::name("instance")];
    let start = |of: usize| {
        let run = run(&topics).set("kafka.instance_id", &instances[of]).set("runtime.workers", 2);
        Some(run.set("runtime.commit_interval_ms", 50).start())
    };
    let mut pair = [start(0), start(1)];
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let share = records / kills;
    let mut came = 0;
    for kill in 0..kills {
        let target = kill * share + chance.below(share as u64) as usize;
        came += reader.take(target.saturating_sub(came)).len();
        std::thread::sleep(Duration::from_millis(chance.below(250)));
        let victim = chance.below(2) as usize;
        pair[victim].take().into_iter().for_each(Running::kill);
        pair[victim] = start(victim);
    }
    reader.take(records - came);
    pair.into_iter().flatten().for_each(|running| {
        running.wait_until_ready();
        running.stop();
    });
    assert_exactly_once(&topics, records);
}

#[test]
fn two_processes_that_are_killed_in_turn_lose_and_repeat_nothing() {
    kill_one_of_two_again_and_again(RECORDS, KILLS);
}

#[test]
#[ignore = "45 s for what the test above shows with fewer kills; `make chaos` runs it"]
fn two_processes_that_are_killed_forty_times_lose_and_repeat_nothing() {
    kill_one_of_two_again_and_again(800, 40);
}

/// What a killed process left open hides later results from readers until the brokers give it up, unless the next
/// process voids it.
#[test]
fn a_process_voids_what_it_left_open_when_it_was_killed() {
    let topics = Topics::new(PARTITIONS);
    backlog(&topics, 40);
    let instance = chance::name("instance");
    // The longest there is: the brokers would give the transaction up after twice this time.
    let run = || run(&topics).set("kafka.instance_id", &instance).set("runtime.commit_interval_ms", 5_000);
    let ends = |isolation| EndsOf::new(&[&topics.predictions], PARTITIONS, isolation).now(PATIENCE).expect("an answer");
    let first = run().start();
    wait("results in a transaction", || ends("read_uncommitted").values().all(|&end| end > 0).then_some(()));
    first.kill();
    let written = ends("read_uncommitted");
    assert!(ends("read_committed").values().all(|&end| end == 0), "the transaction was over before the kill");
    let second = run().ready();
    for (partition, end) in ends("read_committed") {
        assert!(end > written[&partition], "{partition:?}: readers are still held up at {end}");
    }
    Reader::new(&[&topics.predictions, &topics.rejected]).take(40);
    second.stop();
    assert_exactly_once(&topics, 40);
}

#[test]
fn a_process_takes_over_from_another_that_is_killed() {
    let mut chance = Chance::new();
    let topics = Topics::new(PARTITIONS);
    topics.session_timeout(Duration::from_secs(3));
    let (first, second) = (run(&topics).ready(), run(&topics).ready());
    // Both are at work before the first record comes.
    let partitions = |running: &Running| running.metrics().value("tonearm_assigned_partitions");
    wait("two partitions for each", || ((partitions(&first), partitions(&second)) == (2.0, 2.0)).then_some(()));
    backlog(&topics, RECORDS);
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let before = 20 + chance.below(40) as usize;
    reader.take(before);
    std::thread::sleep(Duration::from_millis(chance.below(250)));
    first.kill();
    reader.take(RECORDS - before);
    second.stop();
    assert_exactly_once(&topics, RECORDS);
}

#[test]
fn a_process_that_joins_or_leaves_under_load_loses_and_repeats_nothing() {
    let topics = Topics::new(PARTITIONS);
    backlog(&topics, RECORDS);
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let mut first = run(&topics).start();
    reader.take(20);
    let second = run(&topics).ready();
    let partitions = || second.metrics().value("tonearm_assigned_partitions");
    wait("partitions for the second process", || (partitions() == 2.0).then_some(()));
    first.signal(Signal::SIGTERM);
    reader.take(RECORDS - 20);
    assert!(first.wait_within(PATIENCE).success());
    second.stop();
    assert_exactly_once(&topics, RECORDS);
}

/// A kill hits the moment between two steps that should be one but seldom; looking is cheap, so it is done often.
#[test]
fn wherever_a_process_is_stopped_the_group_is_where_its_results_are() {
    let mut chance = Chance::new();
    let topics = Topics::new(PARTITIONS);
    backlog(&topics, RECORDS);
    // Whoever is stopped for longer than this is no member any more.
    topics.session_timeout(Duration::from_secs(45));
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let positions = Positions::new(&topics.group, &topics.audio, PARTITIONS);
    // Many small transactions.
    let running = run(&topics).set("runtime.workers", 1).set("runtime.commit_interval_ms", 10).start();
    let mut results = vec![0; PARTITIONS as usize];
    while results.iter().sum::<i64>() < RECORDS as i64 {
        results[reader.take(1)[0].partition as usize] += 1;
        std::thread::sleep(Duration::from_millis(chance.below(30)));
        running.signal(Signal::SIGSTOP);
        // What was committed becomes visible topic by topic.
        wait_within(Duration::from_secs(10), "the group where the results are", || {
            while let Some(result) = reader.next(Duration::from_millis(20)) {
                results[result.partition as usize] += 1;
            }
            let group = positions.now(Duration::from_secs(5)).expect("the broker answers");
            let group: Vec<i64> = group.into_iter().map(|position| position.unwrap_or(0)).collect();
            (group == results).then_some(())
        });
        running.signal(Signal::SIGCONT);
    }
    running.stop();
    assert_exactly_once(&topics, RECORDS);
}

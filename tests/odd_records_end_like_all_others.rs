//! Whatever can be published has its one result, and keeps no good record beside it from its own; also where topics
//! have limits that a result would break.

use tonearm_tests::{
    audio::wav,
    broker::Topics,
    chance::Chance,
    models,
    poison::{Poison, limit},
    program::Run,
    records::{Input, Reader, committed, publish, read_all},
    verifier::{History, verify},
};

const PARTITIONS: i32 = 2;
/// Of each kind in each partition.
const TURNS: usize = 4;

/// Publishes `kinds` of poison, each with a good record before it, and one at the end of each partition.
fn assert_all_end(topics: &Topics, kinds: &[Poison]) {
    let mut chance = Chance::new();
    let mut inputs: Vec<Input> = Vec::new();
    for partition in 0..PARTITIONS {
        let good = |n: usize| Input::new(partition, &format!("good-{n}"), wav(100.0 + n as f32, 0.3, 8_000, 1));
        for kind in (0..TURNS).flat_map(|_| kinds) {
            inputs.push(good(inputs.len()));
            inputs.push(kind.input(inputs.len(), partition, &mut chance));
        }
        inputs.push(good(inputs.len()));
    }
    publish(&topics.audio, &inputs);
    let published = read_all(&topics.audio);
    for (record, input) in published.iter().zip(&inputs) {
        assert_eq!((&record.key, &record.headers), (&input.key, &input.headers), "they are published as they are");
        assert!(record.value == input.value && input.timestamp_ms.is_none_or(|at| record.timestamp_ms == Some(at)));
    }
    let running = Run::new(topics).model(&models::tiny()).start();
    Reader::new(&[&topics.predictions, &topics.rejected]).take(inputs.len());
    running.stop();
    let verdict = verify(&History {
        published,
        predictions: read_all(&topics.predictions),
        rejected: read_all(&topics.rejected),
        positions: committed(&topics.group, &topics.audio, PARTITIONS),
    });
    verdict.assert_faultless();
    assert_eq!(verdict.records, inputs.len());
}

#[test]
fn odd_keys_values_and_headers_end_as_they_came() {
    use Poison::{
        EmptyKey, EmptyValue, HeadersOfARejected, ManyHeaders, NoKey, NoValue, OddHeaders, OddKey, RandomBytes,
    };
    let kinds =
        [OddHeaders, ManyHeaders, HeadersOfARejected, NoKey, EmptyKey, OddKey, NoValue, EmptyValue, RandomBytes];
    assert_all_end(&Topics::new(PARTITIONS), &kinds);
}

#[test]
fn names_of_headers_may_be_any_bytes() {
    assert_all_end(&Topics::new(PARTITIONS), &[Poison::HeaderName]);
}

#[test]
fn records_without_keys_end_where_topics_take_none() {
    let topics = Topics::new(PARTITIONS);
    limit(&topics, &[&topics.predictions, &topics.rejected]);
    assert_all_end(&topics, &[Poison::NoKey]);
}

#[test]
fn records_of_any_time_end_where_topics_refuse_their_time() {
    let topics = Topics::new(PARTITIONS);
    limit(&topics, &[]);
    assert_all_end(&topics, &[Poison::FarFuture, Poison::Ancient]);
}

#[test]
fn records_end_that_are_too_large_for_their_results() {
    let topics = Topics::new(PARTITIONS);
    limit(&topics, &[]);
    assert_all_end(&topics, &[Poison::LargeHeaders, Poison::LargeKey, Poison::AboutAMebibyte]);
}

#[test]
fn poison_of_all_kinds_at_once_ends_whatever_topics_refuse() {
    let topics = Topics::new(PARTITIONS);
    limit(&topics, &[&topics.rejected]);
    assert_all_end(&topics, &Poison::ALL);
}

//! A result that takes longer over the link there is than a transaction may usually take gets the time that it needs.

use std::time::{Duration, Instant};

use tonearm_tests::{
    audio::wav,
    broker::{Cluster, Kind, Topics, brokers},
    chance::Chance,
    link::Link,
    models,
    program::Run,
    readiness::assert_all_end,
    records::{Input, publish},
};

/// Twice as long as transactions of usual results.
const REJECT_BYTES: usize = 40 << 20;
const BYTES_PER_S: u64 = 4 << 20;

#[test]
fn a_large_reject_arrives_over_a_slow_link() {
    let link = Link::new();
    Cluster::own(Kind { via: Some(link.port()), ..Kind::default() });
    link.lead(brokers());
    let topics = Topics::new(1);
    let good = |key: &str| Input::new(0, key, wav(110.0, 0.5, 8_000, 1));
    let mut chance = Chance::new();
    let noise = (0..REJECT_BYTES / 8).flat_map(|_| chance.below(u64::MAX).to_le_bytes()).collect();
    publish(&topics.audio, &[good("before"), Input::new(0, "noise", noise), good("behind")]);
    link.limit(BYTES_PER_S);
    let began = Instant::now();
    let running = Run::new(&topics).model(&models::tiny()).start();
    assert_all_end(&topics, 1, 3);
    assert!(began.elapsed() >= Duration::from_secs(REJECT_BYTES as u64 / BYTES_PER_S), "the link is not slow");
    running.stop();
}

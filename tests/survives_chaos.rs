//! Whatever is killed, frozen, stopped or joined, brokers too: every record has its one result. `make chaos` is this
//! for longer.

use tonearm_tests::{
    broker::Version,
    chance,
    chaos::{Options, run},
};

#[test]
fn every_record_has_its_one_result_whatever_goes_wrong() {
    let seed = std::env::var("TONEARM_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(chance::seed);
    println!("TONEARM_TEST_SEED={seed}");
    // None by default: `POISON=5 cargo test --release -p tonearm-tests --test survives_chaos` is as `make chaos`.
    let poison = std::env::var("POISON").ok().and_then(|percent| percent.parse().ok()).unwrap_or(0);
    // As many as there are cards in the deck: each kind at least once.
    let report = run(Options {
        seed,
        disturbances: 13,
        brokers: 1,
        kafka: Version::chosen(),
        protocol: None,
        poison,
        spare_brokers: false,
    });
    println!("{report}");
    assert!(report.is_exact(), "see above, and what the workers said in target/chaos/{seed}");
}

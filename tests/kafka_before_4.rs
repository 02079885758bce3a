//! The promises hold on brokers before 4.0 as well: classic groups, the old transaction protocol. Chosen by what the
//! brokers can, not by an option. `TONEARM_TEST_KAFKA=3.9` runs any other test there.

use tonearm_tests::{
    audio::wav,
    broker::{Cluster, Kind, Topics, Version},
    chance::{Chance, name},
    models,
    poison::{Poison, limit},
    program::Run,
    records::{Input, Reader, committed, publish, read_all},
    verifier::{History, verify},
};

const PARTITIONS: i32 = 2;
/// Good records in each partition, between which there is one of each kind of poison.
const GOOD: usize = 60;

#[test]
fn a_killed_process_loses_and_repeats_nothing_there_whatever_is_published() {
    Cluster::own(Kind { version: Version::V3_9, ..Kind::default() });
    let topics = Topics::new(PARTITIONS);
    limit(&topics, &[&topics.rejected]);
    let mut chance = Chance::new();
    let mut inputs: Vec<Input> = Vec::new();
    for partition in 0..PARTITIONS {
        for n in 0..GOOD {
            inputs.push(Input::new(partition, &format!("good-{n}"), wav(100.0 + n as f32, 0.3, 8_000, 1)));
            if let Some(kind) = Poison::ALL.get(n) {
                inputs.push(kind.input(inputs.len(), partition, &mut chance));
            }
        }
    }
    publish(&topics.audio, &inputs);
    let published = read_all(&topics.audio);

    let instance = name("instance");
    let start = || Run::new(&topics).model(&models::tiny()).set("kafka.instance_id", &instance).start();
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let mut came = 0;
    for _ in 0..2 {
        let running = start();
        came += reader.take(10).len();
        running.kill();
    }
    let running = start();
    reader.take(inputs.len() - came);
    let log = running.log();
    running.stop();
    let verdict = verify(&History {
        published,
        predictions: read_all(&topics.predictions),
        rejected: read_all(&topics.rejected),
        positions: committed(&topics.group, &topics.audio, PARTITIONS),
    });
    verdict.assert_faultless();
    assert_eq!(verdict.records, inputs.len());
    assert!(log.contains("\"classic\" it is"), "{log}");
}

//! A partition whose only copy is on a broker that is down can be neither read nor written: who has it says so, and
//! goes on with all others.

use tonearm_tests::{
    audio::wav,
    broker::{Cluster, Kind, Topics, create, create_on},
    models,
    program::Run,
    readiness::{assert_all_end, fails, heals},
    records::{Input, Reader, publish},
};

const PARTITIONS: i32 = 2;

fn good(partition: i32, key: &str) -> Input {
    Input::new(partition, key, wav(110.0, 0.5, 8_000, 1))
}

#[test]
fn a_partition_without_leader_is_named_until_it_has_one() {
    let cluster = Cluster::own(Kind { brokers: 3, ..Kind::default() });
    let topics = Topics::unmade();
    create(&[(&topics.predictions, PARTITIONS), (&topics.rejected, PARTITIONS)]);
    create_on(&topics.audio, &[&[1], &[2]]);
    let running = Run::new(&topics).model(&models::tiny()).ready();
    publish(&topics.audio, &[good(0, "before"), good(1, "before")]);
    let reader = Reader::new(&[&topics.predictions]);
    reader.take(2);
    cluster.kill(2);
    fails(&running, "input", &["leads partition 1 "]);
    publish(&topics.audio, &[good(0, "meanwhile")]);
    assert_eq!(reader.take(1)[0].partition, 0, "the other partition goes on");
    cluster.restart(2);
    heals(&running);
    publish(&topics.audio, &[good(1, "after")]);
    assert_all_end(&topics, PARTITIONS, 4);
    running.stop();
}

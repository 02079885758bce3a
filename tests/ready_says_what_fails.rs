//! `/health/ready` is true: a process that cannot do its work says so within 15 s, with the check that fails and why,
//! and is ready again within 15 s of the cure. It is alive all the while, and each record has its one result in the
//! end.

use std::{
    sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use nix::sys::signal::Signal;
use tonearm_tests::{
    answers::file,
    audio::wav,
    broker::{self, Certificate, Cluster, Kind, Resource, Topics, Version},
    chance, models,
    program::Run,
    readiness::{BOUND, assert_all_end, fails, heals},
    records::{Input, Reader, publish, read_all},
    wait_within,
};

const PARTITIONS: i32 = 2;

/// One test takes the broker away; the others need it.
static BROKER: RwLock<()> = RwLock::new(());

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<&Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::own(Kind { secure: Some(Certificate::Valid), ..Kind::default() }))
}

fn with_broker() -> RwLockReadGuard<'static, ()> {
    let guard = BROKER.read().unwrap_or_else(PoisonError::into_inner);
    cluster();
    guard
}

fn good(partition: i32, key: &str) -> Input {
    Input::new(partition, key, wav(110.0, 0.5, 8_000, 1))
}

/// Is done when it is dropped.
struct Finally<F: Fn()>(F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Takes the broker away and gives it back.
fn assert_named_until_back(take: impl Fn(&Cluster), give_back: impl Fn(&Cluster)) {
    let _alone = BROKER.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = cluster();
    let topics = Topics::new(PARTITIONS);
    let running = Run::new(&topics).model(&models::tiny()).ready();
    publish(&topics.audio, &[good(0, "before"), good(1, "before")]);
    // The other tests need it whatever becomes of this one.
    let given_back = Finally(|| give_back(cluster));
    take(cluster);
    fails(&running, "connected", &["no broker"]);
    drop(given_back);
    heals(&running);
    publish(&topics.audio, &[good(0, "after"), good(1, "after")]);
    assert_all_end(&topics, PARTITIONS, 4);
    running.stop();
}

#[test]
fn a_broker_that_is_killed_is_named_until_it_is_back() {
    assert_named_until_back(|cluster| cluster.kill(1), |cluster| cluster.restart(1));
}

#[test]
fn a_broker_that_says_nothing_is_named_until_it_speaks() {
    assert_named_until_back(|cluster| cluster.freeze(1), |cluster| cluster.thaw(1));
}

/// Withdraws each right while a member of a group of this protocol works, and gives it back.
fn assert_rights_are_named(protocol: &str) {
    let topics = Topics::new(PARTITIONS);
    let instance = chance::name("instance");
    let id = format!("{}-{instance}", topics.group);
    let rights = [
        ("read", Resource::Topic(&topics.audio)),
        ("write", Resource::Topic(&topics.predictions)),
        ("write", Resource::Topic(&topics.rejected)),
        ("read", Resource::Group(&topics.group)),
        ("write", Resource::TransactionalId(&id)),
    ];
    rights.iter().for_each(|(right, on)| cluster().grant(&[right], *on));
    let config = file(".toml", cluster().config("tonearm"));
    // This user may not see what the brokers can.
    let run = Run::new(&topics).config(config.path()).set("kafka.brokers", &cluster().clients);
    let run = run.set("kafka.group_protocol", protocol).set("kafka.instance_id", &instance);
    let running = run.model(&models::tiny()).ready();
    publish(&topics.audio, &[good(0, "before"), good(1, "before")]);
    let cases: [(_, &str, &[&str]); 4] = [
        (rights[1], "held", &["partition 0 at offset 1", &topics.predictions, "WRITE"]),
        (rights[0], "input", &["user tonearm", "READ", &topics.audio]),
        (rights[3], "group", &["user tonearm", "READ", &topics.group]),
        (rights[4], "commits", &["user tonearm", "WRITE", &id]),
    ];
    for ((right, on), check, fragments) in cases {
        cluster().revoke(&[right], on);
        publish(&topics.audio, &[good(0, check)]);
        fails(&running, check, fragments);
        cluster().grant(&[right], on);
        heals(&running);
    }
    assert_all_end(&topics, PARTITIONS, 6);
    running.stop();
}

#[test]
fn a_right_that_is_withdrawn_is_named_until_it_is_back() {
    let _broker = with_broker();
    let protocols: &[&str] = match cluster().kind.version {
        Version::V4_3 => &["consumer", "classic"],
        Version::V3_9 => &["classic"],
    };
    std::thread::scope(|scope| {
        protocols.iter().for_each(|protocol| _ = scope.spawn(|| assert_rights_are_named(protocol)));
    });
}

/// Publishes a record whose reject no topic takes after `spoilt`, and good ones behind it and beside it.
fn assert_held_until_cured(spoilt: impl Fn(&Topics), fragment: &str, cured: impl Fn(&Topics)) {
    let _broker = with_broker();
    let topics = Topics::new(PARTITIONS);
    let running = Run::new(&topics).model(&models::tiny()).ready();
    spoilt(&topics);
    publish(&topics.audio, &[good(0, "good"), Input::new(0, "broken", b"no music".to_vec()), good(0, "behind")]);
    fails(&running, "held", &["partition 0 at offset 1", &topics.rejected, fragment]);
    publish(&topics.audio, &[good(1, "other"), good(1, "other")]);
    let reader = Reader::new(&[&topics.predictions]);
    assert_eq!(reader.take(3).iter().filter(|result| result.partition == 1).count(), 2);
    assert_eq!(running.metrics().value("tonearm_held_partitions"), 1.0);
    cured(&topics);
    heals(&running);
    assert_all_end(&topics, PARTITIONS, 5);
    assert_eq!(running.metrics().value("tonearm_held_partitions"), 0.0);
    running.stop();
}

#[test]
fn a_partition_whose_reject_is_too_large_is_held_and_named_and_the_others_go_on() {
    let limit = |bytes| move |topics: &Topics| broker::topic_config(&topics.rejected, "max.message.bytes", bytes);
    assert_held_until_cured(limit("100"), "max.message.bytes", limit("1048588"));
}

#[test]
fn a_partition_whose_reject_has_no_topic_is_held_and_named_and_the_others_go_on() {
    let create = |topics: &Topics| broker::create(&[(&topics.rejected, PARTITIONS)]);
    assert_held_until_cured(|topics| broker::delete(&topics.rejected), "no such topic", create);
}

#[test]
fn a_stuck_worker_is_named_with_its_record() {
    let _broker = with_broker();
    let topics = Topics::new(PARTITIONS);
    let model = models::stuck_by_sound(Duration::from_secs(20));
    let running = Run::new(&topics).model(&model).set("runtime.workers", 2).ready();
    let silence = |partition| Input::new(partition, "silence", wav(0.0, 0.5, 8_000, 1));
    publish(&topics.audio, &[good(1, "stuck"), silence(1), silence(0)]);
    fails(&running, "workers", &[&format!("{}-1-0 in infer for 1", topics.audio), " s"]);
    let beside = Reader::new(&[&topics.predictions]).take(1);
    assert_eq!(beside[0].partition, 0, "the other partition goes on");
    Reader::new(&[&topics.predictions]).take(3);
    heals(&running);
    assert_all_end(&topics, PARTITIONS, 3);
    let log = running.stop();
    assert_eq!(log.matches("workers make no progress").count(), 1, "{log}");
}

#[test]
fn a_frozen_process_is_not_ready_until_it_goes_on() {
    let _broker = with_broker();
    let topics = Topics::new(PARTITIONS);
    let running = Run::new(&topics).model(&models::tiny()).ready();
    publish(&topics.audio, &[good(0, "before"), good(1, "before")]);
    running.signal(Signal::SIGSTOP);
    wait_within(BOUND, "no answer", || {
        running.get("/health/ready").is_none_or(|(status, _)| status != 200).then_some(())
    });
    publish(&topics.audio, &[good(0, "meanwhile"), good(1, "meanwhile")]);
    running.signal(Signal::SIGCONT);
    heals(&running);
    assert_all_end(&topics, PARTITIONS, 4);
    running.stop();
}

#[test]
fn an_input_topic_that_is_deleted_is_named_until_there_is_one() {
    let _broker = with_broker();
    let topics = Topics::new(PARTITIONS);
    let running = Run::new(&topics).model(&models::tiny()).ready();
    publish(&topics.audio, &[good(0, "old"), good(1, "old")]);
    let reader = Reader::new(&[&topics.predictions]);
    reader.take(2);
    broker::delete(&topics.audio);
    fails(&running, "input", &[&topics.audio, "does not exist"]);
    broker::create(&[(&topics.audio, PARTITIONS)]);
    heals(&running);
    publish(&topics.audio, &[good(0, "new-0"), good(1, "new-1")]);
    reader.take(2);
    running.stop();
    let mut keys: Vec<String> = read_all(&topics.predictions).iter().map(|result| result.key_text()).collect();
    keys.sort();
    assert_eq!(keys, ["new-0", "new-1", "old", "old"]);
}

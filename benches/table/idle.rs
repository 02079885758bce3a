//! What does not show in throughput: memory, start-up, and the latency of an idle pipeline.

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig,
    producer::{BaseRecord, DefaultProducerContext, ThreadedProducer},
};
use tonearm_benches::{music, read};
use tonearm_tests::{
    PATIENCE,
    broker::{Topics, brokers},
    program::Run,
    records::Reader,
};

use crate::{
    Asked as Options,
    claim::{Asked, Claim, median},
    contest::rounded,
    program::{AtWork, Backlog, PARTITIONS, ready},
};

/// 1-minute files of the run whose memory is measured.
const MINUTES: usize = 48;
/// Records of 64 MiB: more than may be in flight.
const LARGE: usize = 6;
/// Starts, and records one after the other on the idle pipeline.
const STARTS: usize = 5;
const RECORDS: usize = 60;

pub fn memory(_: &Options) -> Vec<Claim> {
    let folder = music();
    let peak = |what: &str, values: &mut dyn Iterator<Item = Vec<u8>>| {
        eprintln!("memory: {what}");
        AtWork::start(&Backlog::publish(values, 0.0), &[]).finish().peak_mib
    };
    let mut files: Vec<_> = std::fs::read_dir(folder.join("minute"))
        .expect("the music")
        .map(|entry| entry.expect("the music").path())
        .collect();
    files.sort();
    let minutes = peak("1-minute files", &mut files.iter().take(MINUTES).map(|file| read(file)));
    let hours = peak("one file of 3 hours", &mut std::iter::once(read(&folder.join("three-hours.mp3"))));
    let large = read(&folder.join("64-mib.wav"));
    let large = peak("records of 64 MiB", &mut std::iter::repeat_n(large, LARGE));
    let at_most = |mib| Some(Asked::AtMost(mib));
    vec![
        Claim::new("peak memory: 1-minute files", at_most(700.0), "MiB", vec![minutes]),
        Claim::new("peak memory: one file of 3 hours", at_most(700.0), "MiB", vec![hours]),
        Claim::new("peak memory: records of 64 MiB", at_most(700.0), "MiB", vec![large]),
        Claim::new(
            "peak memory: between 3 hours and 1-minute files",
            at_most(50.0),
            "MiB",
            vec![(hours - minutes).abs()],
        ),
    ]
}

pub fn start_and_latency(_: &Options) -> Vec<Claim> {
    eprintln!("start-up");
    let start = |_| {
        let topics = Topics::new(PARTITIONS);
        let started = Instant::now();
        let (running, ready) = ready(Run::new(&topics));
        running.stop();
        (ready - started).as_secs_f64()
    };
    // The first transaction and the first group of a new broker wait until it has made its topics for them.
    let first = start(0);
    let starts: Vec<f64> = (1..=STARTS).map(start).collect();
    let mut claims = vec![
        Claim::new("start to ready: model warm, group joined", Some(Asked::AtMost(2.0)), "s", starts)
            .figures(format!("{} s for the first one, where the broker may be new", rounded(first))),
    ];
    for (interval_ms, asked) in [("0", Some(Asked::AtMost(50.0))), ("100", None)] {
        eprintln!("latency: runtime.commit_interval_ms = {interval_ms}");
        let (added, whole) = latency_ms(interval_ms);
        let what = format!("latency added to the stages, idle, runtime.commit_interval_ms = {interval_ms}");
        let figures = format!("{} ms from produce to readable under read_committed", rounded(median(&whole)));
        claims.push(Claim::new(what, asked, "ms", added).figures(figures));
    }
    claims
}

/// Of each record: milliseconds from produce to readable less those of its stages, and the same with them.
fn latency_ms(interval_ms: &str) -> (Vec<f64>, Vec<f64>) {
    // One window: nothing of it is computed side by side, so its stages' times add up.
    let value = read(&music().join("one-window.mp3"));
    let topics = Topics::new(PARTITIONS);
    let reader = Reader::new(&[&topics.predictions]);
    let (running, _) = ready(Run::new(&topics).set("runtime.commit_interval_ms", interval_ms));
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        // At once: librdkafka waits 5 ms for more by default.
        .set("linger.ms", "0")
        .create()
        .expect("a producer");
    let (mut added, mut whole) = (Vec::new(), Vec::new());
    for nth in 0..=RECORDS {
        let produced = Instant::now();
        let partition = nth as i32 % PARTITIONS;
        producer
            .send(BaseRecord::<(), [u8]>::to(&topics.audio).partition(partition).payload(&value))
            .unwrap_or_else(|(e, _)| panic!("cannot publish: {e}"));
        let result = reader.next(PATIENCE).expect("a result");
        let seen_ms = produced.elapsed().as_secs_f64() * 1e3;
        let timing = result.prediction().timing_ms;
        // The first one pays for connections.
        if nth > 0 {
            whole.push(seen_ms);
            added.push(seen_ms - timing.decode - timing.features - timing.infer);
        }
        // The pipeline is idle, whatever its interval.
        std::thread::sleep(Duration::from_millis(150));
    }
    running.stop();
    (added, whole)
}

//! However long the backlog, memory holds the configured bytes in flight and no more; a full queue pauses its
//! partition. Loading a model takes no more than twice its file.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tonearm_tests::{
    audio::wav,
    broker::{self, Topics},
    models::{self, Model},
    program::Run,
    records::{Input, Reader, publish, read_all},
    wait,
};

const PARTITIONS: i32 = 4;
const MIB: u64 = 1 << 20;
const IN_FLIGHT_MIB: u64 = 8;
/// 0.7 s of 8 channels at 192 kHz, 2.05 MiB: one window.
const RECORD_S: f32 = 0.7;
const RECORDS: usize = 120;
/// What may be held beyond a process at work on one record per worker: the bytes in flight; what librdkafka reads ahead
/// of each partition (1 MiB, and then another or the one record that is larger); 24 MiB for an allocator's gaps.
const ALLOWED_MIB: u64 = IN_FLIGHT_MIB + PARTITIONS as u64 * (1 + 3) + 24;

/// Records come faster than it can work them off.
fn run(topics: &Topics) -> Run {
    Run::new(topics).model(&models::slow(Duration::from_millis(20))).set("runtime.workers", 2)
}

#[test]
fn a_backlog_far_larger_than_the_limit_is_worked_off_within_it() {
    let topics = Topics::new(PARTITIONS);
    let inputs = |count: usize| -> Vec<Input> {
        let record = wav(220.0, RECORD_S, 192_000, 8);
        (0..count).map(|n| Input::new(n as i32 % PARTITIONS, &format!("track-{n}"), record.clone())).collect()
    };
    let running = run(&topics).set("runtime.in_flight_mib", IN_FLIGHT_MIB).ready();
    let reader = Reader::new(&[&topics.predictions]);
    // Every worker has its buffers, libtorch its memory, before anything is measured.
    const WARM_UP: usize = 8;
    publish(&topics.audio, &inputs(WARM_UP));
    reader.take(WARM_UP);
    let before = running.memory("VmHWM");

    let backlog = inputs(RECORDS);
    let backlog_bytes: usize = backlog.iter().filter_map(|input| input.value.as_ref()).map(Vec::len).sum();
    assert!(backlog_bytes as u64 > 2 * ALLOWED_MIB * MIB, "the backlog must be larger than what may be held");
    let done = AtomicBool::new(false);
    let (mut paused, mut in_flight) = (0.0, 0.0);
    thread::scope(|scope| {
        scope.spawn(|| {
            publish(&topics.audio, &backlog);
            reader.take(RECORDS);
            done.store(true, Ordering::Relaxed);
        });
        wait("the backlog's end", || {
            let metrics = running.metrics();
            paused = metrics.value("tonearm_paused_partitions").max(paused);
            in_flight = metrics.sum("tonearm_in_flight_bytes").max(in_flight);
            done.load(Ordering::Relaxed).then_some(())
        });
    });

    let grown = running.memory("VmHWM") - before;
    println!("{} MiB before, {} MiB more for {} MiB", before / MIB, grown / MIB, backlog_bytes as u64 / MIB);
    assert!(grown <= ALLOWED_MIB * MIB, "grown by {} MiB, allowed are {ALLOWED_MIB}", grown / MIB);
    assert!(paused > 0.0, "no partition was ever paused");
    // Each partition may go over its share by the record that fills it.
    let record_bytes = backlog_bytes as f64 / RECORDS as f64;
    let most = (IN_FLIGHT_MIB * MIB) as f64 + f64::from(PARTITIONS) * (record_bytes + 4096.0);
    assert!(in_flight <= most, "{in_flight} bytes in flight, {most} are allowed");
    assert!(in_flight > 0.0);

    wait("all partitions resumed and nothing in flight", || {
        let metrics = running.metrics();
        let idle = metrics.value("tonearm_paused_partitions") == 0.0 && metrics.sum("tonearm_in_flight_bytes") == 0.0;
        idle.then_some(())
    });
    running.stop();
    assert_eq!(read_all(&topics.predictions).len(), RECORDS + WARM_UP);
}

#[test]
fn a_record_larger_than_the_limit_is_worked_on_alone() {
    let topics = Topics::new(1);
    let large = wav(220.0, 0.7, 192_000, 8);
    let inputs: Vec<Input> = (0..4).map(|n| Input::new(0, &format!("track-{n}"), large.clone())).collect();
    publish(&topics.audio, &inputs);
    let running = run(&topics).set("runtime.in_flight_mib", 1).start();
    Reader::new(&[&topics.predictions]).take(inputs.len());
    running.stop();
}

#[test]
fn results_that_cannot_be_written_are_held_within_the_limit_until_they_can() {
    let topics = Topics::new(PARTITIONS);
    let record = wav(220.0, RECORD_S, 192_000, 8);
    let inputs: Vec<Input> = (0..RECORDS)
        .map(|n| {
            // Every other record of a partition is rejected, and so held with its value.
            let turn = n / PARTITIONS as usize;
            let value = if turn.is_multiple_of(2) { record.clone() } else { vec![n as u8; record.len()] };
            Input::new(n as i32 % PARTITIONS, &format!("track-{n}"), value)
        })
        .collect();
    let running = run(&topics).set("runtime.in_flight_mib", IN_FLIGHT_MIB).ready();
    let before = running.memory("VmHWM");
    broker::delete(&topics.rejected);
    publish(&topics.audio, &inputs);
    wait("all partitions full", || {
        (running.metrics().value("tonearm_paused_partitions") == f64::from(PARTITIONS)).then_some(())
    });
    // Each attempt takes until results are given up, and none may leave anything behind.
    wait("attempts in vain", || (running.metrics().value("tonearm_aborts_total") >= 3.0).then_some(()));
    let grown = running.memory("VmHWM") - before;
    assert!(grown <= ALLOWED_MIB * MIB, "grown by {} MiB, allowed are {ALLOWED_MIB}", grown / MIB);
    assert!(read_all(&topics.predictions).len() < RECORDS / 2, "it went on without the topic");

    broker::create(&[(&topics.rejected, PARTITIONS)]);
    Reader::new(&[&topics.predictions, &topics.rejected]).take(RECORDS);
    running.stop();
    assert_eq!(read_all(&topics.predictions).len(), RECORDS / 2);
    assert_eq!(read_all(&topics.rejected).len(), RECORDS / 2);
}

#[test]
fn many_partitions_of_large_records_are_worked_off_within_the_limit() {
    const MANY: i32 = 200;
    const LIMIT_MIB: u64 = 32;
    // 1.4 MB each, which is 270 MiB together: read ahead of every partition, that would be eight times the limit.
    let record = wav(220.0, 0.46, 192_000, 8);
    let each = record.len() as u64;
    let topics = Topics::new(MANY);
    let running = run(&topics).set("runtime.in_flight_mib", LIMIT_MIB).ready();
    let reader = Reader::new(&[&topics.predictions]);
    publish(&topics.audio, &[Input::new(0, "warm-up", record.clone()), Input::new(1, "warm-up", record.clone())]);
    reader.take(2);
    let before = running.memory("VmHWM");
    running.stop();

    let inputs: Vec<Input> = (0..MANY).map(|partition| Input::new(partition, "track", record.clone())).collect();
    publish(&topics.audio, &inputs);
    let running = run(&topics).set("runtime.in_flight_mib", LIMIT_MIB).start();
    reader.take(inputs.len());
    let grown = running.memory("VmHWM").saturating_sub(before);
    // Partitions are opened before it is known how large their records are, and one fetch may be under way for as many
    // as are closed: half of the limit again, a fetch of 16 MiB, and an allocator's gaps.
    let allowed = LIMIT_MIB * MIB * 3 / 2 + 16 * MIB + 24 * MIB;
    println!("{} MiB more for {} MiB", grown / MIB, each * MANY as u64 / MIB);
    assert!(grown <= allowed, "grown by {} MiB, allowed are {}", grown / MIB, allowed / MIB);
    running.stop();
}

#[test]
fn rates_that_have_nothing_in_common_with_the_model_s_cost_no_more_than_others() {
    const WORKERS: u64 = 4;
    let topics = Topics::new(PARTITIONS);
    let running = Run::new(&topics)
        .model(&models::slow(Duration::from_millis(20)))
        .set("runtime.workers", WORKERS)
        .set("runtime.in_flight_mib", IN_FLIGHT_MIB)
        .ready();
    let reader = Reader::new(&[&topics.predictions]);
    let work_off = |rates_hz: &[u32]| {
        let wavs: Vec<_> = rates_hz.iter().map(|&rate_hz| wav(220.0, RECORD_S, rate_hz, 1)).collect();
        let record = |n: usize| Input::new(n as i32 % PARTITIONS, "track", wavs[n % wavs.len()].clone());
        let records: Vec<_> = (0..48).map(record).collect();
        publish(&topics.audio, &records);
        reader.take(records.len());
    };
    work_off(&[768_000, 44_100, 192_000]);
    let before = running.memory("VmHWM");
    // Their shortest common time with 8 kHz, the model's rate, is a second.
    work_off(&[767_957, 44_101, 191_999]);
    let grown = running.memory("VmHWM") - before;
    println!("{} MiB more", grown / MIB);
    // A resampler takes less than 3 MiB while it is made; an allocator's gaps.
    let allowed = WORKERS * 3 + 24;
    assert!(grown <= allowed * MIB, "grown by {} MiB, allowed are {allowed}", grown / MIB);
    running.stop();
}

/// The largest and the last memory of a process that is ready with a model, by the engine that it must say it has.
fn loaded(model: &Model, engine: &str) -> [u64; 2] {
    let running = Run::new(&Topics::new(1)).model(model).set("runtime.workers", 1).ready();
    let figures = ["VmHWM", "VmRSS"].map(|figure| running.memory(figure));
    let log = running.stop();
    let line = log.lines().find(|line| line.contains("model is warm")).expect("a line of the model");
    assert!(line.contains(engine), "{line}");
    figures
}

/// Loads a model of these weights; as a multiple of its file, it may take `most` meanwhile and `then` at the end.
#[track_caller]
fn loads_within([most, then]: [f64; 2], engine: &str, weights: &[&[usize]], forward: &[&str]) {
    let repository = tempfile::tempdir().expect("a folder");
    let model = models::with_weights(repository.path(), weights, forward);
    let file = repository.path().join(&model.name).join("1.0.0/model.pt");
    let file = fs::metadata(file).expect("a model").len();
    assert!(file > 120 * MIB, "smaller than what else may differ from process to process");
    let (found, tiny) = (loaded(&model, engine), loaded(&models::tiny(), "compiled"));
    let times = [0, 1].map(|i| (found[i] as f64 - tiny[i] as f64) / file as f64);
    println!("{engine}, {} MiB: {:.2} times that at most, {:.2} at the end", file / MIB, times[0], times[1]);
    assert!(times[0] <= most, "{:.2} times the file, {most} are allowed", times[0]);
    assert!(times[1] <= then, "{:.2} times the file at the end, {then} are allowed", times[1]);
}

/// Linear layers over `h`, and their weights.
const LINEAR: ([&[usize]; 4], [&str; 4]) = (
    [&[4096, 1600], &[4096, 4096], &[2048, 4096], &[4, 2048]],
    [
        "h = torch.relu(torch.linear(h, self.w0, None))",
        "h = torch.relu(torch.linear(h, self.w1, None))",
        "h = torch.relu(torch.linear(h, self.w2, None))",
        "return torch.sigmoid(torch.linear(h, self.w3, None))",
    ],
);
/// Half of what is promised: these weights are as large packed as in their file.
const ONCE: [f64; 2] = [1.5, 1.2];

#[test]
fn a_compiled_model_is_loaded_once() {
    let (weights, layers) = LINEAR;
    loads_within(ONCE, "compiled", &weights, &[&["h = torch.reshape(x, [1, 1600])"], &layers[..]].concat());
}

#[test]
fn a_model_that_libtorch_runs_is_loaded_once() {
    let (weights, layers) = LINEAR;
    let unknown = "h = torch.clamp(torch.reshape(x, [1, 1600]), -1000., 1000.)";
    loads_within(ONCE, "torchscript", &weights, &[&[unknown], &layers[..]].concat());
}

#[test]
fn a_compiled_model_of_transformed_kernels_is_loaded_within_twice_its_file() {
    const WIDE: [usize; 4] = [1024, 1024, 3, 3];
    let weights: [&[usize]; 6] = [&[512, 1, 3, 3], &[1024, 512, 3, 3], &WIDE, &WIDE, &WIDE, &[4, 1024]];
    let convolution = |n| format!("h = torch.relu(torch.conv2d(h, self.w{n}, None, [1, 1], [1, 1], [1, 1], 1))");
    let convolutions: Vec<String> = (0..5).map(convolution).collect();
    let mut lines = vec!["h = torch.max_pool2d(torch.unsqueeze(x, 1), [4, 4], [4, 4], [0, 0], [1, 1], False)"];
    lines.extend(convolutions.iter().map(String::as_str));
    lines.push("return torch.sigmoid(torch.linear(torch.amax(h, [2, 3]), self.w5, None))");
    // 3 × 3 weights are kept as 4 × 4, in float32.
    loads_within([2.0, 2.0], "compiled", &weights, &lines);
}

//! The admin port says what an operator would ask: alive, ready and if not why, and every documented metric.

use std::{fs, net::TcpListener, sync::OnceLock};

use nix::{sys::stat::Mode, unistd::mkfifo};
use tonearm_tests::{
    admin::Metrics,
    audio::wav,
    broker::Topics,
    models,
    program::{Run, Running, answer, command},
    records::{Input, Reader, publish, read_all},
    root, wait,
};

const PARTITIONS: i32 = 2;
const GOOD: usize = 6;
const BROKEN: usize = 3;

/// What the metrics were once `GOOD` records of a second each and `BROKEN` ones were done.
struct Seen {
    before: Metrics,
    after: Metrics,
    bytes_in: usize,
    bytes_out: usize,
}

fn seen() -> &'static Seen {
    static SEEN: OnceLock<Seen> = OnceLock::new();
    SEEN.get_or_init(|| {
        let topics = Topics::new(PARTITIONS);
        let running = Run::new(&topics).model(&models::tiny()).ready();
        let before = running.metrics();
        let inputs: Vec<Input> = (0..GOOD + BROKEN)
            .map(|n| {
                let value = if n < GOOD { wav(150.0, 1.0, 16_000, 1) } else { b"no music".to_vec() };
                Input::new(n as i32 % PARTITIONS, &format!("track-{n}"), value)
            })
            .collect();
        publish(&topics.audio, &inputs);
        Reader::new(&[&topics.predictions, &topics.rejected]).take(inputs.len());
        let after = wait("metrics at rest", || {
            let metrics = running.metrics();
            let lags: Vec<f64> = metrics.named("tonearm_lag_records").map(|(_, value)| value).collect();
            let at_rest = metrics.sum("tonearm_records_total") == inputs.len() as f64
                && metrics.sum("tonearm_in_flight_bytes") == 0.0
                && lags == [0.0; PARTITIONS as usize];
            at_rest.then_some(metrics)
        });
        running.stop();
        let bytes = |values: Vec<Option<Vec<u8>>>| values.into_iter().flatten().map(|value| value.len()).sum();
        let results = [read_all(&topics.predictions), read_all(&topics.rejected)].concat();
        Seen {
            before,
            after,
            bytes_in: bytes(inputs.into_iter().map(|input| input.value).collect()),
            bytes_out: bytes(results.into_iter().map(|result| result.value).collect()),
        }
    })
}

/// Name, kind and meaning of every documented metric, from the program's own table.
fn documented() -> Vec<(String, String, String)> {
    let answer = answer(command(["metrics"]));
    assert_eq!(answer.code, Some(0));
    let rows = answer.out.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        (cells[0].trim_matches('`').to_owned(), cells[1].to_owned(), cells[4].to_owned())
    })
    .collect()
}

#[test]
fn there_is_a_table_of_metrics() {
    assert!(documented().len() > 10);
}

#[test]
fn every_documented_metric_is_there_with_its_help_and_type() {
    for (name, kind, help) in documented() {
        let after = &seen().after;
        assert_eq!(after.help.get(&name), Some(&help), "help of {name}");
        assert_eq!(after.kinds.get(&name), Some(&kind), "type of {name}");
    }
}

#[test]
fn every_metric_is_documented() {
    let documented = documented();
    for name in seen().after.names() {
        let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(documented.iter().any(|(known, ..)| known == plain || known == name), "{name} is not documented");
    }
}

#[test]
fn the_page_of_metrics_is_current() {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap_or_default();
    let table = answer(command(["metrics"])).out;
    assert!(page.contains(table.trim()), "docs/metrics.md is not what the program says; `make schemas` writes it");
}

#[test]
fn counters_count_records_seconds_and_bytes() {
    let Seen { after, bytes_in, bytes_out, .. } = seen();
    assert_eq!(after.value(r#"tonearm_records_total{result="prediction"}"#), GOOD as f64);
    assert_eq!(after.value(r#"tonearm_records_total{result="reject"}"#), BROKEN as f64);
    assert_eq!(after.value(r#"tonearm_rejects_total{class="unsupported-format",stage="decode"}"#), BROKEN as f64);
    assert_eq!(after.value("tonearm_audio_seconds_total"), GOOD as f64);
    assert_eq!(after.value("tonearm_input_bytes_total"), *bytes_in as f64);
    assert_eq!(after.value("tonearm_output_bytes_total"), *bytes_out as f64);
    assert!(after.value("tonearm_commits_total") >= 1.0);
    assert_eq!(after.value("tonearm_assigned_partitions"), f64::from(PARTITIONS));
}

#[test]
fn times_are_taken_of_every_record() {
    let after = &seen().after;
    assert_eq!(after.value("tonearm_record_seconds_count"), (GOOD + BROKEN) as f64);
    for stage in ["decode", "features", "infer"] {
        assert_eq!(after.value(&format!("tonearm_stage_working_seconds_count{{stage=\"{stage}\"}}")), GOOD as f64);
        assert!(after.value(&format!("tonearm_stage_working_seconds_sum{{stage=\"{stage}\"}}")) > 0.0, "{stage}");
    }
    assert_eq!(after.value("tonearm_commit_seconds_count"), after.value("tonearm_commits_total"));
}

#[test]
fn counters_without_a_count_yet_are_there_as_zero() {
    let before = &seen().before;
    for name in
        ["tonearm_records_total", "tonearm_commits_total", "tonearm_aborts_total", "tonearm_audio_seconds_total"]
    {
        assert!(before.names().any(|known| known == name), "{name} is missing");
        assert_eq!(before.sum(name), 0.0);
    }
}

/// Names of the checks that fail; there are some if and only if the status says so.
fn failing(running: &Running) -> Vec<String> {
    let (status, body) = wait("the admin port", || running.get("/health/ready"));
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let checks = body["checks"].as_array().expect("checks").iter();
    let failing = checks.filter(|check| check["ok"] == false);
    let failing: Vec<String> = failing.map(|check| check["name"].as_str().expect("a name").to_owned()).collect();
    assert_eq!((status == 200, body["ready"] == true), (failing.is_empty(), failing.is_empty()), "{body}");
    failing
}

#[test]
fn it_is_alive_and_not_ready_while_the_model_loads() {
    let topics = Topics::new(1);
    let repository = tempfile::tempdir().expect("a folder");
    let tiny = models::tiny();
    let original = tiny.repository.join("tiny/1.0.0");
    let folder = repository.path().join("tiny/1.0.0");
    fs::create_dir_all(&folder).expect("a folder");
    fs::copy(original.join("model.pt"), folder.join("model.pt")).expect("a model");
    // A manifest that takes as long to read as this test likes.
    let slow = folder.join("model.toml");
    mkfifo(&slow, Mode::S_IRUSR | Mode::S_IWUSR).expect("a named pipe can be made");
    let running = Run::new(&topics).model(&tiny).set("models.dir", repository.path().display()).start();
    wait("a life sign", || running.get("/health/live").filter(|(status, _)| *status == 200));
    assert_eq!(failing(&running), ["model", "partitions"]);
    fs::write(&slow, fs::read(original.join("model.toml")).expect("a manifest")).expect("a reader");
    running.wait_until_ready();
    running.stop();
}

#[test]
fn it_is_not_ready_before_it_joined_the_group() {
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address");
    let running = Run::new(&Topics::unmade()).set("kafka.brokers", address).start();
    wait("the model", || (!failing(&running).contains(&"model".to_owned())).then_some(()));
    assert_eq!(failing(&running), ["partitions"]);
    assert_eq!(running.get("/health/live").map(|(status, _)| status), Some(200));
}

#[test]
fn it_is_ready_once_it_can_take_records() {
    let topics = Topics::new(1);
    let running = Run::new(&topics).ready();
    assert_eq!(failing(&running), [""; 0]);
    assert_eq!(running.metrics().value("tonearm_assigned_partitions"), 1.0);
    running.stop();
}

#[test]
fn what_is_not_there_is_not_found() {
    let running = Run::new(&Topics::new(1)).start();
    wait("the admin port", || running.get("/health/live"));
    assert_eq!(running.get("/nothing").map(|(status, _)| status), Some(404));
}

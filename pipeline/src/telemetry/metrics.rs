//! Every metric, declared once, and the events that move them.

use std::{fmt::Write, time::Duration};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use rdkafka::error::KafkaError;
use tonearm_schemas::{
    prediction::Audio,
    reject::{Reject, Stage},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

struct Metric {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
}

const RECORDS: &str = "tonearm_records_total";
const REJECTS: &str = "tonearm_rejects_total";
const AUDIO: &str = "tonearm_audio_seconds_total";
const BYTES_IN: &str = "tonearm_input_bytes_total";
const BYTES_OUT: &str = "tonearm_output_bytes_total";
const WAITING: &str = "tonearm_stage_waiting_seconds";
const WORKING: &str = "tonearm_stage_working_seconds";
const RECORD: &str = "tonearm_record_seconds";
const IN_FLIGHT: &str = "tonearm_in_flight_bytes";
const LAG: &str = "tonearm_lag_records";
const ASSIGNED: &str = "tonearm_assigned_partitions";
const PAUSED: &str = "tonearm_paused_partitions";
const COMMITS: &str = "tonearm_commits_total";
const ABORTS: &str = "tonearm_aborts_total";
const COMMIT: &str = "tonearm_commit_seconds";
const RENEWALS: &str = "tonearm_producer_renewals_total";
const REBALANCES: &str = "tonearm_rebalances_total";
const BUILD: &str = "tonearm_build_info";

const METRICS: [Metric; 18] = [
    Metric {
        name: RECORDS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["result"],
        help: "Tracks whose last output is committed, by result: prediction, reject, or blocks for the next stage.",
    },
    Metric {
        name: REJECTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["class", "stage"],
        help: "Records rejected, by class and by the stage that rejected them.",
    },
    Metric {
        name: AUDIO,
        kind: Kind::Counter,
        unit: Unit::Seconds,
        labels: &[],
        help: "Seconds of audio predicted, rounded to whole seconds per record.",
    },
    Metric { name: BYTES_IN, kind: Kind::Counter, unit: Unit::Bytes, labels: &[], help: "Bytes of values read." },
    Metric { name: BYTES_OUT, kind: Kind::Counter, unit: Unit::Bytes, labels: &[], help: "Bytes of values written." },
    Metric {
        name: WAITING,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &["stage"],
        help: "Time a track waited, by stage: the first that runs here, for a worker; emit, from its end to its commit.",
    },
    Metric {
        name: WORKING,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &["stage"],
        help: "CPU threads' time a stage took for a track, by stage: decode, features, infer.",
    },
    Metric {
        name: RECORD,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &[],
        help: "Time from reading a track to the commit of its last output.",
    },
    Metric {
        name: IN_FLIGHT,
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        labels: &["partition"],
        help: "Bytes of records being worked on and of results not yet committed.",
    },
    Metric {
        name: LAG,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["partition"],
        help: "Records behind the end of the partition, as last reported by the broker.",
    },
    Metric {
        name: ASSIGNED,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Partitions this process works on.",
    },
    Metric {
        name: PAUSED,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Partitions not read for now because their share of in-flight bytes is used up.",
    },
    Metric {
        name: COMMITS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Commits of results with their offsets.",
    },
    Metric {
        name: ABORTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Transactions aborted; their results are sent again.",
    },
    Metric {
        name: COMMIT,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &[],
        help: "Time a commit took, from its start to the broker's answer.",
    },
    Metric {
        name: RENEWALS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Producers replaced because they could not go on, for example after brokers were gone for long.",
    },
    Metric {
        name: REBALANCES,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["event"],
        help: "Changes of the assigned partitions, by event: assigned, revoked or lost.",
    },
    Metric {
        name: BUILD,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["version", "model"],
        help: "Always 1; its labels say what runs.",
    },
];

/// From a millisecond to the longest record.
const SECONDS_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// Installs the recorder; the handle renders `/metrics`.
///
/// # Errors
/// A recorder was installed before.
pub fn install(model: &str) -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .install_recorder()?;
    for metric in &METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
    // Counters without labels exist from the start: a rate over a missing series is no rate.
    for metric in METRICS.iter().filter(|metric| metric.kind == Kind::Counter && metric.labels.is_empty()) {
        counter!(metric.name).absolute(0);
    }
    for result in ["prediction", "reject"] {
        counter!(RECORDS, "result" => result).absolute(0);
    }
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION"), "model" => model.to_owned()).set(1.0);
    Ok(handle)
}

/// The page docs/metrics.md.
pub fn markdown() -> String {
    let mut table = String::from(
        "# Metrics\n\n`tonearm run` serves these at `/metrics` on `admin.listen`, in Prometheus' text format. \
         This page is written by `tonearm metrics`.\n\n\
         | metric | kind | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for metric in &METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        // Writing to a String cannot fail.
        let _ =
            writeln!(table, "| `{}` | {kind} | {} | {labels} | {} |", metric.name, unit_name(metric.unit), metric.help);
    }
    table
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Seconds => "seconds",
        Unit::Bytes => "bytes",
        _ => "count",
    }
}

pub fn record_read(bytes: usize) {
    counter!(BYTES_IN).increment(bytes as u64);
}

/// A stage is through with a track.
pub fn worked(stage: Stage, time: Duration) {
    histogram!(WORKING, "stage" => stage.as_str()).record(time);
}

/// A track waited for a worker.
pub fn waited(stage: Stage, time: Duration) {
    histogram!(WAITING, "stage" => stage.as_str()).record(time);
}

/// A track's windows are all scored.
pub fn predicted(audio: &Audio) {
    counter!(AUDIO).increment(audio.duration_s.round() as u64);
}

/// A record was rejected; said once, when it happens.
pub fn rejected(id: &str, reject: &Reject) {
    counter!(REJECTS, "class" => reject.class.as_str(), "stage" => reject.stage.as_str()).increment(1);
    tracing::warn!(
        record = id,
        class = reject.class.as_str(),
        stage = reject.stage.as_str(),
        "rejected: {}",
        reject.message
    );
}

/// An output is committed.
pub fn output_committed(bytes: usize) {
    counter!(BYTES_OUT).increment(bytes as u64);
}

/// A track's last output is committed.
pub fn track_committed(result: &'static str, since_read: Duration, since_finished: Duration) {
    counter!(RECORDS, "result" => result).increment(1);
    histogram!(RECORD).record(since_read);
    histogram!(WAITING, "stage" => "emit").record(since_finished);
}

/// The producer could not go on and has a successor.
pub fn producer_renewed(error: &KafkaError) {
    counter!(RENEWALS).increment(1);
    tracing::warn!("the producer cannot go on and is replaced: {error}");
}

pub fn committed(outputs: usize, took: Duration) {
    counter!(COMMITS).increment(1);
    histogram!(COMMIT).record(took);
    tracing::debug!(outputs, took_ms = took.as_millis() as u64, "committed");
}

pub fn aborted(reason: &str) {
    counter!(ABORTS).increment(1);
    tracing::warn!("transaction aborted, its results are sent again: {reason}");
}

pub fn rebalanced(event: &'static str, partitions: &[i32], assigned: usize) {
    counter!(REBALANCES, "event" => event).increment(1);
    gauge!(ASSIGNED).set(assigned as f64);
    tracing::info!(?partitions, assigned, "partitions {event}");
}

pub fn paused(partitions: usize) {
    gauge!(PAUSED).set(partitions as f64);
}

pub fn in_flight(partition: i32, bytes: usize) {
    gauge!(IN_FLIGHT, "partition" => partition.to_string()).set(bytes as f64);
}

pub fn lag(partition: i32, records: i64) {
    gauge!(LAG, "partition" => partition.to_string()).set(records as f64);
}

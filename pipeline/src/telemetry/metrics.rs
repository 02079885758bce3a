//! Every metric, declared once, and the events that move them.

use std::{fmt::Write, ops::Range, time::Duration};

use metrics::{Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use tonearm_engine::events::{self, Kind, Metric};
use tonearm_schemas::reject::Reject;

const RECORDS: &str = "tonearm_records_total";
const REJECTS: &str = "tonearm_rejects_total";
const AUDIO: &str = "tonearm_audio_seconds_total";
const BYTES_IN: &str = "tonearm_input_bytes_total";
const BYTES_OUT: &str = "tonearm_output_bytes_total";
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
const SKIPPED: &str = "tonearm_skipped_records_total";
const HELD: &str = "tonearm_held_partitions";
const BUILD: &str = "tonearm_build_info";

const METRICS: [Metric; 20] = [
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
    events::WAITING,
    events::WORKING,
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
        help: "Records from the committed position to the end of the partition.",
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
        name: SKIPPED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Offsets that the input topic deleted before they were read.",
    },
    Metric {
        name: HELD,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Partitions that wait for a person: their topic takes nothing that can be made of a result.",
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

/// A gauge that is not set for this long is gone.
const GAUGE_ENDS: Duration = Duration::from_secs(10);

/// Installs the recorder; the handle renders `/metrics`.
///
/// # Errors
/// A recorder was installed before.
pub fn install(model: &str) -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        // A partition's gauges end with it: the loop sets those that are there again each second.
        .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_ENDS))
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
    is_built(model);
    Ok(handle)
}

/// Says what runs; again with every page of metrics, as gauges end.
pub fn is_built(model: &str) {
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION"), "model" => model.to_owned()).set(1.0);
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

/// A track's prediction is committed.
pub fn predicted(seconds: f64) {
    counter!(AUDIO).increment(seconds.round() as u64);
}

/// A reject is committed.
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
    histogram!(events::WAITING.name, "stage" => "emit").record(since_finished);
}

/// The producer could not go on and has a successor.
pub fn producer_renewed(error: &impl std::fmt::Display) {
    counter!(RENEWALS).increment(1);
    tracing::warn!("the producer cannot go on and is replaced: {error}");
}

pub fn committed(outputs: usize, took: Duration) {
    counter!(COMMITS).increment(1);
    histogram!(COMMIT).record(took);
    tracing::debug!(outputs, took_ms = took.as_millis() as u64, "committed");
}

/// `refused` results of it are not sent again as they are, of which there are lines of their own.
pub fn aborted(reason: &str, refused: usize) {
    counter!(ABORTS).increment(1);
    match refused {
        0 => tracing::warn!("transaction aborted, its results are sent again: {reason}"),
        _ => tracing::debug!(refused, "transaction aborted, its results are sent again: {reason}"),
    }
}

pub fn rebalanced(event: &'static str, partitions: &[i32], assigned: usize) {
    counter!(REBALANCES, "event" => event).increment(1);
    gauge!(ASSIGNED).set(assigned as f64);
    tracing::info!(?partitions, assigned, "partitions {event}");
}

/// How many partitions there are, and how many of them are not read for now.
pub fn shards(assigned: usize, paused: usize) {
    gauge!(ASSIGNED).set(assigned as f64);
    gauge!(PAUSED).set(paused as f64);
}

/// Offsets that the group had before it are gone from the topic.
pub fn skipped(topic: &str, partition: i32, offsets: &Range<i64>) {
    counter!(SKIPPED).increment(offsets.end.abs_diff(offsets.start));
    tracing::warn!(
        topic,
        partition,
        from = offsets.start,
        to = offsets.end,
        "the topic deleted records before they were read; work goes on at the first that is left"
    );
}

pub fn held(partitions: usize) {
    gauge!(HELD).set(partitions as f64);
}

/// The gauges of one partition.
pub struct Shard {
    in_flight: Gauge,
    lag: Gauge,
    /// What `in_flight` was set to.
    bytes: Option<usize>,
    committed: i64,
    end: i64,
}

impl Shard {
    pub fn new(partition: i32) -> Self {
        let partition = partition.to_string();
        let in_flight = gauge!(IN_FLIGHT, "partition" => partition.clone());
        Self { in_flight, lag: gauge!(LAG, "partition" => partition), bytes: None, committed: 0, end: 0 }
    }

    pub fn in_flight(&mut self, bytes: usize) {
        if self.bytes.replace(bytes) != Some(bytes) {
            self.in_flight.set(bytes as f64);
        }
    }

    /// The group is at `offset` of a partition that ends at `end`, at least.
    pub fn committed(&mut self, offset: i64, end: i64) {
        (self.committed, self.end) = (offset, self.end.max(end));
        self.refresh();
    }

    pub fn ends_at(&mut self, end: i64) {
        self.end = self.end.max(end);
        self.refresh();
    }

    pub fn committed_at(&self) -> i64 {
        self.committed
    }

    pub fn lag(&self) -> i64 {
        (self.end - self.committed).max(0)
    }

    /// Sets the gauges again: those that are not set for a while are taken for those of a partition that went.
    pub fn refresh(&self) {
        self.lag.set(self.lag() as f64);
        self.in_flight.set(self.bytes.unwrap_or(0) as f64);
    }
}

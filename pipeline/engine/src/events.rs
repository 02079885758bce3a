//! What happens to a track, as metrics. Each is declared once.

use std::time::Duration;

use metrics::{Unit, histogram};
use tonearm_schemas::reject::Stage;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric as it is declared.
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

pub const WAITING: Metric = Metric {
    name: "tonearm_stage_waiting_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["stage"],
    help: "Time a track waited, by stage: the first that runs here, for a worker; emit, from its end to its commit.",
};
pub const WORKING: Metric = Metric {
    name: "tonearm_stage_working_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["stage"],
    help: "CPU threads' time a stage took for a track, by stage: decode, features, infer.",
};

/// A track waited for a worker.
pub fn waited(stage: Stage, time: Duration) {
    histogram!(WAITING.name, "stage" => stage.as_str()).record(time);
}

/// A stage is through with a track.
pub fn worked(stage: Stage, time: Duration) {
    histogram!(WORKING.name, "stage" => stage.as_str()).record(time);
}

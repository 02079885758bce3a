//! The `tonearm` program: what reads, runs the stages, and writes.
//!
//! In the order a record meets them: `run` reads records and owns the shards, `workers` are the threads they are worked
//! on, `track` makes one track's prediction. Around them: `config`, `kafka` (clients), `telemetry`, and `cli`.

pub mod cli;
pub mod config;
pub mod kafka;
pub mod run;
pub mod telemetry;
pub mod track;
pub mod workers;

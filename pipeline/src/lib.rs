//! The `tonearm` program: the doors to the engine, and what operators see of it.
//!
//! `run` reads records, has the engine work on them, and owns the shards. Around it: `config`, `kafka` (clients),
//! `telemetry`, and `cli`.

pub mod cli;
pub mod config;
pub mod kafka;
pub mod run;
pub mod telemetry;

//! What travels between producers, Tonearm and consumers: predictions, rejects, blocks between stages that run in
//! different processes, and the manifest a model comes with.
//!
//! No Kafka, no tokio, no libtorch here: a consumer written in Rust can depend on this crate alone.

pub mod block;
pub mod manifest;
pub mod prediction;
pub mod reject;

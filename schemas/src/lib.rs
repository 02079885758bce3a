//! What travels between producers, Tonearm and consumers: predictions, rejects, and the manifest a model comes with.
//!
//! No Kafka, no tokio, no libtorch here: a consumer written in Rust can depend on this crate alone.

pub mod manifest;
pub mod prediction;
pub mod reject;

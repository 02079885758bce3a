//! Clients of Kafka: how they are configured, how brokers are first reached, what clusters are asked before work
//! begins, and how their troubles are said.

mod batch;
mod client;
mod cluster;
mod codec;
mod contact;
mod error;
mod handshake;
pub mod headers;
pub mod packed;
mod preflight;
mod properties;
mod raw_admin;
mod snappy;
mod transactions;
mod trouble;

pub use client::{Logged, log, log_error, partitions};
pub use cluster::{Cluster, reach_topics, readable};
pub use contact::{reach, wait_for_brokers};
pub use error::{ClientError, user};
pub use preflight::{Finding, Level, preflight};
pub use properties::{
    FIRST_ANSWER, MAX_RECORD_BYTES, MAX_RESPONSE_BYTES, OVERHEAD_BYTES, client_config, with_properties,
};
pub use raw_admin::{Access, topics};
pub use transactions::why_no_transactions;
pub use trouble::{Cause, Troubles};

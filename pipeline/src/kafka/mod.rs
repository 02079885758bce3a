//! Clients of Kafka: how they are configured, how brokers are first reached, what clusters are asked before work begins, and
//! how their troubles are said.

mod client;
mod cluster;
mod contact;
mod error;
mod handshake;
pub mod headers;
mod preflight;
mod raw_admin;
mod transactions;
mod trouble;

use std::time::Duration;

pub use client::{Logged, client_config, log, log_error, partitions, with_properties};
pub use cluster::{Cluster, reach_topics, readable};
pub use contact::{reach, wait_for_brokers};
pub use error::{ClientError, user};
pub use preflight::{Finding, Level, preflight};
pub use raw_admin::{Access, topics};
pub use transactions::why_no_transactions;
pub use trouble::{Cause, Troubles};

/// How long a command waits for a broker's first answer.
pub const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// librdkafka's highest limit for a record: whether a record is too large is for the topic to say when it is written, and
/// for `limits.max_record_mib` when it is read. A reject is as large as its input, and must never be refused by us.
pub const MAX_RECORD_BYTES: &str = "1000000000";
/// What a consumer takes in one response; librdkafka wants it above the largest record.
pub const MAX_RESPONSE_BYTES: &str = "1100000000";

/// Room in a topic for what travels with a value: key, headers, and the framing of a batch.
pub const OVERHEAD_BYTES: usize = 1 << 20;

//! Why a run ends with an error, and whether a new start may heal it.

use std::io;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{commit::transaction::TransactionsError, partitions::assignment::NoQueue};
use crate::kafka::ClientError;

/// Why `run` ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Transactions(#[from] TransactionsError),
    #[error("the consumer cannot go on: {0}")]
    Consumer(KafkaError),
    #[error("the right to read as a member of group {group} was withdrawn")]
    Expelled { group: String },
    #[error(
        "topic {input} has {inputs} partitions and {output} has {outputs}: \
         blocks keep their partition, so give both topics as many"
    )]
    Partitions { input: String, inputs: usize, output: String, outputs: usize },
    #[error(
        "the group has no position in partition {partition} of topic {topic}, and kafka.missing_offsets = \"stop\"; say where \
         to begin with `tonearm offsets reset`, or with another kafka.missing_offsets"
    )]
    NoPosition { topic: String, partition: i32 },
    #[error("a thread cannot be started: {0}; the system or its container allows too few")]
    Thread(#[from] io::Error),
    #[error("librdkafka has no queue for partition {0} of the input topic")]
    NoQueue(i32),
    #[error(
        "the work on offset {offset} of partition {partition} of topic {topic} ended without a result, which is a bug of \
         Tonearm's; a new start takes the record up again"
    )]
    Dropped { topic: String, partition: i32, offset: i64 },
}

impl RunError {
    /// Whether it stays until a person has changed something.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Client(error) | Self::Transactions(TransactionsError::Client(error)) => error.needs_a_person(),
            Self::Transactions(TransactionsError::Fenced { .. })
            | Self::Partitions { .. }
            | Self::NoPosition { .. } => true,
            Self::Consumer(error) => is_unsupported(error) || is_forbidden(error),
            _ => false,
        }
    }
}

impl From<NoQueue> for RunError {
    fn from(NoQueue(partition): NoQueue) -> Self {
        Self::NoQueue(partition)
    }
}

/// Whether the brokers do not know the group's protocol.
pub fn is_unsupported(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::UnsupportedVersion | RDKafkaErrorCode::UnsupportedFeature))
}

/// Whether we may not read as a member of the group.
pub fn is_forbidden(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

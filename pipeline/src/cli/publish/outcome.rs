//! How a transaction has ended, if whoever began it cannot say it any more.

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
};

use crate::kafka::{self, FIRST_ANSWER, Logged};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Void,
    /// The topic keeps its records no longer.
    Forgotten,
}

/// Asks whether committed readers see the record at `offset`, which is in a transaction that the brokers have ended.
///
/// Transactions of others that are open hide what lies behind them. Between two looks `wait` is called, which says
/// whether to look again; `None` if not.
///
/// # Errors
/// The topic cannot be read.
pub fn of(
    mut client: ClientConfig,
    topic: &str,
    (partition, offset): (i32, i64),
    mut wait: impl FnMut() -> bool,
) -> KafkaResult<Option<Outcome>> {
    client
        .set("group.id", "tonearm-publish")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("receive.message.max.bytes", kafka::MAX_RESPONSE_BYTES);
    let consumer: BaseConsumer<Logged> = client.create_with_context(Logged)?;
    loop {
        // To a committed reader a partition ends where the first open transaction begins.
        let (begin, end) = consumer.fetch_watermarks(topic, partition, FIRST_ANSWER)?;
        if offset < begin {
            return Ok(Some(Outcome::Forgotten));
        }
        if offset < end {
            break;
        }
        if !wait() {
            return Ok(None);
        }
    }
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&assignment)?;
    let is_seen = match consumer.poll(FIRST_ANSWER) {
        Some(Ok(message)) => message.offset() == offset,
        Some(Err(KafkaError::PartitionEOF(_))) => false,
        Some(Err(error)) => return Err(error),
        None => return Err(KafkaError::NoMessageReceived),
    };
    Ok(Some(if is_seen { Outcome::Committed } else { Outcome::Void }))
}

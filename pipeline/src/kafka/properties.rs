//! The properties of librdkafka's clients, and what all of them share.

use std::time::Duration;

use rdkafka::ClientConfig;

use crate::config::{Kafka, Secret};

/// How long a command waits for a broker's first answer.
pub const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// librdkafka's highest limit for a record: whether a record is too large is for the topic to say when it is written,
/// and for `limits.max_record_mib` when it is read. A reject is as large as its input, and must never be refused by us.
pub const MAX_RECORD_BYTES: &str = "1000000000";
/// What a consumer takes in one response; librdkafka wants it above the largest record.
pub const MAX_RESPONSE_BYTES: &str = "1100000000";

/// Room in a topic for what travels with a value: key, headers, and the framing of a batch.
pub const OVERHEAD_BYTES: usize = 1 << 20;

/// The options of every client.
pub fn client_config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", format!("tonearm-{}", kafka.instance_id))
        // A broker that is back is found within a second, not within librdkafka's default of ten.
        .set("reconnect.backoff.max.ms", "1000")
        // One line of ours says what a lost connection means; librdkafka's own lines come at debug level.
        .set("log.connection.close", "false");
    config
}

/// The user's properties go over ours, so they are set last.
pub fn with_properties(mut config: ClientConfig, kafka: &Kafka) -> ClientConfig {
    for (name, value) in &kafka.properties {
        config.set(name, value.reveal());
    }
    config
}

/// What the user set a property to.
pub(super) fn property<'a>(kafka: &'a Kafka, name: &str) -> Option<&'a str> {
    kafka.properties.get(name).map(Secret::reveal)
}

//! Limits of topics, as other people set them, that some results do not keep: where records are poisoned.

use crate::broker::{Topics, topic_config};

const HOUR_MS: &str = "3600000";

/// Gives topics their limits. Every other seed has compacted rejects, and two of four have compacted predictions: such
/// topics take no record without a key.
pub fn set(topics: &Topics, seed: u64) {
    let Topics { audio, predictions, rejected, .. } = topics;
    // Takes whatever is published.
    topic_config(audio, "max.message.bytes", "10000000");
    topic_config(audio, "message.timestamp.after.max.ms", &i64::MAX.to_string());
    for topic in [predictions, rejected] {
        // Kafka's default.
        topic_config(topic, "max.message.bytes", "1048588");
        topic_config(topic, "message.timestamp.before.max.ms", HOUR_MS);
        topic_config(topic, "message.timestamp.after.max.ms", HOUR_MS);
    }
    for (topic, bit) in [(rejected, 1), (predictions, 2)] {
        if seed & bit == bit {
            topic_config(topic, "cleanup.policy", "compact");
            // Never really compacted, or results of equal keys would be lost.
            topic_config(topic, "min.compaction.lag.ms", "1000000000000000");
        }
    }
    // Records of any time stay where they are.
    [audio, predictions, rejected].iter().for_each(|topic| topic_config(topic, "retention.ms", "-1"));
}

//! Limits of topics, as other people set them, that some results do not keep: where records are poisoned.

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
};

use crate::broker::{Topics, brokers};

/// Of a record batch, Kafka's default.
const MAX_MESSAGE_BYTES: &str = "1048588";
const HOUR_MS: &str = "3600000";
/// Records of any age stay where they are.
const KEPT: (&str, &str) = ("retention.ms", "-1");

/// Gives topics their limits. Each second seed has compacted rejects, and each second two have compacted predictions:
/// such topics take no record without a key.
pub fn set(topics: &Topics, seed: u64) {
    // Takes whatever is published.
    let audio =
        vec![KEPT, ("max.message.bytes", "10000000"), ("message.timestamp.after.max.ms", "9223372036854775807")];
    let results = |compacted: bool| {
        let mut limits = vec![KEPT, ("max.message.bytes", MAX_MESSAGE_BYTES)];
        limits.extend([("message.timestamp.before.max.ms", HOUR_MS), ("message.timestamp.after.max.ms", HOUR_MS)]);
        // Never really compacted, or results of equal keys would be lost.
        limits.extend(compacted.then_some(("cleanup.policy", "compact")));
        limits.extend(compacted.then_some(("min.compaction.lag.ms", "1000000000000000")));
        limits
    };
    let (predictions, rejected) = (results(seed & 2 == 2), results(seed & 1 == 1));
    let changes = [(&topics.audio, audio), (&topics.predictions, predictions), (&topics.rejected, rejected)];
    let changes: Vec<AlterConfig<'_>> = changes
        .iter()
        .map(|(topic, limits)| {
            let change = AlterConfig::new(ResourceSpecifier::Topic(topic));
            limits.iter().fold(change, |change, (key, value)| change.set(key, value))
        })
        .collect();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("an admin client");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let options = AdminOptions::new();
    let results = runtime.block_on(admin.alter_configs(&changes, &options)).expect("the broker answers");
    results.into_iter().for_each(|result| _ = result.expect("a topic takes its limits"));
}

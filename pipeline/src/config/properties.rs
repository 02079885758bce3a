//! librdkafka's properties: which are not the user's to set, which hold secrets, and which do not exist.

use rdkafka::{ClientConfig, error::KafkaError, types::RDKafkaConfRes};

use super::secret::Secret;

/// Properties that a promise rests on, with what to do instead.
const OURS: [(&[&str], &str); 17] = [
    (&["bootstrap.servers", "metadata.broker.list"], "kafka.brokers names the brokers"),
    (&["group.id"], "kafka.group_id names the group"),
    (&["group.protocol", "partition.assignment.strategy"], "kafka.group_protocol chooses it"),
    (
        &["group.instance.id"],
        "processes with the same one would push each other out of the group; kafka.instance_id names a process",
    ),
    (&["transactional.id"], "it is made of kafka.group_id and kafka.instance_id, so that no two processes share one"),
    (
        &["transaction.timeout.ms", "message.timeout.ms", "delivery.timeout.ms"],
        "it follows from what a transaction has to carry",
    ),
    (
        &["enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store", "offset.store.method"],
        "positions are committed with the results they belong to, and in no other way",
    ),
    (&["auto.offset.reset"], "kafka.missing_offsets says where a group without positions starts"),
    (&["isolation.level"], "records of transactions that are void must not be read"),
    (&["enable.partition.eof"], "the end of a partition would come as an error"),
    (&["enable.idempotence"], "without it a result may be written twice; it is always on"),
    (&["acks", "request.required.acks"], "a result counts as written once all replicas in sync have it"),
    (
        &["max.in.flight", "max.in.flight.requests.per.connection"],
        "results are written in order, which needs it to stay as it is",
    ),
    (&["queuing.strategy"], "results are written in order"),
    (&["delivery.report.only.error"], "what is written is counted as the broker confirms it"),
    (
        &["message.max.bytes", "receive.message.max.bytes"],
        "a record that the topic takes must not be too large for us; limits.max_record_mib bounds what is worked on",
    ),
    (&["statistics.interval.ms"], "health and lag are read from the statistics"),
];

/// Properties that hold secrets, or may: keys, passwords, and texts that others are written into.
const SECRETS: [&str; 14] = [
    "sasl.jaas.config",
    "sasl.kerberos.kinit.cmd",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "ssl_key",
];

/// Whether the value of a property may be shown. That of an unknown one may not: it may be a misspelt password.
pub fn may_be_shown(name: &str) -> bool {
    !SECRETS.contains(&name) && is_known(name)
}

fn is_known(name: &str) -> bool {
    // Without a value it is set to its default, or refused for another reason.
    const UNKNOWN: RDKafkaConfRes = RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
    let set = ClientConfig::new().set(name, "").create_native_config();
    !matches!(set, Err(KafkaError::ClientConfig(UNKNOWN, ..) | KafkaError::Nul(_)))
}

/// Whether a property can be set to `value`.
///
/// # Errors
/// A promise rests on the property, or librdkafka does not know it or does not take the value. The message goes on
/// where the property's name ends.
pub fn check(name: &str, value: &Secret) -> Result<(), String> {
    if let Some((_, instead)) = OURS.iter().find(|(names, _)| names.contains(&name)) {
        return Err(format!("cannot be set: {instead}"));
    }
    match ClientConfig::new().set(name, value.reveal()).create_native_config() {
        Ok(_) => Ok(()),
        Err(_) if !is_known(name) => Err("is not a property of librdkafka".to_owned()),
        Err(KafkaError::ClientConfig(_, reason, ..)) if may_be_shown(name) => {
            Err(format!("is refused by librdkafka: {}", reason.trim_end()))
        }
        Err(_) => Err("has a value that librdkafka refuses".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_knows_every_property_named_here() {
        for name in OURS.iter().flat_map(|(names, _)| *names).chain(&SECRETS) {
            assert!(is_known(name), "{name}");
        }
    }

    #[test]
    fn secrets_and_unknown_properties_are_not_shown() {
        for name in ["sasl.password", "ssl.key.pem", "sasl.passwrd", "sasl.jaas.config", ""] {
            assert!(!may_be_shown(name), "{name}");
        }
        for name in ["security.protocol", "linger.ms", "sasl.username", "ssl.ca.location", "client.rack"] {
            assert!(may_be_shown(name), "{name}");
        }
    }

    #[test]
    fn a_refusal_shows_harmless_values_only() {
        let refusal = |name, value: &str| check(name, &Secret::new(value.to_owned())).expect_err("a refusal");
        assert!(refusal("security.protocol", "sls").contains("sls"));
        assert!(refusal("fetch.wait.max.ms", "-5").contains("0..300000"));
        assert_eq!(refusal("sasl.passwrd", "opensesame"), "is not a property of librdkafka");
        assert_eq!(refusal("ssl_key", "opensesame"), "has a value that librdkafka refuses");
        assert_eq!(check("sasl.password", &Secret::new("opensesame".to_owned())), Ok(()));
    }
}

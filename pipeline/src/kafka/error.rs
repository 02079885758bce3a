//! Why a command cannot go on with Kafka, in one sentence that says what to change.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{
    properties::{FIRST_ANSWER, property},
    trouble::Cause,
};
use crate::config::Kafka;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no broker answers at {brokers} (kafka.brokers) within {} s: {source}", FIRST_ANSWER.as_secs())]
    Unreachable { brokers: String, source: KafkaError },
    #[error(transparent)]
    Contact(#[from] Cause),
    #[error("topic {topic} does not exist on {brokers}; `tonearm topics create` makes the topics that are missing")]
    NoTopic { topic: String, brokers: String },
    #[error("librdkafka refuses the configuration: {}", refusal(.0))]
    Config(KafkaError),
    #[error("topic {topic} on {brokers}: {source}")]
    Topic { topic: String, brokers: String, source: RDKafkaErrorCode },
    #[error(
        "{user} has no right to {operation} {resource} on {brokers}; an administrator grants it (kafka-acls --add)"
    )]
    Forbidden { user: String, operation: &'static str, resource: String, brokers: String },
    #[error(
        "the brokers at {brokers} cannot keep transactions: transaction.state.log.replication.factor is {factor} and \
         there {}; give the brokers a lower value (1 for a single one), and transaction.state.log.min.isr no higher than it",
        there_are(*.found)
    )]
    NoTransactions { brokers: String, factor: usize, found: usize },
    #[error(
        "the brokers at {brokers} cannot keep transactions: {in_sync} replicas of topic __transaction_state are in sync \
         and transaction.state.log.min.isr wants {wanted}; start the brokers that are down, or lower it"
    )]
    TransactionsUnsafe { brokers: String, in_sync: usize, wanted: usize },
}

fn there_are(brokers: usize) -> String {
    if brokers == 1 { "is 1 broker".to_owned() } else { format!("are {brokers} brokers") }
}

impl ClientError {
    /// Whether it stays until a person has changed something: trying again does not help.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Contact(cause) => cause.needs_a_person(),
            Self::Unreachable { .. } | Self::Topic { .. } | Self::TransactionsUnsafe { .. } => false,
            Self::NoTopic { .. } | Self::Config(_) | Self::Forbidden { .. } | Self::NoTransactions { .. } => true,
        }
    }

    /// What an error of a topic's metadata means. Who may read or write a topic may describe it.
    pub fn of_topic(kafka: &Kafka, topic: &str, operation: &'static str, code: RDKafkaErrorCode) -> Self {
        let (topic, brokers) = (topic.to_owned(), kafka.brokers.clone());
        match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                Self::NoTopic { topic, brokers }
            }
            RDKafkaErrorCode::TopicAuthorizationFailed => Self::forbidden(kafka, operation, format!("topic {topic}")),
            source => Self::Topic { topic, brokers, source },
        }
    }

    /// We may not read as a member of the group.
    pub fn forbidden_group(kafka: &Kafka, group: &str) -> Self {
        Self::forbidden(kafka, "READ", format!("group {group}"))
    }

    /// We may not write in transactions under this id.
    pub fn forbidden_id(kafka: &Kafka, id: &str) -> Self {
        Self::forbidden(kafka, "WRITE", format!("transactional id {id}"))
    }

    pub(super) fn forbidden(kafka: &Kafka, operation: &'static str, resource: String) -> Self {
        Self::Forbidden { user: user(kafka), operation, resource, brokers: kafka.brokers.clone() }
    }
}

/// Whom the brokers take us for.
pub fn user(kafka: &Kafka) -> String {
    ["sasl.username", "sasl.user.name"]
        .iter()
        .find_map(|name| property(kafka, name))
        .map_or_else(|| "this client".to_owned(), |name| format!("user {name}"))
}

/// librdkafka repeats the value of a property that it refuses, which may be a secret under a name with a typo.
fn refusal(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, description, name, value) => {
            let unknown = description.starts_with("No such configuration property");
            if unknown {
                format!("{name:?} is not a property of it (kafka.properties)")
            } else if is_secret(name) || value.is_empty() {
                format!("{name:?} has a value that it does not take (kafka.properties)")
            } else {
                format!("{name:?} = {value:?} is a value that it does not take (kafka.properties)")
            }
        }
        KafkaError::ClientCreation(reason) => format!("{reason} (kafka.properties)"),
        other => other.to_string(),
    }
}

/// Whether nobody may see the value of this property.
fn is_secret(name: &str) -> bool {
    ["password", "secret", "key.pem", "jaas", "token", "oauthbearer.config"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use rdkafka::{ClientConfig, producer::BaseProducer};

    use super::*;

    fn refused(name: &str, value: &str) -> String {
        let client = ClientConfig::new().set(name, value).create::<BaseProducer>();
        ClientError::Config(client.err().expect("librdkafka refuses it")).to_string()
    }

    #[test]
    fn a_refused_property_is_named_with_its_value() {
        let said = refused("security.protocol", "tls");
        assert!(said.contains("\"security.protocol\" = \"tls\""), "{said}");
    }

    #[test]
    fn a_secret_under_a_misspelt_name_is_not_printed() {
        let said = refused("sasl.passwrd", "opensesame");
        assert!(said.contains("sasl.passwrd") && !said.contains("opensesame"), "{said}");
    }

    #[test]
    fn a_key_that_is_no_key_is_not_printed() {
        for name in ["ssl.key.pem", "ssl.keystore.password", "sasl.oauthbearer.client.secret"] {
            assert!(is_secret(name), "{name}");
        }
    }
}

//! Why brokers do not begin transactions, though they answer.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{
    cluster::{Cluster, Settings},
    error::ClientError,
};
use crate::config::Kafka;

/// Kafka's own topic of transactions. It is made at the first transaction.
const LOG: &str = "__transaction_state";
/// How many copies of it are made, and Kafka's default.
const COPIES: &str = "transaction.state.log.replication.factor";
const STOCK_COPIES: &str = "3";

/// What an error of `init_transactions` means. The brokers are asked what librdkafka does not know: to it they just
/// never have a coordinator.
pub fn why_no_transactions(kafka: &Kafka, transactional_id: &str, source: KafkaError) -> ClientError {
    if source.rdkafka_error_code() == Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) {
        return ClientError::forbidden_id(kafka, transactional_id);
    }
    let found = Cluster::connect(kafka).and_then(|cluster| {
        let mut settings = cluster.broker_settings();
        // They have failed, and most who may not see the settings have not changed them either.
        settings.entry(COPIES.to_owned()).or_insert_with(|| STOCK_COPIES.to_owned());
        problem(kafka, &cluster, &settings)
    });
    match found {
        Ok(Some(problem)) => problem,
        Ok(None) | Err(_) => ClientError::Unreachable { brokers: kafka.brokers.clone(), source },
    }
}

/// Why the cluster cannot keep transactions, if it cannot.
///
/// # Errors
/// The brokers do not answer any more.
pub(super) fn problem(
    kafka: &Kafka,
    cluster: &Cluster<'_>,
    settings: &Settings,
) -> Result<Option<ClientError>, ClientError> {
    let number = |name: &str| settings.get(name).and_then(|value| value.parse::<usize>().ok());
    let brokers = || kafka.brokers.clone();
    Ok(match cluster.topics(&[LOG])?.pop() {
        Some(Ok(log)) => {
            let in_sync = log.partitions.iter().map(|partition| partition.in_sync).min().unwrap_or(0);
            let wanted = number("transaction.state.log.min.isr").unwrap_or(1);
            (in_sync < wanted).then(|| ClientError::TransactionsUnsafe { brokers: brokers(), in_sync, wanted })
        }
        Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {
            let found = cluster.brokers.len();
            number(COPIES).filter(|factor| found < *factor).map(|factor| ClientError::NoTransactions {
                brokers: brokers(),
                factor,
                found,
            })
        }
        // It may not be seen.
        _ => None,
    })
}

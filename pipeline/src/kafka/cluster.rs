//! What a cluster says of itself, asked without changing anything.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::Client,
    error::{KafkaError, RDKafkaErrorCode},
    util::Timeout,
};

use super::{
    client::Logged,
    contact::reach,
    error::ClientError,
    properties::{FIRST_ANSWER, client_config, with_properties},
    raw_admin::{self, Access, Broker, Rights, Topic},
};
use crate::config::Kafka;

/// How long one question may take: brokers that have answered once answer soon.
const PATIENCE: Duration = FIRST_ANSWER;
/// Between two questions for a group that has no coordinator yet.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Settings by name. Empty if they may not be seen.
pub type Settings = BTreeMap<String, String>;

pub struct Cluster<'a> {
    kafka: &'a Kafka,
    admin: AdminClient<Logged>,
    pub brokers: Vec<Broker>,
    /// What we may do with the cluster as a whole.
    pub rights: Rights,
}

impl<'a> Cluster<'a> {
    /// # Errors
    /// No broker answers, or librdkafka refuses the configuration.
    pub fn connect(kafka: &'a Kafka) -> Result<Self, ClientError> {
        let mut config = with_properties(client_config(kafka), kafka);
        // Asking for a topic does not make it.
        config.set("allow.auto.create.topics", "false");
        let admin: AdminClient<Logged> = config.create_with_context(Logged).map_err(ClientError::Config)?;
        let (brokers, rights) = raw_admin::cluster(admin.inner(), PATIENCE).map_err(|e| unreachable(kafka, e))?;
        Ok(Self { kafka, admin, brokers, rights })
    }

    pub fn admin(&self) -> &AdminClient<Logged> {
        &self.admin
    }

    /// `names` in their order; what is wrong with one is its own error.
    ///
    /// # Errors
    /// The brokers do not answer any more.
    pub fn topics(&self, names: &[&str]) -> Result<Vec<Result<Topic, RDKafkaErrorCode>>, ClientError> {
        raw_admin::topics(self.admin.inner(), names, PATIENCE).map_err(|e| unreachable(self.kafka, e))
    }

    /// # Errors
    /// One of `topics` does not exist, or we may not do this with it; or the brokers do not answer any more.
    pub fn allows(&self, access: Access, topics: &[&str]) -> Result<(), ClientError> {
        let mut found = topics.iter().zip(self.topics(topics)?);
        found.try_for_each(|(name, topic)| allowed(self.kafka, access, name, topic))
    }

    /// # Errors
    /// We may not read as a member of the group, or the brokers do not answer any more.
    pub fn admits(&self, group: &str) -> Result<(), ClientError> {
        match self.group(group)?.forbid(Access::Read) {
            true => Err(ClientError::forbidden_group(self.kafka, group)),
            false => Ok(()),
        }
    }

    /// What we may do with the group.
    ///
    /// # Errors
    /// The group may not even be described, or the brokers do not answer any more.
    pub fn group(&self, name: &str) -> Result<Rights, ClientError> {
        use RDKafkaErrorCode::{
            CoordinatorLoadInProgress, CoordinatorNotAvailable, GroupAuthorizationFailed, NotCoordinator,
        };
        let asked = Instant::now();
        loop {
            match raw_admin::group(self.admin.inner(), name, PATIENCE) {
                Ok(rights) => return Ok(rights),
                // The first group of a cluster gets its coordinator when it is asked for.
                Err(KafkaError::AdminOp(CoordinatorLoadInProgress | CoordinatorNotAvailable | NotCoordinator))
                    if asked.elapsed() < PATIENCE =>
                {
                    std::thread::sleep(ASK_AGAIN);
                }
                Err(KafkaError::AdminOp(GroupAuthorizationFailed)) => {
                    return Err(ClientError::forbidden_group(self.kafka, name));
                }
                Err(other) => return Err(unreachable(self.kafka, other)),
            }
        }
    }

    pub fn topic_settings(&self, name: &str) -> Settings {
        self.settings(&ResourceSpecifier::Topic(name))
    }

    /// Whether the brokers have groups of the protocol "consumer" (KIP-848); `None` if we may not see their settings.
    pub fn has_consumer_groups(&self) -> Option<bool> {
        let settings = self.broker_settings();
        // Brokers of 3.7 and later have the setting; those before know the classic protocol alone.
        let protocols = settings.get("group.coordinator.rebalance.protocols").map_or("", String::as_str);
        (!settings.is_empty()).then(|| protocols.split(',').any(|protocol| protocol.trim() == "consumer"))
    }

    /// The settings of one of the brokers; they are the same on all, or ought to be.
    pub fn broker_settings(&self) -> Settings {
        self.brokers.first().map(|broker| self.settings(&ResourceSpecifier::Broker(broker.id))).unwrap_or_default()
    }

    fn settings(&self, of: &ResourceSpecifier<'_>) -> Settings {
        let options = AdminOptions::new().request_timeout(Some(Timeout::After(PATIENCE)));
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return Settings::new() };
        let found = runtime.block_on(self.admin.describe_configs([of], &options));
        let entries = found.ok().and_then(|mut resources| resources.pop()?.ok()).map(|resource| resource.entries);
        entries.into_iter().flatten().filter_map(|entry| Some((entry.name, entry.value?))).collect()
    }
}

/// [`reach`](super::reach), and sees to it that all `topics` can be read or written.
///
/// # Errors
/// No broker answers, one of `topics` does not exist, or we may not do this with it.
pub fn reach_topics(kafka: &Kafka, access: Access, topics: &[&str]) -> Result<(), ClientError> {
    reach(kafka)?;
    Cluster::connect(kafka)?.allows(access, topics)
}

/// Asks whether `topic` can be read, by means of a client that is there.
///
/// # Errors
/// No broker answers within `timeout`, there is no such topic, or we may not read it.
pub fn readable<C: ClientContext>(
    client: &Client<C>,
    kafka: &Kafka,
    topic: &str,
    timeout: Duration,
) -> Result<(), ClientError> {
    let found = raw_admin::topics(client, &[topic], timeout).map_err(|e| unreachable(kafka, e))?.pop();
    allowed(kafka, Access::Read, topic, found.unwrap_or(Err(RDKafkaErrorCode::UnknownTopic)))
}

fn allowed(
    kafka: &Kafka,
    access: Access,
    name: &str,
    topic: Result<Topic, RDKafkaErrorCode>,
) -> Result<(), ClientError> {
    let topic = topic.map_err(|code| ClientError::of_topic(kafka, name, access.as_str(), code))?;
    match topic.rights.forbid(access) {
        true => Err(ClientError::forbidden(kafka, access.as_str(), format!("topic {name}"))),
        false => Ok(()),
    }
}

fn unreachable(kafka: &Kafka, source: KafkaError) -> ClientError {
    ClientError::Unreachable { brokers: kafka.brokers.clone(), source }
}

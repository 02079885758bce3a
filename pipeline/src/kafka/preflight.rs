//! What a run would not fit, found before it begins: topics, limits, rights, transactions. Nothing is changed for it.

use std::fmt::Display;

use rdkafka::error::RDKafkaErrorCode;
use serde::Serialize;

use super::{
    cluster::{Cluster, Settings},
    error::{ClientError, user},
    handshake,
    properties::OVERHEAD_BYTES,
    raw_admin::{Access, Topic},
    transactions,
};
use crate::config::{Config, Delivery, GroupProtocol};

/// How much a finding matters. What may heal by itself, such as a broker that is down, is no failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// It works, but not for every record.
    Warn,
    /// It does not work until somebody has changed something.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// `topic audio`.
    pub about: String,
    pub says: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    pub fn ok(about: impl Display, says: impl Display) -> Self {
        Self { level: Level::Ok, about: about.to_string(), says: says.to_string(), cure: None }
    }

    pub fn warn(about: impl Display, says: impl Display, cure: impl Display) -> Self {
        let cure = Some(cure.to_string());
        Self { level: Level::Warn, about: about.to_string(), says: says.to_string(), cure }
    }

    pub fn fail(about: impl Display, says: impl Display, cure: impl Display) -> Self {
        Self { level: Level::Fail, ..Self::warn(about, says, cure) }
    }
}

/// Asks the brokers for all that a run with `config` needs of them, and tells what was found, good or bad.
///
/// # Errors
/// No broker answers.
pub fn preflight(config: &Config) -> Result<Vec<Finding>, ClientError> {
    let cluster = Cluster::connect(&config.kafka)?;
    let brokers = cluster.broker_settings();
    let mut found = Vec::new();
    addresses(&cluster, &mut found);
    topics(config, &cluster, &brokers, &mut found)?;
    group(config, &cluster, &brokers, &mut found)?;
    if config.runtime.delivery == Delivery::ExactlyOnce {
        transactional(config, &cluster, &brokers, &mut found)?;
    }
    Ok(found)
}

/// Brokers answer at `kafka.brokers` and are then talked to at the addresses that they advertise.
fn addresses(cluster: &Cluster<'_>, found: &mut Vec<Finding>) {
    let silent: Vec<Finding> = cluster
        .brokers
        .iter()
        .filter_map(|broker| {
            let error = handshake::connect(&broker.address).err()?;
            let says = format!("it says that it is at {}, where nobody answers: {error}", broker.address);
            let cure = "start it, or correct its advertised.listeners";
            Some(Finding::warn(format_args!("broker {}", broker.id), says, cure))
        })
        .collect();
    let level = if silent.len() == cluster.brokers.len() { Level::Fail } else { Level::Warn };
    if silent.is_empty() {
        let addresses: Vec<&str> = cluster.brokers.iter().map(|broker| broker.address.as_str()).collect();
        found.push(Finding::ok("brokers", addresses.join(", ")));
    }
    found.extend(silent.into_iter().map(|finding| Finding { level, ..finding }));
}

/// A topic as it is, beside what it is for.
struct Seen<'a> {
    name: &'a str,
    access: Access,
    topic: Topic,
    settings: Settings,
}

impl Seen<'_> {
    fn number(&self, setting: &str) -> Option<i64> {
        self.settings.get(setting)?.parse().ok()
    }

    fn about(&self) -> String {
        format!("topic {}", self.name)
    }

    /// The command that changes a setting.
    fn set(&self, setting: &str, value: impl Display) -> String {
        format!("kafka-configs --alter --entity-type topics --entity-name {} --add-config {setting}={value}", self.name)
    }
}

fn topics(
    config: &Config,
    cluster: &Cluster<'_>,
    brokers: &Settings,
    found: &mut Vec<Finding>,
) -> Result<(), ClientError> {
    let (input, output, rejected) = (config.input_topic(), config.output_topic(), config.topics.rejected.as_str());
    let mut wanted = vec![(input, Access::Read), (output, Access::Write), (rejected, Access::Write)];
    if config.runtime.stages.reads().is_some() {
        // Rejects are complete: the original record is read again for them.
        wanted.push((&config.topics.audio, Access::Read));
    }
    let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
    let mut seen = Vec::new();
    for ((name, access), answer) in wanted.iter().zip(cluster.topics(&names)?) {
        match answer {
            Ok(topic) => seen.push(Seen { name, access: *access, topic, settings: cluster.topic_settings(name) }),
            Err(code) => found.push(missing(config, name, *access, code)),
        }
    }
    for topic in &seen {
        let before = found.len();
        rights(config, topic, found);
        copies(topic, found);
        if topic.name == output || topic.name == rejected {
            policy(topic, found);
        }
        if topic.settings.is_empty() {
            found.push(Finding::warn(
                topic.about(),
                "its settings may not be seen, so its limits are not checked",
                acl(config, "DESCRIBE_CONFIGS", &format!("--topic {}", topic.name)),
            ));
        }
        if found.len() == before {
            let count = topic.topic.partitions.len();
            let can = if topic.access == Access::Read { "can be read" } else { "can be written" };
            found.push(Finding::ok(topic.about(), format_args!("{count} partitions, {can}")));
        }
    }
    let of = |name: &str| seen.iter().find(|seen| seen.name == name);
    if let (Some(input), Some(output)) = (of(input), of(output)) {
        partitions(config, input, output, found);
    }
    for to in [of(output), of(rejected)].into_iter().flatten() {
        room(config, of(input), to, brokers, found);
    }
    if let Some(rejected) = of(rejected) {
        timestamps(of(input), rejected, found);
        retention(of(input), rejected, found);
    }
    Ok(())
}

fn missing(config: &Config, name: &str, access: Access, code: RDKafkaErrorCode) -> Finding {
    let about = format!("topic {name}");
    match code {
        RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition => {
            Finding::fail(about, "does not exist", "tonearm topics create")
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => forbidden(config, name, access),
        code => Finding::fail(about, code, "see the brokers' logs"),
    }
}

/// The command that grants a right.
fn acl(config: &Config, operation: &str, resource: &str) -> String {
    let name = user(&config.kafka);
    let principal = name.strip_prefix("user ").map_or_else(|| "User:…".to_owned(), |name| format!("User:{name}"));
    format!("kafka-acls --add --allow-principal {principal} --operation {operation} {resource}")
}

fn rights(config: &Config, topic: &Seen<'_>, found: &mut Vec<Finding>) {
    if topic.topic.rights.forbid(topic.access) {
        found.push(forbidden(config, topic.name, topic.access));
    }
}

fn forbidden(config: &Config, topic: &str, access: Access) -> Finding {
    let operation = access.as_str();
    let says = format!("{} has no right to {operation} it", user(&config.kafka));
    Finding::fail(format_args!("topic {topic}"), says, acl(config, operation, &format!("--topic {topic}")))
}

/// What is written must be able to reach enough copies.
fn copies(topic: &Seen<'_>, found: &mut Vec<Finding>) {
    let fewest = topic.topic.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0);
    let wanted = topic.number("min.insync.replicas").and_then(|wanted| usize::try_from(wanted).ok()).unwrap_or(0);
    if topic.access == Access::Write && fewest < wanted {
        let says = format!("cannot be written: it has {fewest} copies and min.insync.replicas is {wanted}");
        found.push(Finding::fail(topic.about(), says, topic.set("min.insync.replicas", fewest)));
    }
    let in_sync = topic.topic.partitions.iter().map(|partition| partition.in_sync).min().unwrap_or(0);
    if fewest >= wanted && in_sync < wanted.max(1) {
        let says = format!("a partition has {in_sync} copies in sync, and {} are needed", wanted.max(1));
        found.push(Finding::warn(topic.about(), says, "start the brokers that are down"));
    }
}

/// Keys are track ids: they may be missing, and they come again.
fn policy(topic: &Seen<'_>, found: &mut Vec<Finding>) {
    if topic.settings.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        found.push(Finding::warn(
            topic.about(),
            "is compacted: results without a key are refused, and those of one key replace each other",
            topic.set("cleanup.policy", "delete"),
        ));
    }
}

fn partitions(config: &Config, input: &Seen<'_>, output: &Seen<'_>, found: &mut Vec<Finding>) {
    let (inputs, outputs) = (input.topic.partitions.len(), output.topic.partitions.len());
    if inputs == outputs {
        return;
    }
    let says = format!("has {outputs} partitions, and {} has {inputs}", input.name);
    let (few, many) = if outputs < inputs { (output.name, inputs) } else { (input.name, outputs) };
    let cure = format!("kafka-topics --alter --topic {few} --partitions {many}");
    found.push(if config.runtime.stages.writes().is_some() {
        Finding::fail(output.about(), format_args!("{says}: blocks keep their partition"), cure)
    } else {
        let says = format!("{says}: results go to partitions by their key, and keep the order of a key only");
        Finding::warn(output.about(), says, cure)
    });
}

/// A reject holds its record, and a result its key and headers.
fn room(config: &Config, input: Option<&Seen<'_>>, to: &Seen<'_>, brokers: &Settings, found: &mut Vec<Finding>) {
    // Blocks are half a MiB, so every topic has room for them.
    if to.name == config.output_topic() && config.runtime.stages.writes().is_some() {
        return;
    }
    let Some(limit) = to.number("max.message.bytes") else { return };
    let largest = (config.limits.max_record_bytes + OVERHEAD_BYTES) as i64;
    let comes = input.and_then(|input| input.number("max.message.bytes")).unwrap_or(0);
    let wanted = if to.name == config.topics.rejected { largest.max(comes) } else { largest };
    if limit < wanted {
        let says = if to.name == config.topics.rejected {
            format!("takes {limit} bytes, and records may have {wanted}: rejects of larger records lose their value")
        } else {
            format!(
                "takes {limit} bytes, and records may have {wanted}: results whose key or windows are larger become rejects"
            )
        };
        found.push(Finding::warn(to.about(), says, to.set("max.message.bytes", wanted)));
    }
    let request = brokers.get("socket.request.max.bytes").and_then(|value| value.parse::<i64>().ok());
    if let Some(request) = request.filter(|request| *request < wanted) {
        found.push(Finding::warn(
            to.about(),
            format_args!("brokers take requests of {request} bytes, and records may have {wanted}"),
            format_args!("set socket.request.max.bytes={wanted} on the brokers, or lower limits.max_record_mib"),
        ));
    }
}

/// A reject keeps its record's timestamp.
fn timestamps(input: Option<&Seen<'_>>, rejected: &Seen<'_>, found: &mut Vec<Finding>) {
    let limit = |topic: &Seen<'_>, setting: &str| topic.number(setting).unwrap_or(i64::MAX);
    for (setting, old) in [("message.timestamp.before.max.ms", "old"), ("message.timestamp.after.max.ms", "far ahead")]
    {
        // A record that has been let in so far ahead is not further ahead later; an old one only gets older.
        let enough = match setting {
            "message.timestamp.after.max.ms" => input.map_or(0, |input| limit(input, setting)),
            _ => i64::MAX,
        };
        let limit = limit(rejected, setting);
        if limit < enough {
            found.push(Finding::warn(
                rejected.about(),
                format_args!("refuses timestamps that are more than {} {old}: such rejects lose theirs", span(limit)),
                rejected.set(setting, enough),
            ));
        }
    }
}

/// Retention counts from the timestamp, which is the record's.
fn retention(input: Option<&Seen<'_>>, rejected: &Seen<'_>, found: &mut Vec<Finding>) {
    let kept = |topic: &Seen<'_>| topic.number("retention.ms").map(|ms| if ms < 0 { i64::MAX } else { ms });
    let (Some(rejects), Some(records)) = (kept(rejected), input.and_then(kept)) else { return };
    if rejects <= records && rejects < i64::MAX {
        found.push(Finding::warn(
            rejected.about(),
            format_args!(
                "is kept for {} from the time of the record, no longer than the records themselves",
                span(rejects)
            ),
            rejected.set("retention.ms", -1),
        ));
    }
}

/// Milliseconds for people.
fn span(ms: i64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

fn group(
    config: &Config,
    cluster: &Cluster<'_>,
    brokers: &Settings,
    found: &mut Vec<Finding>,
) -> Result<(), ClientError> {
    let group = &config.kafka.group_id;
    let about = format!("group {group}");
    let allowed = match cluster.group(group) {
        Ok(rights) => !rights.forbid(Access::Read),
        Err(ClientError::Forbidden { .. }) => false,
        Err(error) => return Err(error),
    };
    if allowed {
        found.push(Finding::ok(&about, "can be joined"));
    } else {
        let says = format!("{} has no right to READ it, which is to join it", user(&config.kafka));
        found.push(Finding::fail(&about, says, acl(config, "READ", &format!("--group {group}"))));
    }
    // What brokers of 3.7 and later have; those before know no other protocol than the classic one.
    let protocols = brokers.get("group.coordinator.rebalance.protocols").map(String::as_str);
    let speaks = |protocol| protocols.is_some_and(|all| all.split(',').any(|one| one.trim() == protocol));
    if config.kafka.group_protocol == GroupProtocol::Consumer && !brokers.is_empty() && !speaks("consumer") {
        found.push(Finding::fail(
            about,
            "the brokers do not have the group protocol \"consumer\" (KIP-848)",
            "set kafka.group_protocol = \"classic\"",
        ));
    }
    Ok(())
}

fn transactional(
    config: &Config,
    cluster: &Cluster<'_>,
    brokers: &Settings,
    found: &mut Vec<Finding>,
) -> Result<(), ClientError> {
    let id = config.transactional_id();
    let about = format!("transactional id {id}");
    if let Some(problem) = transactions::problem(&config.kafka, cluster, brokers)? {
        let text = problem.to_string();
        let (says, cure) = text.split_once("; ").unwrap_or((&text, "see the brokers' logs"));
        let level = if problem.needs_a_person() { Level::Fail } else { Level::Warn };
        found.push(Finding { level, ..Finding::warn("transactions", says, cure) });
    }
    if cluster.rights.administrate() {
        found.push(Finding::ok(about, "can be used"));
    } else {
        found.push(Finding::warn(
            about,
            "whether it may be used cannot be asked without taking it from a process that runs",
            acl(config, "WRITE --operation DESCRIBE", &format!("--transactional-id {id}")),
        ));
    }
    Ok(())
}

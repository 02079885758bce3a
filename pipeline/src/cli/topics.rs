//! `tonearm topics`

use std::time::{Duration, Instant};

use clap::Subcommand;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    error::RDKafkaErrorCode,
    util::Timeout,
};

use super::{CommandError, CommandResult, Global, flag, say};
use crate::{
    config::Config,
    kafka::{self, Cluster, FIRST_ANSWER, Logged, OVERHEAD_BYTES},
    telemetry::log,
};

/// A reject keeps its record's timestamp, and retention counts from it. A record may have waited for all of its own
/// topic's retention, a week by Kafka's default; a quarter leaves people time to look, to mend, and to publish it
/// again.
const REJECTED_RETENTION_DAYS: u32 = 90;

#[derive(Subcommand)]
pub enum TopicsCommand {
    /// Make the topics that are missing; those that exist stay as they are
    #[command(after_help = "Examples:\n  \
        tonearm topics create\n  \
        tonearm topics create --partitions 12 --replication 3\n\n\
        Topics that exist with other settings are named, with the command that changes them.")]
    Create {
        /// Partitions of each topic: as many can be worked on side by side
        #[arg(long, value_name = "N")]
        partitions: Option<u32>,
        /// Copies of each partition, at most one per broker [default: the broker's]
        #[arg(long, value_name = "N")]
        replication: Option<u32>,
        /// How long rejects are kept, counted from the time of their record; 0: for ever [default: 90]
        #[arg(long, value_name = "DAYS")]
        rejected_retention: Option<u32>,
    },
}

/// A topic as it is to be made.
struct Wanted<'a> {
    name: &'a str,
    settings: Vec<(&'static str, String)>,
}

pub fn main(global: &Global, command: &TopicsCommand) -> CommandResult {
    let TopicsCommand::Create { partitions, replication, rejected_retention } = command;
    let config = global.config([
        flag("topics.partitions", "--partitions", *partitions),
        flag("topics.replication", "--replication", *replication),
    ])?;
    log::init(&config.log.level, config.log.json);
    kafka::reach(&config.kafka)?;
    let cluster = Cluster::connect(&config.kafka)?;

    let topics = &config.topics;
    let wanted = wanted(&config, rejected_retention.unwrap_or(REJECTED_RETENTION_DAYS));
    let replication = if topics.replication == 0 { -1 } else { topics.replication };
    let new: Vec<NewTopic<'_>> = wanted
        .iter()
        .map(|topic| {
            let new = NewTopic::new(topic.name, topics.partitions, TopicReplication::Fixed(replication));
            topic.settings.iter().fold(new, |new, (setting, value)| new.set(setting, value))
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::failed)?;
    let options = AdminOptions::new().request_timeout(Some(Timeout::After(FIRST_ANSWER)));
    let results = runtime.block_on(cluster.admin().create_topics(&new, &options)).map_err(|e| {
        CommandError::Failed(format!("no topic was created on {} (kafka.brokers): {e}", config.kafka.brokers))
    })?;

    let mut failed = Vec::new();
    for (topic, result) in wanted.iter().zip(results) {
        match result {
            Ok(name) => say::line(format_args!("{name}: created with {} partitions", topics.partitions))?,
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => existing(&cluster, topic)?,
            Err((name, code)) => failed.push((name, code)),
        }
    }
    let Some((name, code)) = failed.pop() else { return wait_for_leaders(cluster.admin(), &new) };
    let not_created = |name: &str, code| format!("topic {name} cannot be created: {}", reason(&config, code));
    let needs_a_person = failed.iter().all(|(_, code)| is_for_good(*code)) && is_for_good(code);
    for (name, code) in &failed {
        say::problem(not_created(name, *code));
    }
    let last = not_created(&name, code);
    Err(if needs_a_person { CommandError::NeedsAPerson(last) } else { CommandError::Failed(last) })
}

fn wanted(config: &Config, rejected_retention_days: u32) -> Vec<Wanted<'_>> {
    let topics = &config.topics;
    // A record has its key and headers besides the largest value, and a result may have all of that and what is added.
    let record_bytes = config.limits.max_record_bytes + OVERHEAD_BYTES;
    let limit = |bytes: usize| ("max.message.bytes", bytes.to_string());
    let mut all: Vec<Wanted<'_>> = [&topics.audio, &topics.pcm, &topics.features]
        .into_iter()
        .map(|name| Wanted { name, settings: vec![limit(record_bytes)] })
        .collect();
    // Keys are track ids: they may be missing, and they come again, so results are not compacted.
    let result = |name| Wanted {
        name,
        settings: vec![limit(record_bytes + OVERHEAD_BYTES), ("cleanup.policy", "delete".to_owned())],
    };
    all.push(result(&topics.predictions));
    let mut rejected = result(&topics.rejected);
    let retention_ms = match rejected_retention_days {
        0 => -1,
        days => i64::from(days) * 24 * 3_600_000,
    };
    rejected.settings.extend([
        ("retention.ms", retention_ms.to_string()),
        // A reject keeps its record's time, whatever clock that came from.
        ("message.timestamp.type", "CreateTime".to_owned()),
        ("message.timestamp.before.max.ms", i64::MAX.to_string()),
        ("message.timestamp.after.max.ms", i64::MAX.to_string()),
    ]);
    all.push(rejected);
    all
}

/// Names what of a topic is other than it would be made.
fn existing(cluster: &Cluster<'_>, topic: &Wanted<'_>) -> CommandResult {
    let name = topic.name;
    match cluster.topics(&[name])?.pop() {
        Some(Ok(found)) => say::line(format_args!("{name}: exists with {} partitions", found.partitions.len()))?,
        _ => say::line(format_args!("{name}: exists"))?,
    }
    let found = cluster.topic_settings(name);
    let other: Vec<(&str, &String, &String)> = topic
        .settings
        .iter()
        .filter_map(|(setting, wanted)| Some((*setting, wanted, found.get(*setting)?)))
        .filter(|(_, wanted, found)| !is_enough(wanted, found))
        .collect();
    for (setting, wanted, found) in &other {
        say::line(format_args!("  {setting} is {found}, not {wanted}"))?;
    }
    if !other.is_empty() {
        let settings: Vec<String> = other.iter().map(|(setting, wanted, _)| format!("{setting}={wanted}")).collect();
        say::line(format_args!(
            "  to change it: kafka-configs --alter --entity-type topics --entity-name {name} --add-config {}",
            settings.join(",")
        ))?;
    }
    Ok(())
}

/// Whether a limit is as high, or another setting the same.
fn is_enough(wanted: &str, found: &str) -> bool {
    // −1 is no limit.
    let limit = |text: &str| text.parse::<i64>().ok().map(|limit| if limit < 0 { i64::MAX } else { limit });
    match (limit(wanted), limit(found)) {
        (Some(wanted), Some(found)) => found >= wanted,
        _ => wanted == found,
    }
}

/// Whether trying again does not help.
fn is_for_good(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        ClusterAuthorizationFailed, InvalidConfig, InvalidPartitions, InvalidReplicationFactor, PolicyViolation,
        TopicAuthorizationFailed,
    };
    matches!(
        code,
        ClusterAuthorizationFailed
            | TopicAuthorizationFailed
            | InvalidConfig
            | InvalidPartitions
            | InvalidReplicationFactor
            | PolicyViolation
    )
}

fn reason(config: &Config, code: RDKafkaErrorCode) -> String {
    match code {
        RDKafkaErrorCode::ClusterAuthorizationFailed | RDKafkaErrorCode::TopicAuthorizationFailed => {
            let user = kafka::user(&config.kafka);
            format!(
                "{user} has no right to CREATE it; an administrator grants it (kafka-acls --add), or makes the topic"
            )
        }
        RDKafkaErrorCode::InvalidReplicationFactor => {
            "there are not as many brokers as copies are asked for (topics.replication)".to_owned()
        }
        code => code.to_string(),
    }
}

/// Brokers answer before a new topic can be used: whoever comes next must not meet one without leaders.
fn wait_for_leaders(admin: &AdminClient<Logged>, topics: &[NewTopic<'_>]) -> CommandResult {
    let asked = Instant::now();
    for topic in topics {
        loop {
            let metadata = admin.inner().fetch_metadata(Some(topic.name), Timeout::After(FIRST_ANSWER));
            let ready = metadata.is_ok_and(|metadata| {
                metadata.topics().iter().any(|found| {
                    let partitions = found.partitions();
                    !partitions.is_empty() && partitions.iter().all(|partition| partition.leader() >= 0)
                })
            });
            if ready {
                break;
            }
            if asked.elapsed() > FIRST_ANSWER {
                return Err(CommandError::Failed(format!("topic {} has partitions without a leader", topic.name)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

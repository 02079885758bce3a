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
    kafka::{self, FIRST_ANSWER, Logged},
    telemetry::log,
};

#[derive(Subcommand)]
pub enum TopicsCommand {
    /// Make the topics that are missing; those that exist stay as they are
    #[command(after_help = "Examples:\n  \
        tonearm topics create\n  \
        tonearm topics create --partitions 12 --replication 3")]
    Create {
        /// Partitions of each topic: as many can be worked on side by side
        #[arg(long, value_name = "N")]
        partitions: Option<u32>,
        /// Copies of each partition, at most one per broker [default: the broker's]
        #[arg(long, value_name = "N")]
        replication: Option<u32>,
    },
}

pub fn main(global: &Global, command: &TopicsCommand) -> CommandResult {
    let TopicsCommand::Create { partitions, replication } = command;
    let config = global.config([
        flag("topics.partitions", "--partitions", *partitions),
        flag("topics.replication", "--replication", *replication),
    ])?;
    log::init(&config.log.level, config.log.json);
    let client = kafka::with_properties(kafka::client_config(&config.kafka), &config.kafka);
    let admin: AdminClient<Logged> = client.create_with_context(Logged).map_err(CommandError::failed)?;

    let topics = &config.topics;
    // A record travels with its headers, so topics allow a little more than the largest value.
    let max_bytes = (config.limits.max_record_bytes + (1 << 20)).to_string();
    let replication = if topics.replication == 0 { -1 } else { topics.replication };
    let wanted: Vec<NewTopic<'_>> =
        [&topics.audio, &topics.pcm, &topics.features, &topics.predictions, &topics.rejected]
            .into_iter()
            .map(|name| {
                NewTopic::new(name, topics.partitions, TopicReplication::Fixed(replication))
                    .set("max.message.bytes", &max_bytes)
            })
            .collect();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::failed)?;
    let options = AdminOptions::new().request_timeout(Some(Timeout::After(FIRST_ANSWER)));
    let results = runtime.block_on(admin.create_topics(&wanted, &options)).map_err(|e| {
        CommandError::Failed(format!(
            "no broker answers at {} (kafka.brokers) within {} s: {e}",
            config.kafka.brokers,
            FIRST_ANSWER.as_secs()
        ))
    })?;
    let mut failed = false;
    for result in results {
        match result {
            Ok(topic) => say::line(format_args!("{topic}: created with {} partitions", topics.partitions))?,
            Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => say::line(format_args!("{topic}: exists"))?,
            Err((topic, error)) => {
                failed = true;
                say::problem(format_args!("topic {topic} cannot be created: {error}"));
            }
        }
    }
    if failed {
        return Err(CommandError::Said);
    }
    wait_for_leaders(&admin, &wanted)
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

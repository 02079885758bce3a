//! `tonearm config`

use clap::Subcommand;
use rdkafka::{consumer::BaseConsumer, error::KafkaError, producer::BaseProducer};

use super::{CommandError, CommandResult, Global, say};
use crate::{
    config::{Config, DEFAULTS, GroupProtocol, HIDDEN, may_be_shown},
    kafka,
};

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration is good; every problem at once
    #[command(after_help = "Example:\n  tonearm --config my.toml config check")]
    Check,
    /// Print the configuration in use: file, environment and flags over the defaults
    #[command(after_help = "Examples:\n  tonearm config print\n  tonearm config print --defaults > tonearm.toml")]
    Print {
        /// The commented defaults instead
        #[arg(long)]
        defaults: bool,
    },
}

pub fn main(global: &Global, command: &ConfigCommand) -> CommandResult {
    match command {
        ConfigCommand::Check => {
            let config = global.config([])?;
            check_clients(&config)?;
            say::line("the configuration is good")?;
        }
        ConfigCommand::Print { defaults: true } => say::text(DEFAULTS)?,
        ConfigCommand::Print { defaults: false } => {
            let layers = global.layers([])?;
            Config::load(&layers)?;
            let (mut table, _) = layers.checked()?;
            hide_secrets(&mut table);
            say::text(toml::to_string(&table).map_err(CommandError::failed)?)?;
        }
    }
    Ok(())
}

/// Makes clients as a run does, without a broker to connect to: librdkafka checks some properties together, and reads
/// the files that others name.
fn check_clients(config: &Config) -> CommandResult {
    let refused = |e: KafkaError| {
        let reason = match e {
            KafkaError::ClientCreation(reason) => reason,
            other => other.to_string(),
        };
        CommandError::Usage(format!(
            "kafka.properties are refused by librdkafka: {}",
            config.kafka.without_secrets(&reason)
        ))
    };
    let client = || {
        let mut client = kafka::with_properties(kafka::client_config(&config.kafka), &config.kafka);
        client.remove("bootstrap.servers");
        client
    };
    let protocol = match config.kafka.group_protocol {
        GroupProtocol::Auto | GroupProtocol::Consumer => "consumer",
        GroupProtocol::Classic => "classic",
    };
    let consumer = client().set("group.id", &config.kafka.group_id).set("group.protocol", protocol).create();
    consumer.map(|_: BaseConsumer| ()).map_err(refused)?;
    let producer = client().set("enable.idempotence", "true").create();
    producer.map(|_: BaseProducer| ()).map_err(refused)
}

/// Secrets never reach a terminal. Where one comes from is none.
fn hide_secrets(table: &mut toml::Table) {
    let properties =
        table.get_mut("kafka").and_then(|kafka| kafka.get_mut("properties")).and_then(toml::Value::as_table_mut);
    for (name, value) in properties.into_iter().flatten() {
        if !value.is_table() && !may_be_shown(name) {
            *value = toml::Value::String(HIDDEN.to_owned());
        }
    }
}

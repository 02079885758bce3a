//! `tonearm config`

use clap::Subcommand;

use super::{CommandError, CommandResult, Global, say};
use crate::config::{Config, DEFAULTS};

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
            global.config([])?;
            say::line("the configuration is good");
        }
        ConfigCommand::Print { defaults: true } => say::text(DEFAULTS),
        ConfigCommand::Print { defaults: false } => {
            let layers = global.layers([])?;
            Config::load(&layers)?;
            let (mut table, _) = layers.merge()?;
            hide_secrets(&mut table);
            say::text(toml::to_string(&table).map_err(CommandError::failed)?);
        }
    }
    Ok(())
}

/// librdkafka's properties that hold secrets never reach a terminal.
fn hide_secrets(table: &mut toml::Table) {
    let properties =
        table.get_mut("kafka").and_then(|kafka| kafka.get_mut("properties")).and_then(toml::Value::as_table_mut);
    for (name, value) in properties.into_iter().flatten() {
        if ["password", "secret", "key.pem", "jaas"].iter().any(|word| name.contains(word)) {
            *value = toml::Value::String("(hidden)".to_owned());
        }
    }
}

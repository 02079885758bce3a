//! `tonearm config`

use clap::Subcommand;

use super::{CommandError, CommandResult, Global, say};
use crate::config::{Config, DEFAULTS, HIDDEN, may_be_shown};

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
            let (mut table, _) = layers.checked()?;
            hide_secrets(&mut table);
            say::text(toml::to_string(&table).map_err(CommandError::failed)?);
        }
    }
    Ok(())
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

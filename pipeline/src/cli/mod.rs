//! The command line: one file per command.

mod config;
mod demo;
mod doctor;
mod files;
mod inspect;
mod models;
mod offsets;
mod paint;
mod predict;
mod publish;
mod run;
mod say;
mod signals;
mod tail;
mod topics;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, error::ErrorKind};

use tonearm_models::repository::RepositoryError;

use crate::{
    config::{Config, ConfigError, Layers, Override},
    kafka::ClientError,
    run::RunError,
};

/// What every command may fail with; [`CommandError::exit_code`] is the program's.
type CommandResult = Result<(), CommandError>;

#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// The user asked for what cannot be: wrong options or configuration.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Failed(String),
    /// It fails until a person has changed something: rights, certificates, what is missing.
    #[error("{0}")]
    NeedsAPerson(String),
    #[error(transparent)]
    Output(#[from] say::OutputError),
    /// The command has printed why it failed.
    #[error("failed")]
    Said,
    /// As [`NeedsAPerson`](Self::NeedsAPerson), and the command has printed why.
    #[error("failed")]
    SaidToAPerson,
}

impl CommandError {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// Supervisors start what ended with 1 again.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Output(_) | Self::Said => 1,
            Self::Usage(_) | Self::Config(_) => 2,
            Self::NeedsAPerson(_) | Self::SaidToAPerson => 3,
        }
    }
}

impl From<RunError> for CommandError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Client(error) => error.into(),
            _ if error.needs_a_person() => Self::NeedsAPerson(error.to_string()),
            _ => Self::failed(error),
        }
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Config(_) => Self::Usage(error.to_string()),
            _ if error.needs_a_person() => Self::NeedsAPerson(error.to_string()),
            _ => Self::failed(error),
        }
    }
}

impl From<RepositoryError> for CommandError {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::NotFound { .. } => Self::NeedsAPerson(error.to_string()),
            _ => Self::failed(error),
        }
    }
}

/// Streaming audio inference over Kafka: music in, predictions out, exactly once.
#[derive(Parser)]
#[command(
    name = "tonearm",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        tonearm demo                                   see it work, with a Kafka of its own\n  \
        tonearm predict song.mp3                       tag a file, no Kafka needed\n  \
        tonearm topics create && tonearm run           process the `audio` topic\n  \
        tonearm publish *.flac                         send files to it\n  \
        tonearm tail                                   watch predictions arrive\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 a person is needed (rights, certificates, a missing\n\
        topic or model)."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// Configuration file [default: ./tonearm.toml if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "TONEARM_CONFIG")]
    config: Option<PathBuf>,
    /// Kafka's bootstrap addresses, comma-separated
    #[arg(long, global = true, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// Log filter: error, warn, info, debug, or per module
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Process the audio topic: one prediction or one reject per record
    Run(run::RunArgs),
    /// See it work: starts Kafka, publishes music, shows predictions, cleans up
    Demo(demo::DemoArgs),
    /// Check everything a run would need, without changing anything
    Doctor(doctor::DoctorArgs),
    /// Tag files, without Kafka
    Predict(predict::PredictArgs),
    /// Show what the decoder sees in files
    Inspect(inspect::InspectArgs),
    /// Publish files to the audio topic
    Publish(publish::PublishArgs),
    /// Watch predictions and rejects as they are committed
    Tail(tail::TailArgs),
    /// Make the topics
    #[command(subcommand)]
    Topics(topics::TopicsCommand),
    /// Where the group is in the input topic, and how to move it
    #[command(subcommand)]
    Offsets(offsets::OffsetsCommand),
    /// The model repository
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Check or print the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the table of metrics in docs/metrics.md
    #[command(hide = true)]
    Metrics,
}

impl Global {
    /// The configuration with this command's flags over it.
    fn config(&self, flags: impl IntoIterator<Item = Option<Override>>) -> Result<Config, CommandError> {
        Ok(Config::load(&self.layers(flags)?)?)
    }

    fn layers(&self, flags: impl IntoIterator<Item = Option<Override>>) -> Result<Layers, CommandError> {
        let mut overrides: Vec<Override> = flags.into_iter().flatten().collect();
        overrides.extend(flag("kafka.brokers", "--brokers", self.brokers.as_ref()));
        overrides.extend(flag("log.level", "--log", self.log.as_ref()));
        Ok(Layers::collect(self.config.as_deref(), &overrides)?)
    }
}

/// An option set by a flag, if the flag was given.
fn flag(key: &'static str, flag: &'static str, value: Option<impl ToString>) -> Option<Override> {
    value.map(|value| Override { key, flag, value: value.to_string() })
}

/// What `--model NAME[@VERSION]` sets; a name alone means the highest version, whatever the file says.
fn model_flags(model: Option<&str>) -> [Option<Override>; 2] {
    let (name, version) = model.map(|model| model.split_once('@').unwrap_or((model, ""))).unzip();
    [flag("model.name", "--model", name), flag("model.version", "--model", version)]
}

/// Parses the arguments, runs the command, and says what went wrong in one sentence.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Asking for help is no mistake.
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // With the terminal gone there is nobody left to tell.
            let _ = error.print();
            return ExitCode::from(if asked { 0 } else { 2 });
        }
    };
    let global = &cli.global;
    let result = match &cli.command {
        Command::Run(args) => run::main(global, args),
        Command::Demo(args) => demo::main(global, args),
        Command::Doctor(args) => doctor::main(global, args),
        Command::Predict(args) => predict::main(global, args),
        Command::Inspect(args) => inspect::main(args),
        Command::Publish(args) => publish::main(global, args),
        Command::Tail(args) => tail::main(global, args),
        Command::Topics(command) => topics::main(global, command),
        Command::Offsets(command) => offsets::main(global, command),
        Command::Models(command) => models::main(global, command),
        Command::Config(command) => config::main(global, command),
        Command::Metrics => say::text(crate::telemetry::metrics::markdown()).map_err(Into::into),
    };
    match result {
        Ok(()) | Err(CommandError::Output(say::OutputError::ReaderGone)) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, CommandError::Said | CommandError::SaidToAPerson) {
                say::problem(&error);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

//! `tonearm demo`: the whole pipeline on this machine, from nothing to predictions, and nothing left behind.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use clap::Args;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rdkafka::{Message, Offset};
use tempfile::TempDir;
use tonearm_models::repository;
use tonearm_schemas::prediction::Prediction;

use super::{
    CommandError, CommandResult, Global, files, paint,
    publish::{self, PublishArgs},
    say, signals, tail,
    topics::{self, TopicsCommand},
};

/// Without a new result for this long, something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm demo\n  \
    tonearm demo --music ~/Music/album\n  \
    tonearm demo --brokers 127.0.0.1:9092      with a Kafka that runs already\n\n\
    Files whose name starts with `broken` are expected among the rejects. The exit code is 0 only if every file came\n\
    back as expected.")]
pub struct DemoArgs {
    /// Folder with audio files
    #[arg(long, value_name = "DIR", default_value = "tests/music")]
    music: PathBuf,
    /// The script that starts and stops Kafka
    #[arg(long, value_name = "FILE", default_value = "scripts/kafka", hide = true)]
    kafka_script: PathBuf,
}

pub fn main(global: &Global, args: &DemoArgs) -> CommandResult {
    let stop = signals::stop_on_signals()?;
    let files = files::expand(std::slice::from_ref(&args.music), false)?;
    let files: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
    // A wrong model or option should not come up only after Kafka has started.
    let config = global.config([])?;
    let found = repository::find(&config.models_dir, &config.model)?;
    super::models::load(&found, config.precision)?;
    let folder = TempDir::with_prefix("tonearm-demo-").map_err(CommandError::failed)?;

    let kafka = match &global.brokers {
        Some(_) => None,
        None => Some(Kafka::start(&args.kafka_script, folder.path())?),
    };
    let brokers = kafka.as_ref().map(|kafka| kafka.brokers.clone()).or_else(|| global.brokers.clone());
    let global = Global { config: global.config.clone(), brokers, log: Some("warn".to_owned()) };
    topics::main(&global, &TopicsCommand::Create { partitions: None, replication: None, rejected_retention: None })?;
    let mut pipeline = Pipeline::start(&global, folder.path())?;

    let config = global.config([])?;
    let started = Instant::now();
    let consumer = tail::follow(&config, &[&config.topics.predictions, &config.topics.rejected], Offset::End)?;
    publish::main(&global, &PublishArgs::of(files.clone()))?;
    say::line("")?;

    let mut summary = Summary::new(&files);
    let mut last = Instant::now();
    while !summary.complete() && !stop.load(Ordering::Relaxed) {
        pipeline.check()?;
        if last.elapsed() > PATIENCE {
            let log = pipeline.log();
            return Err(CommandError::Failed(format!(
                "{} of {} results came, and none for {} s\n{log}",
                summary.results(),
                files.len(),
                PATIENCE.as_secs()
            )));
        }
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                say::text(tail::pretty(&config, &message))?;
                summary.add(&message, message.topic() == config.topics.rejected);
                last = Instant::now();
            }
            Some(Err(error)) => crate::kafka::log_error(&error, "still reading"),
            None => {}
        }
    }
    let wall = started.elapsed();
    pipeline.stop()?;
    // Clients first: a broker that goes away under them is an error to report.
    drop(consumer);
    drop(kafka);
    summary.print(wall)
}

/// The demo's own broker; it ends with this value, or with this process, however that ends.
struct Kafka {
    script: PathBuf,
    data: PathBuf,
    brokers: String,
}

impl Kafka {
    fn start(script: &Path, folder: &Path) -> Result<Self, CommandError> {
        let data = folder.join("kafka");
        say::line("starting Kafka")?;
        let output = Command::new(script)
            .args(["up", "--port", "auto", "--while", &std::process::id().to_string(), "--data"])
            .arg(&data)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| {
                CommandError::Failed(format!(
                    "{} cannot be run: {e}; run from the checkout's root, or name a running Kafka with --brokers",
                    script.display()
                ))
            })?;
        let brokers = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || brokers.is_empty() {
            return Err(CommandError::Failed("Kafka did not start".to_owned()));
        }
        Ok(Self { script: script.to_owned(), data, brokers })
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let down = Command::new(&self.script)
            .args(["down", "--wipe", "--data"])
            .arg(&self.data)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !down.is_ok_and(|status| status.success()) {
            say::problem(format_args!("the demo's Kafka may still run; its files are in {}", self.data.display()));
        }
    }
}

/// `tonearm run` as a process of its own.
struct Pipeline {
    child: Child,
    log: PathBuf,
}

impl Pipeline {
    fn start(global: &Global, folder: &Path) -> Result<Self, CommandError> {
        let log = folder.join("tonearm.log");
        let file = File::create(&log).map_err(CommandError::failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(CommandError::failed)?);
        command.args(["run", "--log", "info"]);
        command.args(global.brokers.iter().flat_map(|brokers| ["--brokers", brokers]));
        if let Some(config) = &global.config {
            command.arg("--config").arg(config);
        }
        // The demo needs no admin port, and must not meet one that is taken.
        command.env("TONEARM__ADMIN__LISTEN", "").stdin(Stdio::null()).stderr(file);
        let child = command.spawn().map_err(CommandError::failed)?;
        Ok(Self { child, log })
    }

    fn check(&mut self) -> CommandResult {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(CommandError::Failed(format!("`tonearm run` ended early ({status})\n{}", self.log())))
            }
            Err(e) => Err(CommandError::failed(e)),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// As an operator would: SIGTERM, and it drains, commits and leaves.
    fn stop(&mut self) -> CommandResult {
        self.signal(Signal::SIGTERM);
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(CommandError::Failed(format!("`tonearm run` ended with {status}\n{}", self.log()))),
            Err(e) => Err(CommandError::failed(e)),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended already, which is as good.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What came back of what was published.
struct Summary {
    expected: Vec<(String, bool)>,
    predicted: Vec<String>,
    rejected: Vec<String>,
    audio_s: f64,
}

impl Summary {
    fn new(files: &[PathBuf]) -> Self {
        let stems = files.iter().filter_map(|file| Some(file.file_stem()?.to_string_lossy().into_owned()));
        let expected = stems.map(|stem| (stem.clone(), stem.starts_with("broken"))).collect();
        Self { expected, predicted: Vec::new(), rejected: Vec::new(), audio_s: 0.0 }
    }

    fn add(&mut self, message: &impl Message, rejected: bool) {
        let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
        if rejected {
            self.rejected.push(key);
        } else {
            let prediction = serde_json::from_slice::<Prediction>(message.payload().unwrap_or_default());
            self.audio_s += prediction.map_or(0.0, |prediction| prediction.audio.duration_s);
            self.predicted.push(key);
        }
    }

    fn results(&self) -> usize {
        self.predicted.len() + self.rejected.len()
    }

    fn complete(&self) -> bool {
        self.results() >= self.expected.len()
    }

    fn print(&self, wall: Duration) -> CommandResult {
        say::line(format_args!(
            "\n{} records: predictions {}, rejects {}. {} of audio in {:.1} s, start-up included: {:.0} × real time",
            self.results(),
            self.predicted.len(),
            self.rejected.len(),
            paint::duration(self.audio_s),
            wall.as_secs_f64(),
            self.audio_s / wall.as_secs_f64(),
        ))?;
        let wrong: Vec<&str> = self
            .expected
            .iter()
            .filter(|(stem, broken)| {
                let results = if *broken { &self.rejected } else { &self.predicted };
                results.iter().filter(|key| *key == stem).count() != 1
            })
            .map(|(stem, _)| stem.as_str())
            .collect();
        if wrong.is_empty() && self.results() == self.expected.len() {
            Ok(())
        } else {
            Err(CommandError::Failed(format!("not as expected: {}", wrong.join(", "))))
        }
    }
}

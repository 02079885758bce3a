//! Configuration: what the user wrote (`layers`) → checked here, all problems at once → what the program uses.

mod layers;
mod properties;
mod secret;

use std::{collections::BTreeMap, fmt, net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use semver::Version;
use serde::Deserialize;
use tonearm_models::repository::ModelRef;
use tonearm_stages::infer::PrecisionChoice;

pub use layers::{ConfigError, DEFAULTS, Layers, Override};
pub use properties::may_be_shown;
pub use secret::{HIDDEN, Secret};
pub use tonearm_engine::{
    Stages,
    catalogue::{Limits, Output},
};
use tonearm_schemas::reject::Stage;

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub kafka: Kafka,
    pub topics: Topics,
    pub model: ModelRef,
    pub precision: PrecisionChoice,
    pub models_dir: PathBuf,
    pub output: Output,
    /// Names of headers that results carry on, besides those of tracing and CloudEvents.
    pub pass_headers: Vec<String>,
    pub limits: Limits,
    pub runtime: Runtime,
    /// `None`: no admin port.
    pub admin_listen: Option<SocketAddr>,
    pub log: Log,
}

#[derive(Clone, Debug)]
pub struct Kafka {
    pub brokers: String,
    pub group_id: String,
    pub instance_id: String,
    pub group_protocol: GroupProtocol,
    pub missing_offsets: MissingOffsets,
    /// Passed to librdkafka as they are. Any may be a secret.
    pub properties: BTreeMap<String, Secret>,
}

impl Kafka {
    /// `text`, which others wrote, with every value in it hidden that may not be shown.
    pub fn without_secrets(&self, text: &str) -> String {
        let secrets = self.properties.iter().filter(|(name, value)| !may_be_shown(name) && !value.reveal().is_empty());
        secrets.fold(text.to_owned(), |text, (_, value)| text.replace(value.reveal(), HIDDEN))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupProtocol {
    /// What the brokers can.
    Auto,
    Consumer,
    Classic,
}

/// Where a partition starts that the group has no position in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingOffsets {
    /// Behind the last record that has its result, or with the oldest if none has.
    Recover,
    Earliest,
    Latest,
    /// The process ends, and a person says where.
    Stop,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Topics {
    pub audio: String,
    pub pcm: String,
    pub features: String,
    pub predictions: String,
    pub rejected: String,
    pub partitions: i32,
    pub replication: i32,
}

#[derive(Clone, Copy, Debug)]
pub struct Runtime {
    pub stages: Stages,
    pub delivery: Delivery,
    pub workers: NonZeroUsize,
    pub commit_interval: Duration,
    pub in_flight_bytes: usize,
    pub drain_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    ExactlyOnce,
    AtLeastOnce,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub level: String,
    pub json: bool,
}

/// What the user wrote, in the types of `tonearm.toml`.
#[derive(Deserialize)]
struct Written {
    kafka: WrittenKafka,
    topics: Topics,
    model: WrittenModel,
    models: WrittenModels,
    output: WrittenOutput,
    limits: WrittenLimits,
    runtime: WrittenRuntime,
    admin: WrittenAdmin,
    log: WrittenLog,
}

#[derive(Deserialize)]
struct WrittenKafka {
    brokers: String,
    group_id: String,
    instance_id: String,
    group_protocol: String,
    missing_offsets: String,
    #[serde(default)]
    properties: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
struct WrittenModel {
    name: String,
    version: String,
    precision: String,
    device: String,
}

#[derive(Deserialize)]
struct WrittenModels {
    dir: PathBuf,
}

#[derive(Deserialize)]
struct WrittenOutput {
    labels: toml::Value,
    windows: bool,
    pass_headers: Vec<String>,
}

#[derive(Deserialize)]
struct WrittenLimits {
    max_record_mib: i64,
    max_duration_s: i64,
}

#[derive(Deserialize)]
struct WrittenRuntime {
    stages: String,
    delivery: String,
    workers: i64,
    commit_interval_ms: i64,
    in_flight_mib: i64,
    drain_timeout_ms: i64,
}

#[derive(Deserialize)]
struct WrittenAdmin {
    listen: String,
}

#[derive(Deserialize)]
struct WrittenLog {
    level: String,
    format: String,
}

impl Config {
    /// The topic this process reads.
    pub fn input_topic(&self) -> &str {
        match self.runtime.stages.first() {
            Stage::Decode => &self.topics.audio,
            Stage::Features => &self.topics.pcm,
            Stage::Infer => &self.topics.features,
        }
    }

    /// The topic its results go to; rejects go to `topics.rejected`.
    pub fn output_topic(&self) -> &str {
        match self.runtime.stages.last() {
            Stage::Decode => &self.topics.pcm,
            Stage::Features => &self.topics.features,
            Stage::Infer => &self.topics.predictions,
        }
    }

    /// Names this process's transactions: the same after a restart, and another for other stages of the same instance.
    pub fn transactional_id(&self) -> String {
        let Kafka { group_id, instance_id, .. } = &self.kafka;
        match self.runtime.stages {
            Stages::ALL => format!("{group_id}-{instance_id}"),
            stages => format!("{group_id}-{instance_id}-{stages}"),
        }
    }

    /// Checks the merged layers.
    ///
    /// # Errors
    /// A key is unknown, or a value has the wrong type or is outside its range; every problem is named, with where it
    /// was written.
    pub fn load(layers: &Layers) -> Result<Self, ConfigError> {
        let (table, problems) = layers.checked()?;
        let written: Written =
            table.try_into().map_err(|e: toml::de::Error| ConfigError { problems: vec![e.message().to_owned()] })?;
        let mut checks = Checks { layers, problems };
        let config = checks.config(written);
        match config {
            Some(config) if checks.problems.is_empty() => Ok(config),
            _ => Err(ConfigError { problems: checks.problems }),
        }
    }
}

/// Collects problems while the values are turned into what the program uses.
struct Checks<'a> {
    layers: &'a Layers,
    problems: Vec<String>,
}

impl Checks<'_> {
    fn problem(&mut self, key: &str, problem: impl fmt::Display) {
        self.problem_at(&key.split('.').collect::<Vec<_>>(), problem);
    }

    /// A key in parts, which may have dots in them.
    fn problem_at(&mut self, path: &[&str], problem: impl fmt::Display) {
        self.problems.push(format!("{} {problem} ({})", path.join("."), self.layers.written_in(path)));
    }

    fn within(&mut self, key: &str, value: i64, min: i64, max: i64) -> u64 {
        if !(min..=max).contains(&value) {
            self.problem(key, format!("= {value} is outside {min}..={max}"));
        }
        value.clamp(min, max).unsigned_abs()
    }

    fn one_of<T: Copy>(&mut self, key: &str, value: &str, allowed: &[(&str, T)]) -> Option<T> {
        let found = allowed.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let words: Vec<&str> = allowed.iter().map(|(word, _)| *word).collect();
            self.problem(key, format!("= {value:?} is not one of {}", words.join(", ")));
        }
        found
    }

    fn parsed<T>(&mut self, key: &str, value: Result<T, impl fmt::Display>) -> Option<T> {
        value.map_err(|e| self.problem(key, format!("is wrong: {e}"))).ok()
    }

    /// `None` only together with a problem.
    fn config(&mut self, written: Written) -> Option<Config> {
        let kafka = self.kafka(written.kafka);
        self.topics(&written.topics);

        let name = self.parsed("model.name", written.model.name.parse::<ModelRef>());
        let version = match written.model.version.as_str() {
            "" => None,
            version => self.parsed("model.version", Version::parse(version)),
        };
        let precision = self.parsed("model.precision", written.model.precision.parse::<PrecisionChoice>());
        self.one_of("model.device", &written.model.device, &[("cpu", ())]);

        let labels = match &written.output.labels {
            toml::Value::Integer(count) => {
                let count = self.within("output.labels", *count, 1, 10_000);
                NonZeroUsize::new(count as usize)
            }
            toml::Value::String(all) if all == "all" => None,
            other => {
                self.problem("output.labels", format!("= {other} is neither a number nor \"all\""));
                None
            }
        };

        let pass_headers = written.output.pass_headers;
        if pass_headers.iter().any(String::is_empty) {
            self.problem("output.pass_headers", "has an empty name");
        }

        let limits = Limits {
            max_record_bytes: mib(self.within("limits.max_record_mib", written.limits.max_record_mib, 1, 1024)),
            max_duration: Duration::from_secs(self.within(
                "limits.max_duration_s",
                written.limits.max_duration_s,
                1,
                1_000_000,
            )),
        };

        let runtime = &written.runtime;
        let stages = self.parsed("runtime.stages", runtime.stages.parse::<Stages>());
        let delivery = self.one_of(
            "runtime.delivery",
            &runtime.delivery,
            &[("exactly-once", Delivery::ExactlyOnce), ("at-least-once", Delivery::AtLeastOnce)],
        );
        if let (Some(stages), Some(Delivery::AtLeastOnce)) = (stages, delivery)
            && stages.writes().is_some()
        {
            let problem = format!("= \"at-least-once\" cannot go with the stages {stages}: blocks may not be repeated");
            self.problem("runtime.delivery", problem);
        }
        let workers = NonZeroUsize::new(self.within("runtime.workers", runtime.workers, 0, 1024) as usize)
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN);
        let commit_interval = self.within("runtime.commit_interval_ms", runtime.commit_interval_ms, 0, 5_000);
        let in_flight = self.within("runtime.in_flight_mib", runtime.in_flight_mib, 1, 1_000_000);
        let drain = self.within("runtime.drain_timeout_ms", runtime.drain_timeout_ms, 0, 240_000);

        let admin_listen = match written.admin.listen.as_str() {
            "" => None,
            address => self.parsed(
                "admin.listen",
                address
                    .parse::<SocketAddr>()
                    .map_err(|_| format!("{address:?} is not an address and port such as 127.0.0.1:8080")),
            ),
        };
        let json = self.one_of("log.format", &written.log.format, &[("text", false), ("json", true)]);
        let filter = written.log.level.parse::<tracing_subscriber::EnvFilter>().map(|_| written.log.level.clone());
        let level = self.parsed("log.level", filter);

        Some(Config {
            kafka: kafka?,
            topics: written.topics,
            model: ModelRef { version, ..name? },
            precision: precision?,
            models_dir: written.models.dir,
            output: Output { labels, windows: written.output.windows },
            pass_headers,
            limits,
            runtime: Runtime {
                stages: stages?,
                delivery: delivery?,
                workers,
                commit_interval: Duration::from_millis(commit_interval),
                in_flight_bytes: mib(in_flight),
                drain_timeout: Duration::from_millis(drain),
            },
            admin_listen,
            log: Log { level: level?, json: json? },
        })
    }

    fn kafka(&mut self, mut written: WrittenKafka) -> Option<Kafka> {
        for (key, value) in [("kafka.brokers", &written.brokers), ("kafka.group_id", &written.group_id)] {
            if value.trim().is_empty() {
                self.problem(key, "is empty");
            }
        }
        let instance_id = match written.instance_id.as_str() {
            "" => hostname(),
            id => id.to_owned(),
        };
        let group_protocol = self.one_of(
            "kafka.group_protocol",
            &written.group_protocol,
            &[
                ("auto", GroupProtocol::Auto),
                ("consumer", GroupProtocol::Consumer),
                ("classic", GroupProtocol::Classic),
            ],
        );
        let missing_offsets = self.one_of(
            "kafka.missing_offsets",
            &written.missing_offsets,
            &[
                ("recover", MissingOffsets::Recover),
                ("earliest", MissingOffsets::Earliest),
                ("latest", MissingOffsets::Latest),
                ("stop", MissingOffsets::Stop),
            ],
        );
        let mut properties = BTreeMap::new();
        for (name, value) in std::mem::take(&mut written.properties) {
            let secret = match &value {
                // What `sasl.password = …` without quotes is to TOML.
                toml::Value::Table(table) if !table.keys().any(|key| key == "env" || key == "file") => {
                    Err(format!("is a table; write the property's name in quotes: \"{name}.…\" = …"))
                }
                value => secret::resolve(value),
            };
            match secret.and_then(|secret| properties::check(&name, &secret).map(|()| secret)) {
                Ok(secret) => _ = properties.insert(name, secret),
                Err(problem) => self.problem_at(&["kafka", "properties", &name], problem),
            }
        }
        let WrittenKafka { brokers, group_id, .. } = written;
        Some(Kafka {
            brokers,
            group_id,
            instance_id,
            group_protocol: group_protocol?,
            missing_offsets: missing_offsets?,
            properties,
        })
    }

    fn topics(&mut self, topics: &Topics) {
        let names = [
            ("topics.audio", &topics.audio),
            ("topics.pcm", &topics.pcm),
            ("topics.features", &topics.features),
            ("topics.predictions", &topics.predictions),
            ("topics.rejected", &topics.rejected),
        ];
        for (i, (key, name)) in names.into_iter().enumerate() {
            // Kafka's own rule for topic names.
            let legal = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !(1..=249).contains(&name.len()) || !legal || name == "." || name == ".." {
                self.problem(
                    key,
                    format!("= {name:?} is not a topic name (1 to 249 letters, digits, dots, dashes, underscores)"),
                );
            }
            if let Some((other, _)) = names[..i].iter().find(|(_, earlier)| *earlier == name) {
                self.problem(key, format!("= {name:?} is also {other}"));
            }
        }
        self.within("topics.partitions", topics.partitions.into(), 1, 10_000);
        self.within("topics.replication", topics.replication.into(), 0, 100);
    }
}

fn mib(count: u64) -> usize {
    usize::try_from(count << 20).unwrap_or(usize::MAX)
}

/// The name a restarted container or service keeps.
fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

//! A real Kafka, and topics and groups on it that nobody else uses.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    util::Timeout,
};

use super::chance;

static CLUSTER: OnceLock<Cluster> = OnceLock::new();

/// The brokers' addresses. One broker is started at the first call, and ends with the tests however they end: the same
/// for all test programs of a `cargo test`, or one for this program where it was started by hand.
pub fn brokers() -> &'static str {
    let cluster = CLUSTER.get_or_init(|| {
        let owner = match std::env::var_os("CARGO") {
            Some(_) => std::os::unix::process::parent_id(),
            None => std::process::id(),
        };
        Cluster::start(&format!("tonearm-tests-{owner}"), owner, 1)
    });
    &cluster.addresses
}

/// Real brokers; all that is replicated has copies on each of them.
pub struct Cluster {
    pub brokers: u32,
    addresses: String,
    data: PathBuf,
}

impl Cluster {
    /// Brokers for this program alone, 1 or 3, which may do with them what it likes. From now on [`brokers`] means them.
    ///
    /// # Panics
    /// The program uses brokers already.
    pub fn own(brokers: u32) -> &'static Self {
        let owner = std::process::id();
        let cluster = Self::start(&format!("tonearm-brokers-{owner}"), owner, brokers);
        assert!(CLUSTER.set(cluster).is_ok(), "this program has brokers already");
        CLUSTER.get().expect("it is set")
    }

    /// Starts brokers whose data is under `name` in the folder for temporary files, and that end with the process `owner`.
    fn start(name: &str, owner: u32, brokers: u32) -> Self {
        let data = std::env::temp_dir().join(name);
        let numbers = [brokers.to_string(), owner.to_string()];
        let output = script("up", &data, &["--port", "auto", "--brokers", &numbers[0], "--while", &numbers[1]]);
        let addresses = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success() && !addresses.is_empty(), "Kafka did not start");
        Self { brokers, addresses, data }
    }

    /// Ends a broker as a power cut would; they are counted from 1.
    pub fn kill(&self, broker: u32) {
        self.one("kill", broker);
    }

    /// Starts a broker again, and waits until it serves.
    pub fn restart(&self, broker: u32) {
        self.one("start", broker);
    }

    fn one(&self, what: &str, broker: u32) {
        let output = script(what, &self.data, &["--broker", &broker.to_string()]);
        assert!(output.status.success(), "broker {broker}: {what} failed");
    }

    /// True once every partition, those of Kafka's own topics too, has a leader and all its copies are up to date.
    pub fn is_whole(&self) -> bool {
        let metadata = admin().inner().fetch_metadata(None, Duration::from_secs(5));
        metadata.is_ok_and(|metadata| {
            let partitions = || metadata.topics().iter().flat_map(|topic| topic.partitions());
            metadata.brokers().len() == self.brokers as usize
                && partitions().all(|partition| partition.leader() >= 0)
                && partitions().all(|partition| partition.isr().len() == partition.replicas().len())
        })
    }
}

fn script(command: &str, data: &Path, arguments: &[&str]) -> Output {
    let script = crate::root().join("scripts/kafka");
    let mut call = Command::new(&script);
    call.arg(command).args(arguments).arg("--data").arg(data).stderr(Stdio::inherit());
    call.output().unwrap_or_else(|e| panic!("{} cannot be run: {e}", script.display()))
}

/// Topics and a group of one test.
pub struct Topics {
    pub audio: String,
    pub pcm: String,
    pub features: String,
    pub predictions: String,
    pub rejected: String,
    pub group: String,
}

impl Topics {
    /// Topics that all have as many `partitions`.
    pub fn new(partitions: i32) -> Self {
        Self::with_partitions(partitions, partitions)
    }

    /// Topics with partitions of their own number for audio and for results.
    pub fn with_partitions(audio: i32, results: i32) -> Self {
        let topics = Self::unmade();
        create(&[(&topics.audio, audio), (&topics.predictions, results), (&topics.rejected, results)]);
        topics
    }

    /// [`new`](Self::new), and topics for what is between the stages.
    pub fn between_stages(partitions: i32) -> Self {
        let topics = Self::new(partitions);
        create(&[(&topics.pcm, partitions), (&topics.features, partitions)]);
        topics
    }

    /// Names of topics that do not exist.
    pub fn unmade() -> Self {
        let name = chance::name("audio");
        Self {
            pcm: format!("{name}.pcm"),
            features: format!("{name}.features"),
            predictions: format!("{name}.predictions"),
            rejected: format!("{name}.rejected"),
            group: format!("{name}.group"),
            audio: name,
        }
    }

    /// Lets the broker wait this long for a sign of life of a member of the group, before it gives its partitions to
    /// others. 3 s is the least our broker allows.
    pub fn session_timeout(&self, timeout: Duration) {
        let value = timeout.as_millis().to_string();
        let change = AlterConfig::new(ResourceSpecifier::Group(&self.group)).set("consumer.session.timeout.ms", &value);
        let results = run(admin().alter_configs([&change], &options())).expect("the broker answers");
        for result in results {
            result.unwrap_or_else(|e| panic!("the group's session timeout cannot be set: {e:?}"));
        }
    }

    /// The options that make the program use these.
    pub fn options(&self) -> [(&'static str, &str); 6] {
        [
            ("TONEARM__TOPICS__AUDIO", &self.audio),
            ("TONEARM__TOPICS__PCM", &self.pcm),
            ("TONEARM__TOPICS__FEATURES", &self.features),
            ("TONEARM__TOPICS__PREDICTIONS", &self.predictions),
            ("TONEARM__TOPICS__REJECTED", &self.rejected),
            ("TONEARM__KAFKA__GROUP_ID", &self.group),
        ]
    }
}

/// Takes a topic away, with all that is in it.
pub fn delete(topic: &str) {
    for result in run(admin().delete_topics(&[topic], &options())).expect("the broker answers") {
        result.unwrap_or_else(|(topic, e)| panic!("topic {topic} cannot be deleted: {e}"));
    }
}

/// Makes topics with their numbers of partitions.
pub fn create(topics: &[(&String, i32)]) {
    // −1: as many copies as the brokers make by default, which is one on each.
    const COPIES: TopicReplication<'_> = TopicReplication::Fixed(-1);
    let new: Vec<NewTopic<'_>> =
        topics.iter().map(|(name, partitions)| NewTopic::new(name, *partitions, COPIES)).collect();
    for result in run(admin().create_topics(&new, &options())).expect("the broker answers") {
        result.unwrap_or_else(|(topic, e)| panic!("topic {topic} cannot be made: {e}"));
    }
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("an admin client")
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(Timeout::After(Duration::from_secs(30))))
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

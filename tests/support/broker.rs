//! A real Kafka, and topics and groups on it that nobody else uses.

use std::{
    fmt::{self, Write as _},
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use clap::ValueEnum;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::DefaultClientContext,
    util::Timeout,
};

use super::chance;
use crate::{wait, wait_within};

static CLUSTER: OnceLock<Cluster> = OnceLock::new();

/// The addresses for the tests' own clients, which have every right. One broker is started at the first call, and ends
/// with the tests however they end: the same for all test programs of a `cargo test`, or one for this program if it was
/// started by hand.
pub fn brokers() -> &'static str {
    &cluster().addresses
}

/// The process of the tests' first broker.
pub fn broker_process() -> u32 {
    cluster().pid(1).as_raw().unsigned_abs()
}

fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(|| {
        let owner = match std::env::var_os("CARGO") {
            Some(_) => std::os::unix::process::parent_id(),
            None => std::process::id(),
        };
        Cluster::start(&format!("tonearm-tests-{owner}"), owner, Kind::default())
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Version {
    #[value(name = "4.3")]
    V4_3,
    /// Classic groups only, and the transactions of before 4.0.
    #[value(name = "3.9")]
    V3_9,
}

impl Version {
    /// `TONEARM_TEST_KAFKA`, by which any test runs against another version. Returns 4.3 if it is not set.
    ///
    /// # Panics
    /// It names no version that there is.
    pub fn chosen() -> Self {
        std::env::var("TONEARM_TEST_KAFKA").map_or(Self::V4_3, |name| {
            Self::from_str(&name, false).unwrap_or_else(|_| panic!("TONEARM_TEST_KAFKA is 4.3 or 3.9, not '{name}'"))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4_3 => "4.3",
            Self::V3_9 => "3.9",
        })
    }
}

/// What brokers are like. By default it is one, of the chosen version, that anybody may do anything with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub version: Version,
    /// 1 or 3.
    pub brokers: u32,
    /// As many copies of transactions' states as Kafka wants by default, 3: on one broker no transaction can start.
    pub stock: bool,
    /// Whether clients need TLS, SASL and rights, see [`Cluster::properties`]. The tests' own clients do not.
    pub secure: Option<Certificate>,
    /// Clients are sent to this port instead of the broker's, of one broker that anybody may use.
    pub via: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    Valid,
    Expired,
}

impl Default for Kind {
    fn default() -> Self {
        Self { version: Version::chosen(), brokers: 1, stock: false, secure: None, via: None }
    }
}

/// Real brokers; all that is replicated has copies on each of them.
pub struct Cluster {
    pub kind: Kind,
    /// Where the program comes in; [`brokers`] unless it must be secure.
    pub clients: String,
    addresses: String,
    data: PathBuf,
}

/// What a right is about, by its name; `*` means all of them.
#[derive(Clone, Copy, Debug)]
pub enum Resource<'a> {
    Topic(&'a str),
    Group(&'a str),
    TransactionalId(&'a str),
}

impl Cluster {
    /// Brokers for this program alone, which may do with them what it likes. From now on [`brokers`] means them.
    ///
    /// # Panics
    /// The program uses brokers already.
    pub fn own(kind: Kind) -> &'static Self {
        let owner = std::process::id();
        let cluster = Self::start(&format!("tonearm-brokers-{owner}"), owner, kind);
        assert!(CLUSTER.set(cluster).is_ok(), "this program has brokers already");
        CLUSTER.get().expect("it is set")
    }

    /// Brokers beside those of [`brokers`]; they end with the program.
    pub fn beside(kind: Kind) -> Self {
        Self::start(&chance::name("tonearm-brokers"), std::process::id(), kind)
    }

    /// Starts brokers whose data is under `name` in the folder for temporary files, and that end with the process
    /// `owner`.
    fn start(name: &str, owner: u32, kind: Kind) -> Self {
        let data = std::env::temp_dir().join(name);
        let Kind { version, brokers, stock, secure, via } = kind;
        let values = [version.to_string(), brokers.to_string(), owner.to_string()];
        let mut arguments =
            vec!["--port", "auto", "--version", &values[0], "--brokers", &values[1], "--while", &values[2]];
        if stock {
            arguments.push("--stock");
        }
        match secure {
            Some(Certificate::Valid) => arguments.push("--secure"),
            Some(Certificate::Expired) => arguments.push("--expired"),
            None => {}
        }
        let via = via.map(|port| port.to_string());
        via.iter().for_each(|port| arguments.extend(["--via", port]));
        let output = script("up", &data, &arguments);
        let clients = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success() && !clients.is_empty(), "Kafka did not start");
        let mut cluster = Self { kind, addresses: clients.clone(), clients, data };
        if secure.is_some() {
            cluster.addresses = cluster.properties("brokers").remove(0).1;
        }
        cluster
    }

    /// What librdkafka needs to come to a secure cluster as `user`: `tonearm`, who has no rights but those that were
    /// [granted](Self::grant), or `admin`, who has every right. `bootstrap.servers` is the first.
    pub fn properties(&self, user: &str) -> Vec<(String, String)> {
        let path = self.data.join("secure").join(user).with_extension("properties");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let property = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        text.lines().filter_map(property).collect()
    }

    /// The configuration that lets the program come as `user`. Its address is overridden by [`Run::new`]'s: set
    /// `kafka.brokers` to `clients`.
    ///
    /// [`Run::new`]: crate::program::Run::new
    pub fn config(&self, user: &str) -> String {
        let mut config = format!("[kafka]\nbrokers = {:?}\n[kafka.properties]\n", self.clients);
        for (name, value) in self.properties(user).iter().skip(1) {
            writeln!(config, "{name:?} = {value:?}").expect("text can be written to");
        }
        config
    }

    /// Allows the user `tonearm` operations, as Kafka's tools name them: `read`, `write`, `describe`.
    pub fn grant(&self, operations: &[&str], on: Resource<'_>) {
        self.rights(&["--add"], operations, on);
    }

    /// Takes a [granted](Self::grant) right back.
    pub fn revoke(&self, operations: &[&str], on: Resource<'_>) {
        self.rights(&["--remove", "--force"], operations, on);
    }

    fn rights(&self, change: &[&str], operations: &[&str], on: Resource<'_>) {
        let class = match self.kind.version {
            Version::V4_3 => "org.apache.kafka.tools.AclCommand",
            Version::V3_9 => "kafka.admin.AclCommand",
        };
        let (option, name) = match on {
            Resource::Topic(name) => ("--topic", name),
            Resource::Group(name) => ("--group", name),
            Resource::TransactionalId(name) => ("--transactional-id", name),
        };
        let mut arguments = vec![class, "--allow-principal", "User:tonearm", option, name];
        arguments.extend(change);
        operations.iter().for_each(|operation| arguments.extend(["--operation", operation]));
        self.tool(&arguments);
    }

    /// Runs one of Kafka's own tools, a class and its arguments.
    fn tool(&self, arguments: &[&str]) {
        let output = script("tool", &self.data, arguments);
        let said = String::from_utf8_lossy(&output.stdout);
        // Some of them report a failure, and end with 0.
        assert!(
            output.status.success() && !said.contains("Error"),
            "{arguments:?}: {}, it said: {said}",
            output.status
        );
    }

    /// Ends a broker as a power cut would; they are counted from 1.
    pub fn kill(&self, broker: u32) {
        self.one("kill", broker);
    }

    /// Starts a broker again, and waits until it serves.
    pub fn restart(&self, broker: u32) {
        self.one("start", broker);
    }

    /// Stops a broker in its tracks, its connections open, until it is [thawed](Self::thaw).
    pub fn freeze(&self, broker: u32) {
        self.signal(broker, Signal::SIGSTOP);
    }

    pub fn thaw(&self, broker: u32) {
        self.signal(broker, Signal::SIGCONT);
    }

    fn pid(&self, broker: u32) -> Pid {
        let file = self.data.join(format!("broker-{broker}/pid"));
        let pid = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Pid::from_raw(pid.trim().parse().expect("a process id"))
    }

    fn signal(&self, broker: u32, signal: Signal) {
        kill(self.pid(broker), signal).unwrap_or_else(|e| panic!("broker {broker}: {signal}: {e}"));
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
            metadata.brokers().len() == self.kind.brokers as usize
                && partitions().all(|partition| partition.leader() >= 0)
                && partitions().all(|partition| partition.isr().len() == partition.replicas().len())
        })
    }
}

fn script(command: &str, data: &Path, arguments: &[&str]) -> Output {
    let script = crate::root().join("scripts/kafka");
    let mut call = Command::new(&script);
    call.arg(command).arg("--data").arg(data).args(arguments).stderr(Stdio::inherit());
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
    /// others. 3 s is the least our broker allows. In classic groups, and so with Kafka 3.9, it changes nothing: each
    /// member has its own.
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
    make(topics.iter().map(|(name, partitions)| new_topic(name, *partitions)).collect());
}

/// Makes a topic with settings of its own.
pub fn create_with(topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let topic = new_topic(topic, partitions);
    make(vec![settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))]);
}

/// Makes a topic whose partitions have their copies on these brokers, and can be written if one is there.
pub fn create_on(topic: &str, brokers: &[&[i32]]) {
    let partitions = i32::try_from(brokers.len()).expect("a number of partitions");
    let topic = NewTopic::new(topic, partitions, TopicReplication::Variable(brokers));
    make(vec![topic.set("min.insync.replicas", "1")]);
}

/// Takes a topic away and makes another of the same name.
pub fn recreate(topic: &str, partitions: i32) {
    delete(topic);
    make(vec![new_topic(topic, partitions)]);
}

fn new_topic(name: &str, partitions: i32) -> NewTopic<'_> {
    // −1: as many copies as the brokers make by default, which is one on each.
    NewTopic::new(name, partitions, TopicReplication::Fixed(-1))
}

fn make(topics: Vec<NewTopic<'_>>) {
    for result in run(admin().create_topics(&topics, &options())).expect("the broker answers") {
        result.unwrap_or_else(|(topic, e)| panic!("topic {topic} cannot be made: {e}"));
    }
    // The controller has them; brokers hear of it later, much later if a thousand partitions are made at once.
    for topic in topics {
        wait("the topic on the broker", || {
            let found = admin().inner().fetch_metadata(Some(topic.name), Duration::from_secs(5)).ok()?;
            let partitions = found.topics().first()?.partitions();
            (!partitions.is_empty() && partitions.iter().all(|partition| partition.leader() >= 0)).then_some(())
        });
    }
}

/// Gives a topic more partitions: `partitions` in all.
pub fn grow(topic: &str, partitions: usize) {
    let change = NewPartitions::new(topic, partitions);
    for result in run(admin().create_partitions([&change], &options())).expect("the broker answers") {
        result.unwrap_or_else(|(topic, e)| panic!("topic {topic} cannot grow: {e}"));
    }
}

/// Changes one setting of a topic.
pub fn topic_config(topic: &str, key: &str, value: &str) {
    let (admin, specifier) = (admin(), ResourceSpecifier::Topic(topic));
    let described = || {
        let topics = run(admin.describe_configs([&specifier], &options())).expect("the broker answers");
        topics.into_iter().next().expect("one was asked for").unwrap_or_else(|e| panic!("topic {topic}: {e}"))
    };
    let before = described();
    // The request replaces all settings that the topic has of its own, so they are given again.
    let own = before.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
    let own = own.map(|entry| (entry.name.as_str(), entry.value.as_deref().unwrap_or_default()));
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic));
    let change = own.chain([(key, value)]).fold(change, |change, (key, value)| change.set(key, value));
    run(admin.alter_configs([&change], &options())).expect("the broker answers");
    // The client passes a refusal over in silence.
    wait_within(Duration::from_secs(10), &format!("{key}={value} of topic {topic}"), || {
        (described().get(key)?.value.as_deref() == Some(value)).then_some(())
    });
}

/// Deletes the records of a partition whose offset is below `before`, as retention would.
pub fn delete_records(topic: &str, partition: i32, before: i64) {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset");
    let deleted = run(admin().delete_records(&offsets, &options())).expect("the broker answers");
    for partition in deleted.elements() {
        partition.error().unwrap_or_else(|e| panic!("records of {topic} cannot be deleted: {e}"));
    }
}

/// Deletes a group that has no members, and where it was in every topic, as its expiry would.
pub fn delete_group(group: &str) {
    for result in run(admin().delete_groups(&[group], &options())).expect("the broker answers") {
        result.unwrap_or_else(|(group, e)| panic!("group {group} cannot be deleted: {e}"));
    }
}

/// Deletes where a group was in a topic. It must have no members that read the topic.
pub fn delete_offsets(group: &str, topic: &str) {
    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    cluster().tool(&[class, "--delete-offsets", "--group", group, "--topic", topic]);
}

/// Damages what is in a partition's first file, as a disk may: so many bytes from its middle on are others.
pub fn damage(topic: &str, partition: i32, bytes: usize) {
    let name = format!("{topic}-{partition}");
    let of_broker = |folder: PathBuf| folder.join("data").join(&name).join("00000000000000000000.log");
    let folders = fs::read_dir(&cluster().data).expect("the data of brokers");
    let files = folders.map(|folder| of_broker(folder.expect("a folder").path()));
    for path in files.filter(|path| path.exists()) {
        let file = fs::OpenOptions::new().write(true).read(true).open(&path).expect("a partition's file");
        let middle = file.metadata().expect("its size").len() / 2;
        file.write_all_at(&vec![0xff; bytes], middle).expect("it can be written");
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

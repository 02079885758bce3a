//! Whatever is wrong between the program and its brokers is said at once, with what to change; `tonearm doctor` finds
//! it before a run does.

use std::{
    collections::BTreeMap,
    fs,
    io::copy,
    net::{TcpListener, TcpStream},
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::NamedTempFile;
use tonearm_tests::{
    answers::{A_PERSON, FAILED, USAGE, assert_says, assert_says_only, file, text, tonearm, with},
    audio::wav,
    broker::{self, Certificate, Cluster, Kind, Resource, Topics},
    program::{Answer, Run},
    wait,
};

/// Commands wait 10 s for an answer that may still come, and need not wait for one that has come.
const AT_ONCE: Duration = Duration::from_secs(9);

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<&Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::own(Kind { secure: Some(Certificate::Valid), ..Kind::default() }))
}

/// Where anybody may do anything, without TLS.
fn brokers() -> &'static str {
    cluster();
    broker::brokers()
}

fn topics(partitions: i32) -> Topics {
    cluster();
    Topics::new(partitions)
}

fn unmade() -> Topics {
    cluster();
    Topics::unmade()
}

/// Properties to set, or to leave out.
type Changes<'a> = &'a [(&'a str, Option<&'a str>)];

/// The configuration for `cluster` as the user without rights, with other properties; those without a value are left
/// out.
fn config(address: &str, cluster: &Cluster, changes: Changes<'_>) -> NamedTempFile {
    let mut properties: BTreeMap<String, String> = cluster.properties("tonearm").into_iter().skip(1).collect();
    for (name, value) in changes {
        match value {
            Some(value) => _ = properties.insert((*name).to_owned(), (*value).to_owned()),
            None => _ = properties.remove(*name),
        }
    }
    let lines: String = properties.iter().map(|(name, value)| format!("{name:?} = {value:?}\n")).collect();
    file(".toml", format!("[kafka]\nbrokers = {address:?}\n[kafka.properties]\n{lines}"))
}

#[track_caller]
fn assert_refused(address: &str, changes: Changes<'_>, command: &[&str], fragments: &[&str]) {
    let config = config(address, cluster(), changes);
    let begun = Instant::now();
    let answer = tonearm(&[command, &["--log", "error", "--config", text(config.path())]].concat());
    assert_says_only(&answer, A_PERSON, fragments);
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
    for secret in ["opensesame", &password()] {
        assert!(!answer.err.contains(secret), "a secret is in:\n{}", answer.err);
    }
}

fn password() -> String {
    let properties: BTreeMap<String, String> = cluster().properties("tonearm").into_iter().collect();
    properties["sasl.password"].clone()
}

// --- connections -----------------------------------------------------------------------------------------------------

#[test]
fn a_wrong_password_is_named_by_every_command() {
    let tone = file(".wav", wav(220.0, 0.5, 16_000, 1));
    let commands = [&["run"][..], &["tail"], &["topics", "create"], &["publish", text(tone.path())]];
    for command in commands {
        let wrong = [("sasl.password", Some("opensesame"))];
        assert_refused(
            &cluster().clients,
            &wrong,
            command,
            &[&cluster().clients, "refuses the credentials", "sasl.password"],
        );
    }
}

#[test]
fn what_the_brokers_listener_expects_is_named() {
    let (secure, plain) = (cluster().clients.as_str(), brokers());
    let protocol = |value| ("security.protocol", Some(value));
    let cases: [(&str, Changes<'_>, &[&str]); 7] = [
        (secure, &[("security.protocol", None)], &["expects TLS", "security.protocol"]),
        (secure, &[protocol("sasl_plaintext")], &["expects TLS", "security.protocol"]),
        (secure, &[protocol("ssl")], &["expects a login", "sasl_ssl"]),
        (secure, &[("sasl.mechanism", Some("SCRAM-SHA-256"))], &["refuses the credentials", "SCRAM-SHA-512,PLAIN"]),
        (plain, &[protocol("ssl")], &["does not speak TLS", "plaintext"]),
        (plain, &[], &["does not speak TLS", "plaintext"]),
        (plain, &[protocol("sasl_plaintext")], &["expects no login", "plaintext"]),
    ];
    for (address, changes, fragments) in cases {
        assert_refused(address, changes, &["tail"], &[&[address][..], fragments].concat());
    }
}

#[test]
fn a_certificate_of_an_unknown_ca_is_named_with_the_property() {
    // The CA of other brokers; and none but the machine's own.
    let other = file(".pem", OTHER_CA);
    for location in [Some(text(other.path())), None] {
        let changes = [("ssl.ca.location", location)];
        assert_refused(&cluster().clients, &changes, &["tail"], &["certificate", "is not trusted", "ssl.ca.location"]);
    }
}

#[test]
fn an_expired_certificate_is_named_with_its_date() {
    let expired = Cluster::beside(Kind { secure: Some(Certificate::Expired), ..Kind::default() });
    let config = config(&expired.clients, &expired, &[]);
    let answer = tonearm(&["tail", "--config", text(config.path())]);
    assert_says_only(&answer, A_PERSON, &["certificate", &expired.clients, "has expired on", "GMT"]);
}

#[test]
fn a_host_that_does_not_exist_is_named() {
    let answer = tonearm(&["tail", "--brokers", "nowhere.invalid:9092"]);
    assert_says_only(&answer, FAILED, &["nowhere.invalid:9092", "kafka.brokers", "is not known"]);
}

#[test]
fn one_broker_that_answers_is_enough() {
    let topics = topics(1);
    let addresses = format!("127.0.0.1:1,{}", brokers());
    let answer = with(&topics.options(), &["doctor", "--brokers", &addresses]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

#[test]
fn a_misspelt_secret_is_not_printed() {
    let config = config(&cluster().clients, cluster(), &[("sasl.passwrd", Some("opensesame"))]);
    let answer = tonearm(&["tail", "--config", text(config.path())]);
    assert_says_only(&answer, USAGE, &["sasl.passwrd", "kafka.properties"]);
    assert!(!answer.err.contains("opensesame"), "{}", answer.err);
}

#[test]
fn a_run_waits_for_brokers_that_are_not_there_yet() {
    let topics = topics(1);
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let running = Run::new(&topics).set("kafka.brokers", port).start();
    wait("a line that says what is waited for", || {
        running.log().contains(&format!("no broker answers at {port}")).then_some(())
    });
    let listener = TcpListener::bind(port).expect("the port is still free");
    std::thread::spawn(move || listener.incoming().flatten().for_each(forward));
    running.wait_until_ready();
    running.stop();
}

/// Passes bytes on between a client and the brokers until one of them has enough.
fn forward(client: TcpStream) {
    let broker = TcpStream::connect(brokers()).expect("a broker");
    for (mut from, mut to) in
        [(client.try_clone().expect("a second handle"), broker.try_clone().expect("a second handle")), (broker, client)]
    {
        std::thread::spawn(move || copy(&mut from, &mut to));
    }
}

// --- rights ----------------------------------------------------------------------------------------------------------

#[test]
fn a_missing_right_is_named_with_its_topic() {
    let topics = topics(1);
    cluster().grant(&["describe"], Resource::Topic(&topics.audio));
    let tone = file(".wav", wav(220.0, 0.5, 16_000, 1));
    let config = config(&cluster().clients, cluster(), &[]);
    for (command, operation, topic) in
        [(&["publish", text(tone.path())][..], "WRITE", &topics.audio), (&["tail"], "READ", &topics.predictions)]
    {
        let arguments = [command, &["--log", "error", "--config", text(config.path())]].concat();
        assert_says_only(&with(&topics.options(), &arguments), A_PERSON, &["user tonearm", operation, topic]);
    }
    let unmade = unmade();
    let create = ["topics", "create", "--config", text(config.path())];
    assert_says(&with(&unmade.options(), &create), A_PERSON, &["user tonearm", "CREATE", &unmade.audio]);
}

#[test]
fn a_publish_needs_more_rights_only_if_it_is_to_go_on() {
    let topics = topics(1);
    cluster().grant(&["write"], Resource::Topic(&topics.audio));
    let (tone, folder) = (file(".wav", wav(220.0, 0.5, 16_000, 1)), tempfile::tempdir().expect("a folder"));
    let (config, journal) = (config(&cluster().clients, cluster(), &[]), folder.path().join("journal"));
    let publish = |more: &[&str]| {
        let arguments = ["publish", text(tone.path()), "--log", "error", "--config", text(config.path())];
        with(&topics.options(), &[&arguments[..], more].concat())
    };
    assert_eq!(publish(&[]).code, Some(0));
    let resume = ["--resume", text(&journal)];
    assert_says_only(&publish(&resume), A_PERSON, &["user tonearm", "WRITE", "transactional id tonearm-publish-"]);
    cluster().grant(&["write"], Resource::TransactionalId("*"));
    // It takes a moment until brokers know it.
    let answer = wait("the right", || Some(publish(&resume)).filter(|answer| answer.code != Some(A_PERSON)));
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    // As if it had crashed between its commit and the last line.
    let noted = fs::read_to_string(&journal).expect("a journal");
    fs::write(&journal, noted.strip_suffix("\"committed\"\n").expect("a commit")).expect("a journal");
    assert_says_only(&publish(&resume), A_PERSON, &["user tonearm", "READ", &topics.audio]);
}

#[test]
fn doctor_names_the_rights_that_a_run_needs() {
    let topics = topics(1);
    let config = config(&cluster().clients, cluster(), &[]);
    let doctor = || Findings::of(with(&topics.options(), &["doctor", "--json", "--config", text(config.path())]));
    let found = doctor();
    assert_eq!(found.code, Some(A_PERSON));
    for (about, operation) in [
        (format!("topic {}", topics.audio), "READ"),
        (format!("topic {}", topics.predictions), "WRITE"),
        (format!("topic {}", topics.rejected), "WRITE"),
        (format!("group {}", topics.group), "READ"),
    ] {
        found.assert_has("fail", &about, &["user tonearm", operation, "kafka-acls", "User:tonearm"]);
    }
    cluster().grant(&["read"], Resource::Topic(&topics.audio));
    cluster().grant(&["write"], Resource::Topic(&topics.predictions));
    cluster().grant(&["write"], Resource::Topic(&topics.rejected));
    cluster().grant(&["read"], Resource::Group(&topics.group));
    let found = doctor();
    assert_eq!(found.code, Some(0), "{:?}", found.lines);
    found.assert_has("ok", &format!("group {}", topics.group), &["can be joined"]);
}

// --- doctor and topics -----------------------------------------------------------------------------------------------

/// What `doctor --json` said.
struct Findings {
    code: Option<i32>,
    lines: Vec<Value>,
}

impl Findings {
    fn of(answer: Answer) -> Self {
        let lines = answer.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        Self { code: answer.code, lines }
    }

    #[track_caller]
    fn assert_has(&self, level: &str, about: &str, fragments: &[&str]) {
        let has = self.lines.iter().any(|line| {
            let text = line.to_string();
            line["level"] == level && line["about"] == about && fragments.iter().all(|part| text.contains(part))
        });
        assert!(has, "{level} {about} with {fragments:?} is not in {:#?}", self.lines);
    }
}

fn doctor(topics: &Topics) -> Findings {
    Findings::of(with(&topics.options(), &["doctor", "--json", "--brokers", brokers()]))
}

#[test]
fn topics_that_the_program_makes_are_good() {
    let topics = unmade();
    let create = ["topics", "create", "--partitions", "2", "--brokers", brokers()];
    assert_eq!(with(&topics.options(), &create).code, Some(0));
    let found = doctor(&topics);
    assert_eq!(found.code, Some(0), "{:#?}", found.lines);
    assert!(found.lines.iter().all(|line| line["level"] == "ok"), "{:#?}", found.lines);
}

#[test]
fn doctor_names_the_topics_that_are_missing() {
    let topics = unmade();
    let found = doctor(&topics);
    assert_eq!(found.code, Some(A_PERSON));
    for topic in [&topics.audio, &topics.predictions, &topics.rejected] {
        found.assert_has("fail", &format!("topic {topic}"), &["does not exist", "tonearm topics create"]);
    }
}

#[test]
fn doctor_finds_what_the_topics_would_not_take() {
    let topics = unmade();
    broker::create_with(&topics.audio, 4, &[("retention.ms", "604800000")]);
    broker::create_with(&topics.predictions, 2, &[("cleanup.policy", "compact"), ("max.message.bytes", "1048588")]);
    let old = [
        ("message.timestamp.before.max.ms", "3600000"),
        ("max.message.bytes", "1048588"),
        ("retention.ms", "86400000"),
    ];
    broker::create_with(&topics.rejected, 4, &old);
    let found = doctor(&topics);
    assert_eq!(found.code, Some(0), "{:#?}", found.lines);
    let predictions = format!("topic {}", topics.predictions);
    found.assert_has("warn", &predictions, &["is compacted", "cleanup.policy=delete"]);
    found.assert_has("warn", &predictions, &["takes 1048588 bytes", "max.message.bytes=68157440"]);
    found.assert_has("warn", &predictions, &["has 2 partitions", "has 4", "kafka-topics"]);
    let rejected = format!("topic {}", topics.rejected);
    found.assert_has("warn", &rejected, &["takes 1048588 bytes", "lose their value"]);
    found.assert_has("warn", &rejected, &["refuses timestamps that are more than 60 min old"]);
    found.assert_has("warn", &rejected, &["is kept for 24 h from the time of the record"]);
}

#[test]
fn doctor_finds_partitions_that_blocks_cannot_keep() {
    let topics = topics(3);
    broker::create(&[(&topics.pcm, 2)]);
    let arguments = ["doctor", "--json", "--stages", "decode", "--brokers", brokers()];
    let found = Findings::of(with(&topics.options(), &arguments));
    assert_eq!(found.code, Some(A_PERSON));
    found.assert_has(
        "fail",
        &format!("topic {}", topics.pcm),
        &["has 2 partitions", "has 3", "blocks keep their partition"],
    );
}

#[test]
fn brokers_that_cannot_keep_transactions_are_named() {
    let stock = Cluster::beside(Kind { stock: true, ..Kind::default() });
    let found = Findings::of(tonearm(&["doctor", "--json", "--brokers", &stock.clients]));
    assert_eq!(found.code, Some(A_PERSON));
    found.assert_has("fail", "transactions", &["transaction.state.log.replication.factor is 3", "1 broker"]);

    let (tone, folder) = (file(".wav", wav(220.0, 0.5, 16_000, 1)), tempfile::tempdir().expect("a folder"));
    let journal = folder.path().join("journal");
    assert_eq!(tonearm(&["topics", "create", "--brokers", &stock.clients]).code, Some(0));
    let publish = ["publish", text(tone.path()), "--log", "error", "--brokers", &stock.clients];
    let answer = tonearm(&[&publish[..], &["--resume", text(&journal)]].concat());
    assert_says_only(&answer, A_PERSON, &["transaction.state.log.replication.factor is 3", "1 broker"]);
    assert_eq!(tonearm(&publish).code, Some(0));
}

#[test]
fn doctor_finds_a_missing_model_and_too_little_memory() {
    let topics = topics(1);
    let mut options = topics.options().to_vec();
    options.extend([("TONEARM__MODEL__NAME", "nobody"), ("TONEARM__RUNTIME__IN_FLIGHT_MIB", "900000")]);
    let found = Findings::of(with(&options, &["doctor", "--json", "--brokers", brokers()]));
    assert_eq!(found.code, Some(A_PERSON));
    found.assert_has("fail", "model", &["nobody", "musicnn-mtt@1.0.0"]);
    found.assert_has("fail", "memory", &["900000 MiB", "runtime.in_flight_mib"]);
}

#[test]
fn doctor_without_brokers_may_be_asked_again() {
    let answer = tonearm(&["doctor", "--brokers", "127.0.0.1:1"]);
    assert_eq!(answer.code, Some(FAILED));
    assert!(answer.out.contains("FAIL  brokers: no broker answers at 127.0.0.1:1"), "{}", answer.out);
}

#[test]
fn topics_with_other_settings_are_named_and_left_alone() {
    let topics = unmade();
    broker::create_with(&topics.rejected, 3, &[("max.message.bytes", "1000000")]);
    let create = ["topics", "create", "--rejected-retention", "30", "--brokers", brokers()];
    for _ in 0..2 {
        let answer = with(&topics.options(), &create);
        assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""), "{answer:?}");
        for fragment in [
            "exists with 3 partitions",
            "max.message.bytes is 1000000, not 69206016",
            "retention.ms is 604800000, not 2592000000",
        ] {
            assert!(answer.out.contains(fragment), "{fragment:?} is not in:\n{}", answer.out);
        }
    }
}

/// A certificate that nobody here has signed anything with.
const OTHER_CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBfjCCASWgAwIBAgIUOXN56mkLZdeFFzwMRp8LP7Z8i/wwCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKQW5vdGhlciBDQTAeFw0yNjExMjUxMzMyMDNaFw00NjExMjAx
MzMyMDNaMBUxEzARBgNVBAMMCkFub3RoZXIgQ0EwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARuiLt49/DCpVy6d4Eg+LFSoEGG+G5FQJAZJHLXOI4UgBHITbBIcShv
CYxj1BrEDPjS+5aweOBrPKEJiyVrceZ+o1MwUTAdBgNVHQ4EFgQUqVUidiYbDk7I
ngtzIJHncHVhHiowHwYDVR0jBBgwFoAUqVUidiYbDk7IngtzIJHncHVhHiowDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNHADBEAiBsJ0b5ptAbqSUbs1LHOVJ8
kyUAhwfK8INLAoQr6omvuQIgGKspzsWEU1A8w6HmozUSheJuz0U8Xkq+e7UlX3bS
Irk=
-----END CERTIFICATE-----
";

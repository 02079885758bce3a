//! Whatever is asked wrongly is answered in one clear sentence on standard error, with the right exit code.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tonearm_tests::{
    audio::wav,
    broker::{Topics, brokers},
    chance,
    program::{Answer, Run, answer, command},
    records::{Input, publish},
    root, wait, wait_within,
};

/// Exit codes: the command failed, or was asked for what cannot be.
const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// Runs the program with settings from the environment on top.
fn with(settings: &[(&str, &str)], arguments: &[&str]) -> Answer {
    let mut command = command(arguments);
    // Nobody may see a backtrace, not even who asks for those of panics.
    command.env("RUST_BACKTRACE", "1").env("TONEARM__ADMIN__LISTEN", "").envs(settings.iter().copied());
    answer(command)
}

fn tonearm(arguments: &[&str]) -> Answer {
    with(&[], arguments)
}

#[track_caller]
fn assert_says(answer: &Answer, code: i32, fragments: &[&str]) {
    assert_eq!(answer.code, Some(code), "{answer:?}");
    for fragment in fragments {
        assert!(answer.err.contains(fragment), "{fragment:?} is not in:\n{}", answer.err);
    }
    for noise in ["panicked", "backtrace", "RUST_BACKTRACE", "unwrap()", "Traceback", "frame #", ".cpp:"] {
        assert!(!answer.err.contains(noise), "{noise:?} is in:\n{}", answer.err);
    }
    assert_eq!(answer.out, "", "standard output is for data");
}

/// … and all of it in one sentence.
#[track_caller]
fn assert_says_only(answer: &Answer, code: i32, fragments: &[&str]) {
    assert_says(answer, code, fragments);
    assert!(answer.err.starts_with("tonearm: "), "{}", answer.err);
    assert_eq!(answer.err.lines().count(), 1, "{}", answer.err);
}

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_suffix(".wav").expect("a file");
    fs::write(file.path(), content).expect("a file");
    file
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

// --- the command line --------------------------------------------------------------------------------------------------

#[test]
fn an_unknown_option_is_named() {
    assert_says(&tonearm(&["run", "--frobnicate"]), USAGE, &["error: unexpected argument '--frobnicate'", "--help"]);
}

#[test]
fn an_unknown_command_is_named() {
    assert_says(&tonearm(&["rnu"]), USAGE, &["error: unrecognized subcommand 'rnu'", "--help"]);
}

#[test]
fn a_missing_argument_is_named() {
    assert_says(&tonearm(&["predict"]), USAGE, &["<FILE>"]);
}

#[test]
fn a_key_for_two_files_is_refused() {
    assert_says_only(&tonearm(&["publish", "--key", "a", "x.wav", "y.wav"]), USAGE, &["--key", "2 files"]);
}

#[test]
fn help_and_version_are_no_mistakes() {
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let answer = tonearm(arguments);
        assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""), "{arguments:?}");
        assert!(!answer.out.is_empty());
    }
}

#[test]
fn the_help_of_every_command_has_examples() {
    let help = tonearm(&["--help"]).out;
    let list = help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next()).expect("a list");
    let commands = list.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    for name in commands {
        let of_name = tonearm(&[name, "--help"]).out;
        let parts: Vec<String> = match of_name.split("\nCommands:").nth(1).and_then(|rest| rest.split("\n\n").next()) {
            Some(parts) => parts
                .lines()
                .filter_map(|line| line.split_whitespace().next())
                .filter(|part| *part != "help")
                .map(|part| tonearm(&[name, part, "--help"]).out)
                .collect(),
            None => vec![of_name],
        };
        for help in parts {
            assert!(help.contains("Example"), "no example in the help of {name}:\n{help}");
        }
    }
}

// --- files -------------------------------------------------------------------------------------------------------------

#[test]
fn a_file_that_is_not_there_is_named() {
    for name in ["predict", "inspect"] {
        assert_says_only(&tonearm(&[name, "nowhere.wav"]), FAILED, &["nowhere.wav", "No such file"]);
    }
}

#[test]
fn an_empty_file_is_rejected_with_its_class() {
    let empty = file(b"");
    for name in ["predict", "inspect"] {
        assert_says_only(&tonearm(&[name, text(empty.path())]), FAILED, &[text(empty.path()), "empty-record"]);
    }
}

#[test]
fn a_file_that_is_no_audio_is_rejected_with_its_class() {
    let broken = file(b"this is no music");
    assert_says_only(&tonearm(&["predict", text(broken.path())]), FAILED, &["unsupported-format"]);
}

#[test]
fn good_files_beside_a_broken_one_are_predicted_all_the_same() {
    let (good, broken) = (file(&wav(220.0, 0.5, 16_000, 1)), file(b"this is no music"));
    let answer = tonearm(&["predict", "--json", text(broken.path()), text(good.path())]);
    assert_eq!((answer.code, answer.out.lines().count(), answer.err.lines().count()), (Some(FAILED), 1, 1));
}

#[test]
fn inspect_names_the_class_in_json() {
    let broken = file(b"this is no music");
    let answer = tonearm(&["inspect", "--json", text(broken.path())]);
    let line: serde_json::Value = serde_json::from_str(&answer.out).expect("a JSON object");
    assert_eq!((answer.code, line["error"]["class"].as_str()), (Some(FAILED), Some("unsupported-format")));
    assert!(line["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
}

// --- models ------------------------------------------------------------------------------------------------------------

/// A repository with a copy of musicnn-mtt that may be spoilt.
struct Repository(TempDir);

impl Repository {
    fn new() -> Self {
        let repository = Self(tempfile::tempdir().expect("a folder"));
        let original = root().join("models/repository/musicnn-mtt/1.0.0");
        fs::create_dir_all(repository.file("")).expect("a folder");
        for name in ["model.toml", "model.pt"] {
            fs::copy(original.join(name), repository.file(name)).expect("make models was run");
        }
        repository
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join("musicnn-mtt/1.0.0").join(name)
    }

    fn edit(&self, from: &str, to: &str) {
        let manifest = fs::read_to_string(self.file("model.toml")).expect("a manifest");
        assert!(manifest.contains(from), "{from:?} is not in the manifest");
        fs::write(self.file("model.toml"), manifest.replacen(from, to, 1)).expect("a manifest");
    }

    fn predict(&self) -> Answer {
        let tone = file(&wav(220.0, 0.5, 16_000, 1));
        with(&[("TONEARM__MODELS__DIR", text(self.0.path()))], &["predict", text(tone.path())])
    }
}

#[test]
fn a_missing_model_is_named_with_those_there_are() {
    let answer = tonearm(&["predict", "--model", "nobody", "x.wav"]);
    assert_says_only(&answer, FAILED, &["nobody", "musicnn-mtt@1.0.0", "vgg-msd@1.0.0"]);
}

#[test]
fn a_missing_version_is_named_with_those_there_are() {
    let answer = tonearm(&["predict", "--model", "musicnn-mtt@9.9.9", "x.wav"]);
    assert_says_only(&answer, FAILED, &["musicnn-mtt@9.9.9", "musicnn-mtt@1.0.0"]);
}

#[test]
fn an_empty_repository_says_how_to_fill_it() {
    let empty = tempfile::tempdir().expect("a folder");
    let answer = with(&[("TONEARM__MODELS__DIR", text(empty.path()))], &["predict", "x.wav"]);
    assert_says_only(&answer, FAILED, &["musicnn-mtt", text(empty.path()), "tonearm models import"]);
}

#[test]
fn a_damaged_model_is_refused_with_both_hashes() {
    let repository = Repository::new();
    let mut bytes = fs::read(repository.file("model.pt")).expect("a model");
    let expected = format!("{:x}", Sha256::digest(&bytes));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let found = format!("{:x}", Sha256::digest(&bytes));
    fs::write(repository.file("model.pt"), bytes).expect("a model");
    assert_says_only(&repository.predict(), FAILED, &["model.pt", &expected, &found]);
}

#[test]
fn a_manifest_with_another_hash_is_refused_with_both() {
    let repository = Repository::new();
    let found = format!("{:x}", Sha256::digest(fs::read(repository.file("model.pt")).expect("a model")));
    let wrong = "0".repeat(64);
    repository.edit(&found, &wrong);
    assert_says_only(&repository.predict(), FAILED, &["model.pt", &wrong, &found]);
}

#[test]
fn a_manifest_with_an_unknown_key_is_refused_with_its_name() {
    let repository = Repository::new();
    repository.edit("[windows]\n", "[windows]\noverlap = 3\n");
    assert_says(&repository.predict(), FAILED, &["model.toml", "overlap"]);
}

#[test]
fn a_manifest_with_impossible_values_is_refused_with_all_of_them() {
    let repository = Repository::new();
    repository.edit("n_fft = 512", "n_fft = 511");
    repository.edit("sample_rate_hz = 16000", "sample_rate_hz = 3000");
    assert_says_only(&repository.predict(), FAILED, &["model.toml", "n_fft 511", "sample_rate_hz 3000"]);
}

#[test]
fn a_manifest_with_a_label_too_many_is_refused_with_both_counts() {
    let repository = Repository::new();
    repository.edit("labels = [", "labels = [\"one more\", ");
    assert_says_only(&repository.predict(), FAILED, &["51 labels", "[1, 50]"]);
}

#[test]
fn a_manifest_of_another_model_is_refused_with_both_names() {
    let repository = Repository::new();
    repository.edit("name = \"musicnn-mtt\"", "name = \"somebody-else\"");
    assert_says_only(&repository.predict(), FAILED, &["somebody-else", "musicnn-mtt"]);
}

#[test]
fn a_model_of_another_shape_is_refused_with_what_the_manifest_says() {
    let repository = Repository::new();
    repository.edit("bands = 96", "bands = 64");
    assert_says_only(&repository.predict(), FAILED, &["model.pt", "187 frames", "64 bands"]);
}

#[test]
fn a_model_that_is_no_torchscript_is_refused() {
    let repository = Repository::new();
    let hash = format!("{:x}", Sha256::digest(fs::read(repository.file("model.pt")).expect("a model")));
    repository.edit(&hash, &format!("{:x}", Sha256::digest("no model")));
    fs::write(repository.file("model.pt"), "no model").expect("a file");
    assert_says_only(&repository.predict(), FAILED, &["model.pt", "not a TorchScript model"]);
}

#[test]
fn verify_names_every_model_that_is_not_good() {
    let repository = Repository::new();
    fs::write(repository.file("model.pt"), "no model").expect("a file");
    let answer = with(&[("TONEARM__MODELS__DIR", text(repository.0.path()))], &["models", "verify"]);
    assert_says_only(&answer, FAILED, &["musicnn-mtt@1.0.0", "SHA-256"]);
}

#[test]
fn a_wheel_that_is_not_there_is_named() {
    assert_says_only(&tonearm(&["models", "import", "nowhere.whl"]), FAILED, &["nowhere.whl"]);
}

// --- configuration -----------------------------------------------------------------------------------------------------

fn check(config: &str) -> (Answer, String) {
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    fs::write(file.path(), config).expect("a file");
    let path = text(file.path()).to_owned();
    (tonearm(&["config", "check", "--config", &path]), path)
}

#[test]
fn the_defaults_are_good() {
    let answer = tonearm(&["config", "check"]);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_was_meant() {
    let (answer, path) = check("[kafka]\nbroker = \"127.0.0.1:9092\"\n");
    assert_says_only(&answer, USAGE, &["kafka.broker ", "did you mean brokers?", &path]);
}

#[test]
fn every_problem_is_reported_at_once() {
    let config = "[kafka]\ngroup_protocol = \"raft\"\n[runtime]\nworkers = -1\ndelivery = \"sometimes\"\n\
                  [topics]\naudio = \"a b\"\n[limits]\nmax_record_mibs = 3\nmax_duration_s = \"long\"\n";
    let (answer, path) = check(config);
    let keys = [
        "kafka.group_protocol",
        "runtime.workers",
        "runtime.delivery",
        "topics.audio",
        "limits.max_record_mibs",
        "limits.max_duration_s",
    ];
    assert_says(&answer, USAGE, &keys);
    assert_eq!(answer.err.matches(&path).count(), keys.len(), "{}", answer.err);
}

#[test]
fn a_file_that_is_no_toml_is_named_with_the_line() {
    let (answer, path) = check("[kafka]\nbrokers = [\n");
    assert_says(&answer, USAGE, &[&path, "line 2"]);
}

#[test]
fn a_configuration_file_that_is_not_there_is_named() {
    assert_says_only(&tonearm(&["--config", "nowhere.toml", "config", "check"]), USAGE, &["nowhere.toml"]);
}

#[test]
fn a_bad_value_from_the_environment_is_named_by_its_variable() {
    for (variable, value, allowed) in [
        ("TONEARM__RUNTIME__WORKERS", "-3", "0..=1024"),
        ("TONEARM__RUNTIME__DELIVERY", "sometimes", "exactly-once, at-least-once"),
        ("TONEARM__ADMIN__LISTEN", "nowhere", "127.0.0.1:8080"),
        ("TONEARM__OUTPUT__LABELS", "some", "all"),
    ] {
        assert_says_only(&with(&[(variable, value)], &["config", "check"]), USAGE, &[variable, value, allowed]);
    }
}

#[test]
fn an_unknown_variable_is_named() {
    let answer = with(&[("TONEARM__RUNTIME__WORKERZ", "3")], &["config", "check"]);
    assert_says_only(&answer, USAGE, &["TONEARM__RUNTIME__WORKERZ", "did you mean workers?"]);
}

#[test]
fn a_bad_value_from_a_flag_is_named_by_the_flag() {
    for (flag, value) in [("--labels", "0"), ("--labels", "some"), ("--model", "NO!"), ("--precision", "int1")] {
        assert_says_only(&tonearm(&["predict", flag, value, "x.wav"]), USAGE, &[flag, value]);
    }
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let config = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    fs::write(config.path(), "[kafka]\nbrokers = \"file:1\"\ngroup_id = \"of-the-file\"\n").expect("a file");
    let print = |flags: &[&str]| {
        let arguments = [&["config", "print", "--config", text(config.path())], flags].concat();
        with(&[("TONEARM__KAFKA__BROKERS", "environment:1")], &arguments).out
    };
    assert!(print(&[]).contains("brokers = \"environment:1\""));
    assert!(print(&[]).contains("group_id = \"of-the-file\""));
    assert!(print(&["--brokers", "flag:1"]).contains("brokers = \"flag:1\""));
}

#[test]
fn secrets_are_not_printed() {
    let config = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    fs::write(config.path(), "[kafka.properties]\n\"sasl.password\" = \"opensesame\"\n").expect("a file");
    let answer = tonearm(&["config", "print", "--config", text(config.path())]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.out.contains("sasl.password") && !answer.out.contains("opensesame"), "{}", answer.out);
}

// --- Kafka -------------------------------------------------------------------------------------------------------------

#[test]
fn an_unreachable_broker_is_named() {
    let tone = file(&wav(220.0, 0.5, 16_000, 1));
    // Port 1 is tcpmux, which nobody runs. At once, as each command waits its 10 s.
    let commands = [&["run"][..], &["tail"], &["topics", "create"], &["publish", text(tone.path())]];
    std::thread::scope(|scope| {
        for arguments in commands {
            scope.spawn(move || {
                let arguments = [arguments, &["--brokers", "127.0.0.1:1", "--log", "error"]].concat();
                assert_says_only(&tonearm(&arguments), FAILED, &["no broker answers at 127.0.0.1:1", "10 s"]);
            });
        }
    });
}

#[test]
fn a_missing_topic_is_named_with_the_command_that_makes_it() {
    let topics = Topics::unmade();
    let tone = file(&wav(220.0, 0.5, 16_000, 1));
    let options = topics.options();
    for (arguments, missing) in [
        (&["run"][..], &topics.audio),
        (&["publish", text(tone.path())], &topics.audio),
        (&["tail"], &topics.predictions),
    ] {
        let arguments = [arguments, &["--brokers", brokers(), "--log", "error"]].concat();
        assert_says_only(&with(&options, &arguments), FAILED, &[missing, "does not exist", "tonearm topics create"]);
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let answer = with(&[("TONEARM__ADMIN__LISTEN", &address)], &["run", "--brokers", brokers(), "--log", "error"]);
    assert_says_only(&answer, FAILED, &["admin.listen", &address, "choose another port"]);
}

#[test]
fn a_property_librdkafka_does_not_know_is_named() {
    let config = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    fs::write(config.path(), "[kafka.properties]\n\"no.such.property\" = \"1\"\n").expect("a file");
    let arguments = ["run", "--brokers", brokers(), "--log", "error", "--config", text(config.path())];
    assert_says_only(&tonearm(&arguments), FAILED, &["kafka.properties", "no.such.property"]);
}

#[test]
fn of_two_processes_with_one_name_the_first_ends_and_says_why() {
    let topics = Topics::new(2);
    let instance = chance::name("instance");
    let start = || Run::new(&topics).set("kafka.instance_id", &instance).ready();
    let mut first = start();
    let second = start();
    wait("a partition for each", || {
        let assigned = second.metrics().value("tonearm_assigned_partitions");
        (assigned == 1.0).then_some(())
    });
    let inputs: Vec<Input> = (0..2).map(|n| Input::new(n, "track", wav(220.0, 0.3, 8_000, 1))).collect();
    publish(&topics.audio, &inputs);
    let status = first.wait_within(Duration::from_secs(60));
    let log = first.log();
    assert_eq!(status.code(), Some(FAILED), "{log}");
    assert!(log.contains(&instance) && log.contains("kafka.instance_id"), "{log}");
    wait_within(Duration::from_secs(60), "both results by the second", || {
        (second.metrics().sum("tonearm_records_total") == 2.0).then_some(())
    });
    second.stop();
}

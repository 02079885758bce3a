//! Whatever is asked wrongly is answered in one clear sentence on standard error, with the right exit code.

use std::time::Duration;

use tonearm_tests::{
    answers::{A_PERSON, FAILED, USAGE, assert_says, assert_says_only, file, text, tonearm, with},
    audio::wav,
    broker::{self, Topics, brokers},
    chance,
    program::{Answer, Run},
    records::{Input, publish},
    wait, wait_within,
};

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
    let empty = file(".wav", b"");
    for name in ["predict", "inspect"] {
        assert_says_only(&tonearm(&[name, text(empty.path())]), FAILED, &[text(empty.path()), "empty-record"]);
    }
}

#[test]
fn a_file_that_is_no_audio_is_rejected_with_its_class() {
    let broken = file(".wav", b"this is no music");
    assert_says_only(&tonearm(&["predict", text(broken.path())]), FAILED, &["unsupported-format"]);
}

#[test]
fn good_files_beside_a_broken_one_are_predicted_all_the_same() {
    let (good, broken) = (file(".wav", wav(220.0, 0.5, 16_000, 1)), file(".wav", b"this is no music"));
    let answer = tonearm(&["predict", "--json", text(broken.path()), text(good.path())]);
    assert_eq!((answer.code, answer.out.lines().count(), answer.err.lines().count()), (Some(FAILED), 1, 1));
}

#[test]
fn inspect_names_the_class_in_json() {
    let broken = file(".wav", b"this is no music");
    let answer = tonearm(&["inspect", "--json", text(broken.path())]);
    let line: serde_json::Value = serde_json::from_str(&answer.out).expect("a JSON object");
    assert_eq!((answer.code, line["error"]["class"].as_str()), (Some(FAILED), Some("unsupported-format")));
    assert!(line["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
}

// --- configuration -----------------------------------------------------------------------------------------------------

fn check(config: &str) -> (Answer, String) {
    let file = file(".toml", config);
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
    let config = file(".toml", "[kafka]\nbrokers = \"file:1\"\ngroup_id = \"of-the-file\"\n");
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
    let config = file(".toml", "[kafka.properties]\n\"sasl.password\" = \"opensesame\"\n");
    let answer = tonearm(&["config", "print", "--config", text(config.path())]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.out.contains("sasl.password") && !answer.out.contains("opensesame"), "{}", answer.out);
}

#[test]
fn stages_with_a_gap_are_refused() {
    for stages in ["decode,infer", "infer,features", "mel", ""] {
        let answer = tonearm(&["run", "--stages", stages]);
        assert_says_only(&answer, USAGE, &["runtime.stages", &format!("{stages:?}"), "features,infer", "--stages"]);
    }
}

#[test]
fn blocks_that_could_be_repeated_are_refused() {
    let at_least_once = [("TONEARM__RUNTIME__DELIVERY", "at-least-once")];
    let answer = with(&at_least_once, &["run", "--stages", "decode"]);
    assert_says_only(&answer, USAGE, &["at-least-once", "stages decode", "TONEARM__RUNTIME__DELIVERY"]);
}

// --- Kafka -------------------------------------------------------------------------------------------------------------

#[test]
fn an_unreachable_broker_is_named() {
    let tone = file(".wav", wav(220.0, 0.5, 16_000, 1));
    // Port 1 is tcpmux, which nobody runs.
    let commands =
        [&["run", "--exit-if-unreachable"][..], &["tail"], &["topics", "create"], &["publish", text(tone.path())]];
    std::thread::scope(|scope| {
        for arguments in commands {
            scope.spawn(move || {
                let arguments = [arguments, &["--brokers", "127.0.0.1:1", "--log", "error"]].concat();
                let fragments = ["no broker answers at 127.0.0.1:1", "Connection refused"];
                assert_says_only(&tonearm(&arguments), FAILED, &fragments);
            });
        }
    });
}

#[test]
fn a_missing_topic_is_named_with_the_command_that_makes_it() {
    let topics = Topics::unmade();
    let tone = file(".wav", wav(220.0, 0.5, 16_000, 1));
    let options = topics.options();
    for (arguments, missing) in [
        (&["run"][..], &topics.audio),
        (&["publish", text(tone.path())], &topics.audio),
        (&["tail"], &topics.predictions),
    ] {
        let arguments = [arguments, &["--brokers", brokers(), "--log", "error"]].concat();
        assert_says_only(&with(&options, &arguments), A_PERSON, &[missing, "does not exist", "tonearm topics create"]);
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
    let config = file(".toml", "[kafka.properties]\n\"no.such.property\" = \"1\"\n");
    let arguments = ["run", "--brokers", brokers(), "--log", "error", "--config", text(config.path())];
    assert_says_only(&tonearm(&arguments), USAGE, &["kafka.properties", "no.such.property"]);
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

#[test]
fn topics_between_stages_with_other_partition_counts_are_named_with_both() {
    let topics = Topics::new(3);
    broker::create(&[(&topics.pcm, 2)]);
    let options = topics.options();
    let arguments = ["run", "--stages", "decode", "--brokers", brokers(), "--log", "error"];
    let fragments = [topics.audio.as_str(), "3 partitions", topics.pcm.as_str(), "has 2"];
    assert_says_only(&with(&options, &arguments), FAILED, &fragments);
}

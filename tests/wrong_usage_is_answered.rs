//! Whatever is asked wrongly is answered in one clear sentence on standard error, with the right exit code.

use std::{fs::File, process::Stdio, time::Duration};

use tonearm_tests::{
    answers::{A_PERSON, FAILED, USAGE, assert_says, assert_says_only, file, text, tonearm, with},
    audio::wav,
    broker::{self, Topics, brokers},
    chance,
    program::{Answer, Run, command},
    records::{Input, publish},
    wait, wait_within,
};

// --- the command line ------------------------------------------------------------------------------------------------

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

// --- files -----------------------------------------------------------------------------------------------------------

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

// --- configuration ---------------------------------------------------------------------------------------------------

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
        ("TONEARM__KAFKA__MISSING_OFFSETS", "newest", "recover, earliest, latest, stop"),
        ("TONEARM__KAFKA__GROUP_PROTOCOL", "raft", "auto, consumer, classic"),
        ("TONEARM__OUTPUT__WINDOWS", "perhaps", "true or false"),
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
    for mistake in [
        "[kafka.properties]\n\"sasl.passwrd\" = \"opensesame\"\n",
        "[kafka.properties]\n\"sasl.password\" = opensesame\n",
        "[kafka.properties]\nsasl.password = \"opensesame\"\n",
        "[kafka.properties]\n\"ssl.key.pem\" = \"opensesame\"\n\"security.protocol\" = \"ssl\"\n",
        "[kafka.properties]\n\"sasl.password\" = \"opensesame\"\n\"sasl.mechanism\" = \"opensesame\"\n\
         \"security.protocol\" = \"sasl_ssl\"\n",
    ] {
        let (answer, path) = check(mistake);
        assert_eq!((answer.code, answer.err.contains("opensesame")), (Some(USAGE), false), "{path}: {answer:?}");
    }
}

#[test]
fn a_secret_comes_from_a_variable_or_a_file() {
    let (key, config) = (file(".txt", "opensesame\n"), "[kafka.properties]\n\"sasl.password\" = ");
    let of_file = file(".toml", format!("{config}{{ file = {:?} }}\n", key.path()));
    let of_variable = file(".toml", format!("{config}{{ env = \"OUR_PASSWORD\" }}\n"));
    for config in [&of_file, &of_variable] {
        let arguments = ["config", "print", "--config", text(config.path())];
        let answer = with(&[("OUR_PASSWORD", "opensesame")], &arguments);
        assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
        assert!(!answer.out.contains("opensesame"), "{}", answer.out);
    }
    let (missing, path) =
        (tonearm(&["--config", text(of_variable.path()), "config", "check"]), text(of_variable.path()));
    assert_says_only(&missing, USAGE, &["kafka.properties.sasl.password", "OUR_PASSWORD", "not set", path]);
    let (nowhere, path) = check(&format!("{config}{{ file = \"nowhere.txt\" }}\n"));
    assert_says_only(&nowhere, USAGE, &["kafka.properties.sasl.password", "nowhere.txt", "No such file", &path]);
    let (both, path) = check(&format!("{config}{{ file = \"a\", env = \"A\" }}\n"));
    assert_says_only(&both, USAGE, &["kafka.properties.sasl.password", "{ env = \"NAME\" }", &path]);
}

#[test]
fn properties_that_a_promise_rests_on_are_refused_by_name() {
    for (name, value, instead) in [
        ("enable.auto.commit", "true", "positions"),
        ("enable.auto.offset.store", "true", "positions"),
        ("auto.commit.enable", "true", "positions"),
        ("isolation.level", "read_uncommitted", "void"),
        ("group.id", "ours", "kafka.group_id"),
        ("group.instance.id", "one", "kafka.instance_id"),
        ("group.protocol", "classic", "kafka.group_protocol"),
        ("transactional.id", "one", "kafka.instance_id"),
        ("enable.idempotence", "false", "twice"),
        ("acks", "1", "replicas"),
        ("max.in.flight", "100", "order"),
        ("auto.offset.reset", "latest", "kafka.missing_offsets"),
        ("bootstrap.servers", "elsewhere:9092", "kafka.brokers"),
        ("metadata.broker.list", "elsewhere:9092", "kafka.brokers"),
    ] {
        let (answer, path) = check(&format!("[kafka.properties]\n{name:?} = {value:?}\n"));
        assert_says_only(&answer, USAGE, &[&format!("kafka.properties.{name} "), instead, &path]);
    }
}

#[test]
fn properties_that_librdkafka_refuses_are_named() {
    for (properties, fragments) in [
        ("\"no.such.property\" = 1", &["kafka.properties.no.such.property", "not a property of librdkafka"][..]),
        ("\"security.protocol\" = \"sls\"", &["kafka.properties.security.protocol", "sls"]),
        ("\"fetch.wait.max.ms\" = -1", &["kafka.properties.fetch.wait.max.ms", "0..300000"]),
    ] {
        let (answer, path) = check(&format!("[kafka.properties]\n{properties}\n"));
        assert_says_only(&answer, USAGE, &[fragments, &[&path]].concat());
    }
    // What only clients find.
    for (properties, fragments) in [
        ("\"security.protocol\" = \"ssl\"\n\"ssl.ca.location\" = \"/nowhere.pem\"", "ssl.ca.location"),
        ("\"retries\" = 0", "retries"),
    ] {
        let (answer, _) = check(&format!("[kafka.properties]\n{properties}\n"));
        assert_says_only(&answer, USAGE, &["kafka.properties", fragments]);
    }
}

#[test]
fn what_a_full_disk_does_not_take_is_a_failure() {
    let tone = file(".wav", wav(220.0, 0.5, 16_000, 1));
    for arguments in [
        &["config", "print"][..],
        &["config", "print", "--defaults"],
        &["config", "check"],
        &["models", "list"],
        &["inspect", text(tone.path())],
        &["inspect", "--json", text(tone.path())],
        &["predict", text(tone.path())],
        &["predict", "--json", text(tone.path())],
    ] {
        let mut command = command(arguments);
        command.stdout(File::options().write(true).open("/dev/full").expect("a full disk"));
        let output = command.output().expect("the program can be started");
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILED), "{arguments:?}: {err}");
        assert!(err.contains("standard output cannot be written: No space left on device"), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let tone = file(".wav", wav(220.0, 0.5, 16_000, 1));
    for arguments in [&["config", "print"][..], &["inspect", text(tone.path())], &["predict", text(tone.path())]] {
        let mut command = command(arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program can be started");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the program ends");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{arguments:?}");
    }
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

// --- Kafka -----------------------------------------------------------------------------------------------------------

#[test]
fn an_unreachable_broker_is_named() {
    let tone = file(".wav", wav(220.0, 0.5, 16_000, 1));
    // Port 1 is tcpmux, which nobody runs.
    let commands = [
        &["run", "--exit-if-unreachable"][..],
        &["tail"],
        &["offsets", "show"],
        &["topics", "create"],
        &["publish", text(tone.path())],
    ];
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
        (&["offsets", "show"], &topics.audio),
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
    assert_eq!(status.code(), Some(A_PERSON), "{log}");
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
    assert_says_only(&with(&options, &arguments), A_PERSON, &fragments);
}

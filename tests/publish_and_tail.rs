//! What people at a terminal are promised: files go into the topic once, and what comes out can be watched.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Stdio},
    time::UNIX_EPOCH,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rdkafka::{
    ClientConfig,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use serde_json::json;
use tempfile::NamedTempFile;
use tonearm_schemas::reject::header;
use tonearm_tests::{
    PATIENCE,
    answers::{A_PERSON, FAILED, file, text, with},
    audio::wav,
    broker::{Topics, brokers, create_with, delete_records, recreate},
    chance,
    program::{Answer, command},
    records::{EndsOf, Input, Record, publish, read_all, read_uncommitted},
    wait, wait_within,
};

/// Runs a command against the broker and `topics`.
fn tonearm(topics: &Topics, arguments: &[&str]) -> Answer {
    with(&topics.options(), &[arguments, &["--brokers", brokers()]].concat())
}

/// Starts a command against the broker and `topics`; what it says is kept in `folder`.
fn start(topics: &Topics, folder: &Path, arguments: &[&str]) -> Child {
    let file = |name| File::create(folder.join(name)).expect("a file");
    let mut command = command(arguments);
    command.env("TONEARM__KAFKA__BROKERS", brokers()).envs(topics.options()).stdout(file("out")).stderr(file("err"));
    command.spawn().expect("the program can be started")
}

fn said(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_default()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("the program runs");
}

fn end(child: &mut Child) -> Option<i32> {
    wait_within(PATIENCE, "the end of the program", || child.try_wait().expect("a child")).code()
}

fn keys(topic: &str) -> Vec<String> {
    let mut keys: Vec<String> = read_all(topic).iter().map(|record| record.key_text()).collect();
    keys.sort();
    keys
}

/// A folder with `count` small tracks.
fn many(count: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let tone = wav(220.0, 0.5, 8_000, 1);
    (0..count).for_each(|n| fs::write(folder.path().join(format!("{n:04}.wav")), &tone).expect("a file"));
    folder
}

// --- publish ---------------------------------------------------------------------------------------------------------

#[test]
fn a_file_that_the_topic_does_not_take_is_named_at_once_and_the_others_are_published() {
    let (topics, folder) = (Topics::new(1), many(1));
    // More than the queue of a producer has room for, and nothing on the disk.
    let large = folder.path().join("large.wav");
    File::create(&large).and_then(|file| file.set_len(200 << 20)).expect("a file");
    let answer = tonearm(&topics, &["publish", text(folder.path())]);
    assert_eq!(answer.code, Some(FAILED), "{answer:?}");
    assert_eq!(answer.err.lines().count(), 1, "{}", answer.err);
    for fragment in [text(&large), "209715", "max.message.bytes", &topics.audio] {
        assert!(answer.err.contains(fragment), "{fragment} is not in {}", answer.err);
    }
    assert_eq!(answer.out, format!("1 of 2 files published to {}\n", topics.audio));
    assert_eq!(keys(&topics.audio), ["0000"]);
}

#[test]
fn files_of_the_same_name_have_keys_of_their_own() {
    let (topics, folder) = (Topics::new(2), many(1));
    let track = folder.path().join("0000.wav");
    for copy in ["album/0000.wav", "album/deep/0000.wav", "pair.wav", "pair.flac"] {
        let copy = folder.path().join(copy);
        fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder");
        fs::copy(&track, copy).expect("a file");
    }
    symlink(folder.path(), folder.path().join("round")).expect("a link");
    let answer = tonearm(&topics, &["publish", "-r", text(folder.path()), text(&track)]);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    let whole = |name| text(&folder.path().join(name)).to_owned();
    assert_eq!(
        keys(&topics.audio),
        [
            whole("pair.flac"),
            whole("pair.wav"),
            "0000".to_owned(),
            "album/0000".to_owned(),
            "album/deep/0000".to_owned()
        ]
    );
}

/// So slow that it has files left whenever a test looks: a record waits 200 ms for others to go with, and none comes.
fn slow() -> NamedTempFile {
    let properties = "\"linger.ms\" = 200\n\"batch.num.messages\" = 10\n\"queue.buffering.max.messages\" = 1\n";
    file(".toml", format!("[kafka.properties]\n{properties}"))
}

/// More than such a one publishes in a test's patience.
const MANY: usize = 500;
/// The line of a journal behind a commit.
const COMMITTED: &str = "\"committed\"\n";

/// As if the last run had crashed between a commit and its line in the journal.
fn cut(journal: &Path) {
    let noted = fs::read_to_string(journal).expect("a journal");
    let rest = noted.strip_suffix(COMMITTED).unwrap_or(&noted);
    fs::write(journal, format!("{rest}\"commi")).expect("a journal");
}

#[test]
fn an_interrupted_publish_says_how_far_it_came_and_goes_on_from_there() {
    let (topics, folder, home, slow) = (Topics::new(3), many(MANY), tempfile::tempdir().expect("a folder"), slow());
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    let mut child = start(&topics, home.path(), &[&arguments[..], &["--config", text(slow.path())]].concat());
    wait("a commit", || said(home.path(), "journal").contains(COMMITTED).then_some(()));
    signal(&child, Signal::SIGINT);
    assert_eq!(end(&mut child), Some(FAILED));
    wait_for_ends(&topics, 3);
    let published = read_all(&topics.audio).len();
    assert!(published < MANY, "all were published before the signal came, so this shows nothing");
    let summary = format!("{published} of {MANY} files published to {}\n", topics.audio);
    assert_eq!(said(home.path(), "out"), summary);
    let left = format!("tonearm: stopped: {} files are not published; the same command goes on\n", MANY - published);
    assert_eq!(said(home.path(), "err"), left);

    let answer = tonearm(&topics, &arguments);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    let rest = MANY - published;
    assert_eq!(answer.out, format!("{rest} of {MANY} files published to {}, {published} before\n", topics.audio));
    assert_once_each(&topics, 3, MANY);
}

#[test]
fn a_killed_publish_goes_on_without_publishing_twice() {
    let (topics, folder, home, slow) = (Topics::new(3), many(MANY), tempfile::tempdir().expect("a folder"), slow());
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    let mut child = start(&topics, home.path(), &[&arguments[..], &["--config", text(slow.path())]].concat());
    wait("two commits", || (said(home.path(), "journal").matches(COMMITTED).count() > 1).then_some(()));
    signal(&child, Signal::SIGKILL);
    end(&mut child);
    cut(&journal);
    let answer = tonearm(&topics, &arguments);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    assert_once_each(&topics, 3, MANY);
    let again = tonearm(&topics, &arguments);
    assert_eq!(again.out, format!("0 of {MANY} files published to {}, {MANY} before\n", topics.audio));
}

/// Freezes a publishing program whose transaction is open, and not in its journal yet: its commit is not asked for.
fn freeze_in_a_transaction(child: &Child, topics: &Topics, journal: &Path) {
    wait("an open transaction", || {
        signal(child, Signal::SIGSTOP);
        let pid = Pid::from_raw(child.id() as i32);
        assert_eq!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)), Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)));
        let noted = fs::read_to_string(journal).unwrap_or_default();
        let is_within = noted.ends_with(COMMITTED) && !beyond(&noted, topics).is_empty();
        if !is_within {
            signal(child, Signal::SIGCONT);
        }
        is_within.then_some(())
    });
}

/// Records in the topic, committed or not, whose files a journal does not name.
fn beyond(noted: &str, topics: &Topics) -> Vec<Record> {
    let mut all = read_uncommitted(&topics.audio);
    all.retain(|record| !noted.contains(&format!("/{}.wav", record.key_text())));
    all
}

#[test]
fn a_run_that_wakes_after_another_has_gone_on_publishes_nothing_more() {
    let (topics, folder, home, slow) = (Topics::new(3), many(MANY), tempfile::tempdir().expect("a folder"), slow());
    let (journal, copy) = (home.path().join("journal"), home.path().join("copy"));
    let arguments = ["publish", text(folder.path()), "--resume"];
    let with_journal = [text(&journal), "--config", text(slow.path())];
    let mut child = start(&topics, home.path(), &[&arguments[..], &with_journal].concat());
    freeze_in_a_transaction(&child, &topics, &journal);
    fs::copy(&journal, &copy).expect("a copy");
    let answer = tonearm(&topics, &[&arguments[..], &[text(&copy)]].concat());
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    assert_once_each(&topics, 3, MANY);

    signal(&child, Signal::SIGCONT);
    assert_eq!(end(&mut child), Some(A_PERSON));
    let err = said(home.path(), "err");
    assert!(err.starts_with("tonearm: another `tonearm publish` with a copy of this journal"), "{err}");
    assert!(err.lines().count() == 2 && err.contains("stopped: ") && !err.contains("perhaps"), "{err}");
    assert_once_each(&topics, 3, MANY);
}

#[test]
fn what_was_never_committed_is_published_again() {
    let (topics, folder, home, slow) = (Topics::new(3), many(MANY), tempfile::tempdir().expect("a folder"), slow());
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    let mut child = start(&topics, home.path(), &[&arguments[..], &["--config", text(slow.path())]].concat());
    freeze_in_a_transaction(&child, &topics, &journal);
    signal(&child, Signal::SIGKILL);
    end(&mut child);
    // As if it had come as far as the journal.
    let noted = said(home.path(), "journal");
    let record = beyond(&noted, &topics).remove(0);
    let track = folder.path().join(record.key_text()).with_extension("wav").canonicalize().expect("a file");
    let modified = track.metadata().and_then(|file| file.modified()).expect("a time");
    let modified = modified.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let bytes = record.value.as_ref().map_or(0, Vec::len);
    let sent = json!({"sent": {
        "files": [{"file": track, "bytes": bytes, "modified_ns": modified}],
        "partition": record.partition, "offset": record.offset,
    }});
    fs::write(&journal, format!("{noted}{sent}\n")).expect("a journal");

    let answer = tonearm(&topics, &arguments);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    assert_once_each(&topics, 3, MANY);
}

#[test]
fn a_file_that_the_broker_refuses_is_named_and_those_beside_it_are_published() {
    const LIMIT: usize = 20_000;
    let (topics, folder, home) = (Topics::unmade(), many(20), tempfile::tempdir().expect("a folder"));
    create_with(&topics.audio, 1, &[("max.message.bytes", &LIMIT.to_string())]);
    let refused = ["0004-large", "0011-large"].map(|name| folder.path().join(name).with_extension("wav"));
    // It fits with its key and the header of its batch, and what frames a record is too much.
    refused.iter().for_each(|path| fs::write(path, vec![0; LIMIT - 61 - 10]).expect("a file"));
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    let answer = tonearm(&topics, &arguments);
    assert_eq!((answer.code, answer.err.lines().count()), (Some(FAILED), 2), "{answer:?}");
    for path in &refused {
        assert!(answer.err.contains(&format!("tonearm: {}: was not taken", text(path))), "{}", answer.err);
    }
    assert_eq!(answer.out, format!("20 of 22 files published to {}\n", topics.audio));
    assert_once_each(&topics, 1, 20);
    assert_eq!(tonearm(&topics, &arguments).out, format!("0 of 22 files published to {}, 20 before\n", topics.audio));
}

/// A producer that has written a record, and does not end its transaction.
fn upstream(topic: &str) -> ThreadedProducer<DefaultProducerContext> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("transactional.id", chance::name("upstream"))
        .set("transaction.timeout.ms", "600000")
        .create()
        .expect("a producer");
    producer.init_transactions(PATIENCE).expect("the broker keeps transactions");
    producer.begin_transaction().expect("a transaction");
    producer.send(BaseRecord::to(topic).partition(0).key("open").payload("")).expect("it is queued");
    producer.flush(PATIENCE).expect("the broker takes it");
    producer
}

#[test]
fn what_lies_behind_anothers_open_transaction_is_waited_for() {
    let (topics, folder, home) = (Topics::new(1), many(3), tempfile::tempdir().expect("a folder"));
    let stranger = upstream(&topics.audio);
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    assert_eq!(tonearm(&topics, &arguments).code, Some(0));
    cut(&journal);
    let wait_for_word = || {
        wait("a word", || said(home.path(), "err").contains("waiting for the end of another").then_some(()));
    };
    let mut child = start(&topics, home.path(), &arguments);
    wait_for_word();
    signal(&child, Signal::SIGINT);
    assert_eq!(end(&mut child), Some(FAILED));
    let err = said(home.path(), "err");
    assert!(
        err.ends_with("stopped: 3 files are not published, 3 of them perhaps are; the same command goes on\n"),
        "{err}"
    );

    let mut child = start(&topics, home.path(), &arguments);
    wait_for_word();
    stranger.abort_transaction(PATIENCE).expect("an abort");
    assert_eq!(end(&mut child), Some(0));
    assert_eq!(said(home.path(), "out"), format!("0 of 3 files published to {}, 3 before\n", topics.audio));
    assert_once_each(&topics, 1, 3);
}

#[test]
fn it_is_said_if_nobody_can_tell_any_more_what_was_published() {
    let (topics, folder, home) = (Topics::new(1), many(3), tempfile::tempdir().expect("a folder"));
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    assert_eq!(tonearm(&topics, &arguments).code, Some(0));
    cut(&journal);
    delete_records(&topics.audio, 0, 3);
    let answer = tonearm(&topics, &arguments);
    assert_eq!((answer.code, answer.err.contains("is not known")), (Some(0), true), "{answer:?}");
    assert_once_each(&topics, 1, 3);
}

#[test]
fn a_journal_of_a_topic_that_is_no_more_is_refused() {
    let (topics, folder, home) = (Topics::new(1), many(1), tempfile::tempdir().expect("a folder"));
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    assert_eq!(tonearm(&topics, &arguments).code, Some(0));
    recreate(&topics.audio, 1);
    let answer = tonearm(&topics, &arguments);
    assert_eq!(answer.code, Some(FAILED), "{answer:?}");
    assert!(answer.err.contains(text(&journal)) && answer.err.contains("made again"), "{}", answer.err);
}

/// A broker says that a transaction has ended, and then tells the partitions.
fn wait_for_ends(topics: &Topics, partitions: i32) {
    let ends = |isolation| EndsOf::new(&[&topics.audio], partitions, isolation);
    let (committed, all) = (ends("read_committed"), ends("read_uncommitted"));
    let now = |ends: &EndsOf| ends.now(PATIENCE).expect("the broker answers");
    wait("the ends of all transactions", || (now(&committed) == now(&all)).then_some(()));
}

fn assert_once_each(topics: &Topics, partitions: i32, files: usize) {
    wait_for_ends(topics, partitions);
    let keys = keys(&topics.audio);
    assert_eq!((keys.len(), keys.iter().collect::<BTreeSet<_>>().len()), (files, files));
}

#[test]
fn a_file_that_is_no_journal_is_refused_and_left_alone() {
    let (topics, folder) = (Topics::new(1), many(1));
    let track = folder.path().join("0000.wav");
    let before = fs::read(&track).expect("a file");
    let answer = tonearm(&topics, &["publish", "--resume", text(&track), text(&track)]);
    assert_eq!((answer.code, answer.out.as_str()), (Some(FAILED), ""));
    assert!(answer.err.contains(text(&track)) && answer.err.contains("no journal"), "{}", answer.err);
    assert_eq!(fs::read(&track).expect("a file"), before);
}

// --- tail ------------------------------------------------------------------------------------------------------------

#[test]
fn a_terminal_obeys_nothing_of_what_tail_shows() {
    let topics = Topics::new(1);
    let reject = Input::new(0, "\u{1b}]0;title\u{7}", b"noise".to_vec())
        .header(header::CLASS, "\u{1b}[31m")
        .header(header::MESSAGE, "a\r\u{9b}2Jb\u{202e}");
    publish(&topics.rejected, &[reject]);
    publish(&topics.predictions, &[Input::new(0, "a", b"\x1b[2J".to_vec())]);
    let answer = tonearm(&topics, &["tail", "--from-beginning", "--count", "2"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let obeyed = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    assert!(!answer.out.contains(obeyed), "{:?}", answer.out);
    assert!(answer.out.contains("\\u{1b}]0;title\\u{7}  rejected: \\u{1b}[31m\n  a\\r\\u{9b}2Jb\\u{202e}\n"));
}

#[test]
fn tail_in_json_is_what_is_in_the_topic() {
    let topics = Topics::new(1);
    publish(&topics.predictions, &[Input::new(0, "a", "{\"track\":\"\u{1b}[2J\"}".into())]);
    let answer = tonearm(&topics, &["tail", "--json", "--from-beginning", "--count", "1"]);
    assert_eq!((answer.code, answer.out.as_str()), (Some(0), "{\"track\":\"\u{1b}[2J\"}\n"));
}

#[test]
fn tail_says_where_it_starts_if_nothing_comes_and_ends_with_its_terminal() {
    let (topics, home) = (Topics::new(1), tempfile::tempdir().expect("a folder"));
    publish(&topics.predictions, &[Input::new(0, "a", b"{}".to_vec())]);
    let mut child = start(&topics, home.path(), &["tail"]);
    wait("a word", || said(home.path(), "err").ends_with('\n').then_some(()));
    let word = said(home.path(), "err");
    assert!(word.contains("from now on") && word.contains("--from-beginning"), "{word}");
    signal(&child, Signal::SIGHUP);
    assert_eq!((end(&mut child), said(home.path(), "out")), (Some(0), String::new()));
}

#[test]
fn tail_ends_quietly_with_its_reader() {
    let (topics, home) = (Topics::new(1), tempfile::tempdir().expect("a folder"));
    publish(&topics.predictions, &[Input::new(0, "a", b"{}".to_vec())]);
    let mut command = command(["tail", "--from-beginning", "--brokers", brokers()]);
    let err = File::create(home.path().join("err")).expect("a file");
    let mut child = command.envs(topics.options()).stdout(Stdio::piped()).stderr(err).spawn().expect("the program");
    drop(child.stdout.take());
    assert_eq!((end(&mut child), said(home.path(), "err")), (Some(0), String::new()));
}

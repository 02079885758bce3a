//! What people at a terminal are promised: files go into the topic once, and what comes out can be watched.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonearm_schemas::reject::header;
use tonearm_tests::{
    PATIENCE,
    answers::{FAILED, text, with},
    audio::wav,
    broker::{Topics, brokers},
    program::{Answer, command},
    records::{Input, publish, read_all},
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

#[test]
fn an_interrupted_publish_says_how_far_it_came_and_goes_on_from_there() {
    const FILES: usize = 1500;
    let (topics, folder, home) = (Topics::new(3), many(FILES), tempfile::tempdir().expect("a folder"));
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    let mut child = start(&topics, home.path(), &arguments);
    wait("a record that is noted", || said(home.path(), "journal").contains("\"published\"").then_some(()));
    signal(&child, Signal::SIGINT);
    assert_eq!(end(&mut child), Some(FAILED));
    let published = read_all(&topics.audio).len();
    assert!(published < FILES, "all were published before the signal came, so this shows nothing");
    let summary = format!("{published} of {FILES} files published to {}\n", topics.audio);
    assert_eq!(said(home.path(), "out"), summary);
    let left = format!("tonearm: stopped: {} files are not published; the same command goes on\n", FILES - published);
    assert_eq!(said(home.path(), "err"), left);

    let answer = tonearm(&topics, &arguments);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    let rest = FILES - published;
    assert_eq!(answer.out, format!("{rest} of {FILES} files published to {}, {published} before\n", topics.audio));
    assert_once_each(&topics, FILES);
}

#[test]
fn a_killed_publish_goes_on_without_publishing_twice() {
    const FILES: usize = 1500;
    let (topics, folder, home) = (Topics::new(3), many(FILES), tempfile::tempdir().expect("a folder"));
    let journal = home.path().join("journal");
    let arguments = ["publish", "--resume", text(&journal), text(folder.path())];
    let mut child = start(&topics, home.path(), &arguments);
    wait("records that are noted", || (said(home.path(), "journal").lines().count() > 40).then_some(()));
    signal(&child, Signal::SIGKILL);
    end(&mut child);
    // The last lines never came to the disk, one of them by half, as if the power had gone.
    let noted = said(home.path(), "journal");
    let kept: Vec<&str> = noted.lines().take(noted.lines().count() - 20).collect();
    fs::write(&journal, format!("{}\n{{\"published\":{{\"fi", kept.join("\n"))).expect("a journal");

    let answer = tonearm(&topics, &arguments);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    assert_once_each(&topics, FILES);
    let again = tonearm(&topics, &arguments);
    assert_eq!(again.out, format!("0 of {FILES} files published to {}, {FILES} before\n", topics.audio));
}

fn assert_once_each(topics: &Topics, files: usize) {
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

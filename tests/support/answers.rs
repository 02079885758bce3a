//! Questions to the program, and what an answer must be like.

use std::{fs, path::Path};

use super::program::{Answer, answer, command};

/// The exit code of a command that failed.
pub const FAILED: i32 = 1;
/// The exit code of a command that was asked for what cannot be.
pub const USAGE: i32 = 2;
/// The exit code of a command that fails until a person has changed something.
pub const A_PERSON: i32 = 3;

/// Runs the program with settings from the environment on top.
pub fn with(settings: &[(&str, &str)], arguments: &[&str]) -> Answer {
    let mut command = command(arguments);
    // Nobody may see a backtrace, not even who asks for those of panics.
    command.env("RUST_BACKTRACE", "1").env("TONEARM__ADMIN__LISTEN", "").envs(settings.iter().copied());
    answer(command)
}

/// Runs the program.
pub fn tonearm(arguments: &[&str]) -> Answer {
    with(&[], arguments)
}

/// It ends with `code` and says all `fragments`, without noise and without mistaking the complaint for data.
#[track_caller]
pub fn assert_says(answer: &Answer, code: i32, fragments: &[&str]) {
    assert_eq!(answer.code, Some(code), "{answer:?}");
    for fragment in fragments {
        assert!(answer.err.contains(fragment), "{fragment:?} is not in:\n{}", answer.err);
    }
    for noise in ["panicked", "backtrace", "RUST_BACKTRACE", "unwrap()", "Traceback", "frame #", ".cpp:"] {
        assert!(!answer.err.contains(noise), "{noise:?} is in:\n{}", answer.err);
    }
    assert_eq!(answer.out, "", "standard output is for data");
}

/// [`assert_says`], and all of it in one sentence.
#[track_caller]
pub fn assert_says_only(answer: &Answer, code: i32, fragments: &[&str]) {
    assert_says(answer, code, fragments);
    assert!(answer.err.starts_with("tonearm: "), "{}", answer.err);
    assert_eq!(answer.err.lines().count(), 1, "{}", answer.err);
}

/// A file that is there as long as the value.
pub fn file(ending: &str, content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_suffix(ending).expect("a file");
    fs::write(file.path(), content).expect("a file");
    file
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

//! What the tests of the promises share: a real broker, the real program, and a stranger's Kafka client.
//!
//! Tests run side by side on one broker, so every one has topics and a group of its own; they wait for conditions,
//! never for time to pass.

mod support {
    pub mod admin;
    pub mod answers;
    pub mod audio;
    pub mod broker;
    pub mod chance;
    pub mod chaos;
    pub mod headers;
    pub mod imports;
    pub mod link;
    pub mod models;
    pub mod poison;
    pub mod program;
    pub mod readiness;
    pub mod records;
    pub mod verifier;
}

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use support::{
    admin, answers, audio, broker, chance, chaos, headers, imports, link, models, poison, program, readiness, records,
    verifier,
};

/// How long anything may take that happens at all. Generous: it is only used up by a failure, and machines get busy.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The checkout's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the checkout is there")
}

/// Asks `check` again and again until it has an answer.
///
/// # Panics
/// It has none within `patience`.
#[track_caller]
pub fn wait_within<T>(patience: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = check() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", patience.as_secs_f32());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// [`wait_within`] the usual [`PATIENCE`].
#[track_caller]
pub fn wait<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, check)
}

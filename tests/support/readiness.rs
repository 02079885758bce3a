//! What a process says of its readiness, and within which time.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    broker::Topics,
    program::Running,
    records::{Reader, committed, read_all},
    verifier::{History, verify},
};
use crate::{wait, wait_within};

/// What fails is said within this time, and so is the cure.
pub const BOUND: Duration = Duration::from_secs(15);

/// Waits until `check` fails with all of `fragments`, within the bound.
#[track_caller]
pub fn fails(running: &Running, check: &str, fragments: &[&str]) {
    let begun = Instant::now();
    let failed = wait_within(BOUND, &format!("check {check} to fail with {fragments:?}"), || {
        let (status, body) = running.get("/health/ready")?;
        let said: Value = serde_json::from_str(&body).expect("JSON");
        let checks = said["checks"].as_array().expect("checks");
        let failed = checks.iter().find(|found| found["name"] == check && found["ok"] == false)?;
        let detail = failed["detail"].as_str().expect("a detail");
        let is_said = fragments.iter().all(|fragment| detail.contains(fragment));
        (status == 503 && said["ready"] == false && is_said).then(|| detail.to_owned())
    });
    println!("{check} fails after {:.1} s: {failed}", begun.elapsed().as_secs_f32());
    assert_alive(running);
}

/// Waits until all is well again, within the bound.
#[track_caller]
pub fn heals(running: &Running) {
    let begun = Instant::now();
    wait_within(BOUND, "ready again", || running.get("/health/ready").filter(|(status, _)| *status == 200));
    let test = std::thread::current();
    println!("{}: ready again after {:.1} s", test.name().unwrap_or_default(), begun.elapsed().as_secs_f32());
    assert_alive(running);
}

#[track_caller]
fn assert_alive(running: &Running) {
    assert_eq!(running.get("/health/live"), Some((200, "live\n".to_owned())));
}

/// Each record that was published has its one result, once `count` have come.
#[track_caller]
pub fn assert_all_end(topics: &Topics, partitions: i32, count: usize) {
    Reader::new(&[&topics.predictions, &topics.rejected]).take(count);
    wait("the group behind the last record", || {
        let behind: i64 = committed(&topics.group, &topics.audio, partitions).into_iter().flatten().sum();
        (behind == count as i64).then_some(())
    });
    let verdict = verify(&History {
        published: read_all(&topics.audio),
        predictions: read_all(&topics.predictions),
        rejected: read_all(&topics.rejected),
        positions: committed(&topics.group, &topics.audio, partitions),
    });
    verdict.assert_faultless();
    assert_eq!(verdict.records, count);
}

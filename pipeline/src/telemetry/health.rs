//! What `/health/live` and `/health/ready` answer from. The loop reports; whoever asks reads the last report.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

/// A loop that has not turned for this long hangs. A turn takes milliseconds.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// One thing that must hold for a process to be ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    /// What is wrong; empty if nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Check {
    pub fn new(name: &'static str, ok: bool, detail: impl FnOnce() -> String) -> Self {
        Self { name, ok, detail: if ok { String::new() } else { detail() } }
    }
}

/// The body of `/health/ready`.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    pub ready: bool,
    pub checks: Vec<Check>,
}

/// Shared by the loop and the operators' port.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    model_warm: bool,
    /// When the loop last turned; `None` before it does.
    turned: Option<Instant>,
    checks: Vec<Check>,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn model_is_warm(&self) {
        self.state().model_warm = true;
    }

    /// Notes that the loop turns.
    pub fn turned(&self) {
        self.state().turned = Some(Instant::now());
    }

    /// Notes that the loop has ended, so that it cannot hang.
    pub fn ended(&self) {
        self.state().turned = None;
    }

    /// Notes what holds and what does not.
    pub fn report(&self, checks: Vec<Check>) {
        self.state().checks = checks;
    }

    /// How long the loop has hung; `None` if it turns.
    pub fn hangs(&self) -> Option<Duration> {
        self.state().turned.map(|turned| turned.elapsed()).filter(|still| *still >= HANGS_AFTER)
    }

    pub fn readiness(&self) -> Readiness {
        let hangs = self.hangs();
        let state = self.state();
        let mut checks = vec![
            Check::new("model", state.model_warm, || "the model is loading".to_owned()),
            Check::new("loop", hangs.is_none(), || {
                format!("the loop has not turned for {} s", hangs.unwrap_or_default().as_secs())
            }),
        ];
        if state.checks.is_empty() {
            checks.push(Check::new("partitions", false, || "the group is not joined yet".to_owned()));
        }
        checks.extend(state.checks.iter().cloned());
        Readiness { ready: checks.iter().all(|check| check.ok), checks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_if_everything_holds() {
        let health = Health::default();
        assert!(!health.readiness().ready);
        health.model_is_warm();
        health.turned();
        assert!(!health.readiness().ready, "nothing is known of the group");
        health.report(vec![Check::new("connected", true, String::new)]);
        assert!(health.readiness().ready);
        health.report(vec![Check::new("connected", false, || "no broker".to_owned())]);
        let readiness = health.readiness();
        assert!(!readiness.ready);
        assert!(serde_json::to_string(&readiness).expect("JSON").contains("\"detail\":\"no broker\""));
    }

    #[test]
    fn a_loop_that_hangs_is_neither_live_nor_ready() {
        let health = Health::default();
        assert!(health.hangs().is_none(), "it has not begun");
        health.state().turned = Some(Instant::now() - HANGS_AFTER);
        assert!(health.hangs().is_some());
        assert!(!health.readiness().ready);
        health.ended();
        assert!(health.hangs().is_none(), "there is none that could hang");
    }
}

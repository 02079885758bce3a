//! The workers, and a supervisor that starts again what has ended.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::Protocol;
use crate::{
    PATIENCE,
    admin::Metrics,
    broker::Topics,
    models,
    program::{Run, Running},
};

/// As supervisors do, not at once.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// After something that may end a worker, it may take until a broker is back and a transaction is given up to find out.
const EXCUSED_FOR: Duration = Duration::from_secs(60);

/// One instance, and the process that is it at the moment.
struct Member {
    name: String,
    process: Option<Process>,
    starts: usize,
    restart_at: Option<Instant>,
}

struct Process {
    running: Running,
    name: String,
    frozen: bool,
    /// When it first said that it is ready.
    ready: Option<Instant>,
    /// How many records it had committed when it was expected to go on; None: to be asked.
    before: Option<f64>,
    progress: bool,
}

pub struct Crew<'t> {
    topics: &'t Topics,
    protocol: Protocol,
    logs: PathBuf,
    members: Vec<Member>,
    excused_until: Option<Instant>,
    /// Between a restarted process' readiness and its first commit.
    pub from_ready: Vec<Duration>,
    /// Processes that ended by themselves, with their last words.
    pub restarts: Vec<String>,
    pub faults: Vec<String>,
}

impl<'t> Crew<'t> {
    /// Nobody runs yet. What processes say goes to files in `logs`.
    pub fn new(topics: &'t Topics, protocol: Protocol, size: usize, logs: PathBuf) -> Self {
        fs::create_dir_all(&logs).expect("a folder for logs");
        let member = |n| Member { name: format!("worker-{}", n + 1), process: None, starts: 0, restart_at: None };
        Self {
            topics,
            protocol,
            logs,
            members: (0..size).map(member).collect(),
            excused_until: None,
            from_ready: Vec::new(),
            restarts: Vec::new(),
            faults: Vec::new(),
        }
    }

    pub fn start(&mut self, member: usize) {
        let process = self.spawn(member);
        self.members[member].process = Some(process);
    }

    fn spawn(&mut self, member: usize) -> Process {
        let member = &mut self.members[member];
        member.restart_at = None;
        member.starts += 1;
        let running = Run::new(self.topics)
            // Some work is always begun; a track of 15 s takes longer than a commit interval.
            .model(&models::slow(Duration::from_millis(10)))
            .set("kafka.instance_id", &member.name)
            .set("kafka.group_protocol", self.protocol)
            // One worker cannot bring the order into disorder.
            .set("runtime.workers", 2)
            .start();
        let name = format!("{}-{:03}", member.name, member.starts);
        Process { running, name, frozen: false, ready: None, before: Some(0.0), progress: false }
    }

    pub fn signal(&mut self, member: usize, signal: Signal) {
        if let Some(process) = &mut self.members[member].process {
            process.frozen = signal == Signal::SIGSTOP;
            process.running.signal(signal);
        }
    }

    /// From now on a process must show that it still commits something.
    pub fn expect_progress(&mut self, member: usize) {
        if let Some(process) = &mut self.members[member].process {
            (process.before, process.progress) = (None, false);
        }
    }

    /// As a power cut would.
    pub fn kill(&mut self, member: usize) {
        self.members[member].restart_at = None;
        if let Some(mut process) = self.members[member].process.take() {
            process.running.signal(Signal::SIGKILL);
            process.running.wait_within(PATIENCE);
            self.read_log(&process);
        }
    }

    /// As an operator would.
    pub fn stop(&mut self, member: usize) {
        self.members[member].restart_at = None;
        if let Some(mut process) = self.members[member].process.take() {
            process.running.signal(Signal::SIGTERM);
            let deadline = Instant::now() + PATIENCE;
            let status = loop {
                match process.running.ended() {
                    None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                    ended => break ended,
                }
            };
            match status {
                Some(status) if status.code() == Some(0) => {}
                // Not yet up, it has no handler for signals.
                Some(_) if process.ready.is_none() => {}
                Some(status) if status.code() == Some(1) && self.is_excused() => {
                    self.restarts.push(format!("{} at SIGTERM: {}", process.name, last_line(&process)));
                }
                Some(status) => self.fault(&process, &format!("ended with {status} at SIGTERM")),
                None => self.fault(&process, "hangs at SIGTERM"),
            }
            self.read_log(&process);
        }
    }

    /// Starts the frozen member elsewhere. The frozen process is no longer a member, and given back.
    pub fn replace(&mut self, member: usize) -> Option<Zombie> {
        let process = self.spawn(member);
        self.members[member].process.replace(process).map(Zombie)
    }

    /// Lets a replaced process go on, which must end.
    pub fn wake(&mut self, zombie: Zombie) {
        let Zombie(mut process) = zombie;
        process.running.signal(Signal::SIGCONT);
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.supervise();
            match process.running.ended().map(|status| status.code()) {
                // Fenced.
                Some(Some(0 | 3)) => break,
                Some(code) => break self.fault(&process, &format!("was replaced and ended with {code:?}")),
                None if Instant::now() > deadline => break self.fault(&process, "was replaced and does not end"),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        self.read_log(&process);
    }

    /// From now on workers may have a reason to end by themselves.
    pub fn excuse(&mut self) {
        self.excused_until = Some(Instant::now() + EXCUSED_FOR);
    }

    fn is_excused(&self) -> bool {
        self.excused_until.is_some_and(|until| Instant::now() < until)
    }

    /// Starts processes again that ended by themselves, and asks the others how they are.
    pub fn supervise(&mut self) {
        for member in 0..self.members.len() {
            if self.members[member].restart_at.is_some_and(|at| Instant::now() >= at) {
                self.start(member);
            }
            let Some(process) = &mut self.members[member].process else { continue };
            let Some(status) = process.running.ended() else {
                self.from_ready.extend(process.look());
                continue;
            };
            let Some(process) = self.members[member].process.take() else { continue };
            if status.code() == Some(1) && self.is_excused() {
                self.restarts.push(format!("{}: {}", process.name, last_line(&process)));
            } else {
                self.fault(&process, &format!("ended by itself with {status}"));
            }
            self.read_log(&process);
            self.members[member].restart_at = Some(Instant::now() + RESTART_AFTER);
        }
    }

    /// True once every process that runs has committed what it was expected to.
    pub fn all_make_progress(&self) -> bool {
        let processes = self.members.iter().filter_map(|member| member.process.as_ref());
        let nobody_is_away = self.members.iter().all(|member| member.restart_at.is_none());
        nobody_is_away && processes.into_iter().all(|process| process.frozen || process.progress)
    }

    /// Who has not.
    pub fn without_progress(&self) -> Vec<&str> {
        let processes = self.members.iter().filter_map(|member| member.process.as_ref());
        processes.filter(|process| !process.progress).map(|process| process.name.as_str()).collect()
    }

    pub fn stop_all(&mut self) {
        (0..self.members.len()).for_each(|member| self.stop(member));
    }

    fn fault(&mut self, process: &Process, what: &str) {
        self.faults.push(format!("{} {what}: {}", process.name, last_line(process)));
    }

    fn read_log(&mut self, process: &Process) {
        let log = process.running.log();
        fs::write(self.logs.join(format!("{}.log", process.name)), &log).expect("the log can be kept");
        if log.contains("panicked") {
            self.fault(process, "panicked");
        }
    }
}

/// A process whose instance runs elsewhere now.
pub struct Zombie(Process);

impl Process {
    /// Asks it how it is. The time between its readiness and its first commit, once.
    fn look(&mut self) -> Option<Duration> {
        if self.frozen || self.progress {
            return None;
        }
        if self.ready.is_none() && self.running.get("/health/ready").is_some_and(|(status, _)| status == 200) {
            self.ready = Some(Instant::now());
        }
        let (_, text) = self.running.get("/metrics")?;
        let committed = Metrics::parse(&text).sum("tonearm_records_total");
        let before = *self.before.get_or_insert(committed);
        self.progress = committed > before;
        // Later ones are of a process that was ready long before.
        (self.progress && before == 0.0).then(|| self.ready.get_or_insert_with(Instant::now).elapsed())
    }
}

fn last_line(process: &Process) -> String {
    process.running.log().lines().last().unwrap_or("it said nothing").to_owned()
}

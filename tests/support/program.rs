//! The real program, as a child process.
#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    os::unix::{fs::FileExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    admin::{self, Metrics},
    broker::{Topics, brokers},
    chance,
    models::Model,
};
use crate::{PATIENCE, wait, wait_within};

/// `target/release/tonearm`, beside this program or the folder that test programs are in.
///
/// # Panics
/// It is not there, or is older than a file it is made from.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let test = std::env::current_exe().expect("this program has a path");
        let folders = || test.ancestors().skip(1).take(2).map(|folder| folder.join("tonearm"));
        let path = folders().find(|path| path.is_file()).unwrap_or_else(|| {
            panic!("tonearm is in neither of {:?}: `make build` makes it", folders().collect::<Vec<_>>())
        });
        if let Some(newer) = newer_source(&path) {
            panic!("{} is older than {}: `make build` makes it anew", path.display(), newer.display());
        }
        path
    })
}

/// A file that `program` is made from and that has changed since. Cargo lists them beside the program; its own
/// Cargo.toml and Cargo.lock are not among them, since they change for other programs as well.
fn newer_source(program: &Path) -> Option<PathBuf> {
    let list = program.with_extension("d");
    let text = fs::read_to_string(&list).unwrap_or_else(|e| panic!("{}: {e}: run `make build`", list.display()));
    let (_, sources) = text.trim_end().split_once(": ").unwrap_or_else(|| panic!("{} is no list", list.display()));
    // A space within a path is escaped.
    let sources = sources.replace("\\ ", "\0");
    let sources = sources.split(' ').map(|source| PathBuf::from(source.replace('\0', " ")));
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let built = changed(program).expect("the program is there");
    // One that is gone is a change, too.
    sources.into_iter().find(|source| !changed(source).is_ok_and(|at| at <= built))
}

/// The program with `arguments`, in the checkout's root, with none of the caller's own settings.
pub fn command<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(path());
    command.current_dir(crate::root()).args(arguments).stdin(Stdio::null());
    let own = std::env::vars_os().map(|(name, _)| name);
    own.filter(|name| name.to_string_lossy().starts_with("TONEARM_")).for_each(|name| _ = command.env_remove(name));
    // SAFETY: both are system calls, which is all that may be called between fork and exec. The program ends with the
    // test, however that ends, and hears SIGHUP though the test may run under nohup.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command
}

/// What a command that has ended said.
#[derive(Debug)]
pub struct Answer {
    /// None where a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end.
pub fn answer(mut command: Command) -> Answer {
    let output = command.output().expect("the program can be started");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
    Answer { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// The arguments of `tonearm run` and its settings.
pub struct Run {
    command: Command,
    port: u16,
}

impl Run {
    /// As an instance of its own, with an admin port.
    pub fn new(topics: &Topics) -> Self {
        let port = admin::free_port();
        let mut command = command(["run"]);
        command
            .env("TONEARM__KAFKA__BROKERS", brokers())
            .env("TONEARM__KAFKA__INSTANCE_ID", chance::name("instance"))
            .env("TONEARM__ADMIN__LISTEN", format!("127.0.0.1:{port}"))
            .envs(topics.options())
            .stdout(Stdio::null());
        Self { command, port }
    }

    /// One option, `runtime.workers`.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        let name = format!("TONEARM__{}", key.to_uppercase().replace('.', "__"));
        self.command.env(name, value.to_string());
        self
    }

    /// Another model than the program's own.
    pub fn model(self, model: &Model) -> Self {
        self.set("models.dir", model.repository.display()).set("model.name", &model.name)
    }

    /// A file of options.
    pub fn config(mut self, path: &Path) -> Self {
        self.command.env("TONEARM_CONFIG", path);
        self
    }

    pub fn start(mut self) -> Running {
        let log = tempfile::tempfile().expect("a file for the log");
        self.command.stderr(log.try_clone().expect("a second handle of the log"));
        let child = self.command.spawn().expect("the program can be started");
        Running { child, log, port: self.port }
    }

    /// Starts it and waits until it says that it is ready.
    pub fn ready(self) -> Running {
        let running = self.start();
        running.wait_until_ready();
        running
    }
}

/// `tonearm run`, which ends with this value.
pub struct Running {
    child: Child,
    log: File,
    pub port: u16,
}

impl Running {
    #[track_caller]
    pub fn wait_until_ready(&self) {
        wait("ready", || self.get("/health/ready").filter(|(status, _)| *status == 200));
    }

    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        admin::get(self.port, path)
    }

    pub fn metrics(&self) -> Metrics {
        let (_, text) = self.get("/metrics").expect("the admin port answers");
        Metrics::parse(&text)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A figure of `/proc/PID/status`, in bytes: `VmRSS`, `VmHWM`.
    pub fn memory(&self, figure: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the program runs");
        let line = status.lines().find(|line| line.starts_with(figure)).expect("the kernel names the figure");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of kB") * 1024
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        // Read at a position: the child writes at the one that both share.
        let mut bytes = vec![0; self.log.metadata().expect("the log has a length").len() as usize];
        self.log.read_exact_at(&mut bytes, 0).expect("the log can be read");
        String::from_utf8(bytes).expect("the log is text")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // It may have ended already, which `wait` tells.
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child can be waited for")
    }

    #[track_caller]
    pub fn wait_within(&mut self, patience: Duration) -> ExitStatus {
        wait_within(patience, "the end of the program", || self.ended())
    }

    /// As a power cut would.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_within(PATIENCE);
    }

    /// As an operator would. It must say that all is well.
    #[track_caller]
    pub fn stop(mut self) -> String {
        self.signal(Signal::SIGTERM);
        let status = self.wait_within(PATIENCE);
        assert_eq!(status.code(), Some(0), "it ended with {status}");
        self.log()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of tonearm ---\n{}---", self.log());
        }
    }
}

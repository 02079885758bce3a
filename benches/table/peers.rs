//! The peers: Python programs that do a stage or the whole when asked to by a line of JSON, and ffmpeg's own program.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};
use serde_json::{Value, json};
use tonearm_benches::clock::Time;
use tonearm_tests::root;

use crate::claim::median;

/// The Python of the peers' throw-away environment.
pub struct Python(PathBuf);

impl Python {
    pub fn set_up() -> Self {
        let script = root().join("benches/peers/setup");
        let output = Command::new(script).stderr(Stdio::inherit()).output().expect("benches/peers/setup can be run");
        assert!(output.status.success(), "the peers cannot be set up");
        let text = String::from_utf8_lossy(&output.stdout);
        Self(PathBuf::from(text.lines().last().expect("the path of a Python")))
    }

    /// A program of `benches/peers/`.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Peer {
        let mut child = Command::new(&self.0)
            .arg("-B")
            .arg(root().join("benches/peers").join(program))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Warnings; what ends a peer is seen by its missing answer.
            .stderr(if std::env::var_os("TONEARM_BENCH_DEBUG").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .expect("Python can be started");
        let requests = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Peer { name: format!("{program} {}", arguments.join(" ")), child, requests, answers }
    }
}

/// A running peer, which ends with this value.
pub struct Peer {
    name: String,
    child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    pub fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.requests, "{request}").unwrap_or_else(|e| panic!("{}: {e}", self.name));
        match self.answers.next() {
            Some(Ok(answer)) => {
                serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{}: {answer}: {e}", self.name))
            }
            _ => panic!("{} gave no answer to {request}; TONEARM_BENCH_DEBUG=1 shows what it said", self.name),
        }
    }

    /// Does a stage `repeat` times.
    pub fn stage(&mut self, stage: &str, what: &Value, repeat: usize) -> Time {
        let answer = self.ask(&json!({ "stage": stage, "what": what, "repeat": repeat }));
        serde_json::from_value(answer).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// ffmpeg's program, which decodes on one thread to PCM that is thrown away, without the time it takes to start and
/// open the file.
pub struct Ffmpeg {
    file: PathBuf,
    /// PCM as the decoder gives it, so that nothing but planes are interleaved.
    pcm: &'static str,
    start: Time,
}

impl Ffmpeg {
    pub fn version() -> String {
        let output = Command::new("ffmpeg").arg("-version").output().expect("ffmpeg can be started");
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().nth(2).unwrap_or("?").split('-').next().unwrap_or("?");
        format!("ffmpeg {version}")
    }

    pub fn new(file: &Path, pcm: &'static str) -> Self {
        let mut ffmpeg = Self { file: file.to_owned(), pcm, start: Time::default() };
        let starts: Vec<Time> = (0..5).map(|_| ffmpeg.run(&["-t", "0"])).collect();
        let middle = |of: fn(&Time) -> f64| median(&starts.iter().map(of).collect::<Vec<_>>());
        ffmpeg.start = Time { cpu_s: middle(|time| time.cpu_s), wall_s: middle(|time| time.wall_s) };
        ffmpeg
    }

    pub fn decode(&self, repeat: usize) -> Time {
        (0..repeat).map(|_| self.run(&[])).fold(Time::default(), |sum, time| Time {
            cpu_s: sum.cpu_s + time.cpu_s - self.start.cpu_s,
            wall_s: sum.wall_s + time.wall_s - self.start.wall_s,
        })
    }

    fn run(&self, more: &[&str]) -> Time {
        let (cpu, wall) = (children(), Instant::now());
        let status = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-threads", "1", "-filter_threads", "1", "-i"])
            .arg(&self.file)
            .args(more)
            .args(["-map", "0:a:0", "-c:a", self.pcm, "-f", "null", "-"])
            .status()
            .expect("ffmpeg can be started");
        assert!(status.success(), "ffmpeg cannot decode {}", self.file.display());
        Time { cpu_s: children() - cpu, wall_s: wall.elapsed().as_secs_f64() }
    }
}

/// CPU time of all children that have ended, in seconds.
fn children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("Linux has these figures");
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

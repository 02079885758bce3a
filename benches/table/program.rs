//! `tonearm run` as it is measured from outside: by its results, by `/health/ready`, by `/proc`.

use std::{
    thread,
    time::{Duration, Instant},
};

use tonearm_tests::{
    PATIENCE,
    broker::{Topics, broker_process},
    program::{Run, Running},
    records::{Input, Reader, publish},
};

/// Of all topics: enough for a few processes.
pub const PARTITIONS: i32 = 4;
/// A file of 3 hours takes a while.
const RESULT_PATIENCE: Duration = Duration::from_secs(600);
/// Linux' USER_HZ, the unit of times in /proc.
const TICKS_PER_S: f64 = 100.0;

/// A backlog, published once and read by many groups.
pub struct Backlog {
    topic: String,
    pub records: usize,
    pub audio_s: f64,
}

impl Backlog {
    pub fn publish(values: impl IntoIterator<Item = Vec<u8>>, audio_s: f64) -> Self {
        let topic = Topics::new(PARTITIONS).audio;
        let mut records = 0;
        for value in values {
            // Rows of a table of `PARTITIONS` columns, each turned by one: codecs that take turns meet all partitions.
            let partition = (records + records / PARTITIONS as usize) as i32 % PARTITIONS;
            publish(&topic, &[Input::new(partition, &format!("track-{records}"), value)]);
            records += 1;
        }
        Self { topic, records, audio_s }
    }

    /// Topics for the results of one more group that reads it from its start.
    pub fn group(&self) -> Topics {
        Topics { audio: self.topic.clone(), ..Topics::new(PARTITIONS) }
    }
}

/// What a process did with a backlog.
pub struct Done {
    /// From ready to the last result that a read_committed reader sees.
    pub wall_s: f64,
    /// CPU time of the process meanwhile.
    pub cpu_s: f64,
    /// And of the broker.
    pub broker_cpu_s: f64,
    /// Most memory it ever had, code and libraries included.
    pub peak_mib: f64,
}

/// A process at work on a backlog.
pub struct AtWork<'a> {
    backlog: &'a Backlog,
    reader: Reader,
    running: Running,
    ready: Instant,
    cpu_s: f64,
    broker_cpu_s: f64,
}

impl<'a> AtWork<'a> {
    pub fn start(backlog: &'a Backlog, settings: &[(&str, &str)]) -> Self {
        let topics = backlog.group();
        let reader = Reader::new(&[&topics.predictions]);
        let (running, ready) = ready(settings.iter().fold(Run::new(&topics), |run, (key, value)| run.set(key, value)));
        let (cpu_s, broker_cpu_s) = (cpu_s(running.id()), cpu_s(broker_process()));
        Self { backlog, reader, running, ready, cpu_s, broker_cpu_s }
    }

    pub fn finish(self) -> Done {
        for nth in 0..self.backlog.records {
            if self.reader.next(RESULT_PATIENCE).is_none() {
                panic!("{nth} of {} results came\n{}", self.backlog.records, self.running.log());
            }
        }
        let wall_s = self.ready.elapsed().as_secs_f64();
        let broker_cpu_s = cpu_s(broker_process()) - self.broker_cpu_s;
        let cpu_s = cpu_s(self.running.id()) - self.cpu_s;
        let peak_mib = self.running.memory("VmHWM") as f64 / f64::from(1 << 20);
        self.running.stop();
        Done { wall_s, cpu_s, broker_cpu_s, peak_mib }
    }
}

/// Starts the program. When it said that it is ready.
pub fn ready(run: Run) -> (Running, Instant) {
    let running = run.start();
    let deadline = Instant::now() + PATIENCE;
    while running.get("/health/ready").is_none_or(|(status, _)| status != 200) {
        assert!(Instant::now() < deadline, "tonearm is not ready: {}", running.log());
        thread::sleep(Duration::from_millis(2));
    }
    (running, Instant::now())
}

/// CPU time of a process so far, its threads that have ended included.
fn cpu_s(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
    // Behind the name, which may hold anything: state is field 3, utime and stime are 14 and 15 (proc(5)).
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(14 - 3).take(2);
    fields.map(|ticks| ticks.parse::<f64>().expect("a number of ticks")).sum::<f64>() / TICKS_PER_S
}

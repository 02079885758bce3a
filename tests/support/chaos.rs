//! Everything goes wrong that can: workers and brokers are killed, frozen, stopped and joined while records keep
//! coming, and in the end every record must have its one result.

mod crew;
mod feed;
mod plan;
mod report;
mod watch;

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;

pub use self::report::Report;
use self::{
    crew::Crew,
    feed::Feed,
    plan::{Disturbance, GUEST, MEMBERS, Step, plan},
    report::seconds,
    watch::Watch,
};
use crate::{
    PATIENCE,
    broker::{Cluster, Kind, Topics, Version},
    poison,
    records::{committed, now_ms, read_all, read_uncommitted},
    verifier::{History, ahead, verify},
};

pub const PARTITIONS: i32 = 4;
/// More of the same says nothing new: a worker that cannot start would fill the report.
const FAULTS: usize = 10;

#[derive(Clone, Copy, Debug, Args)]
pub struct Options {
    /// The same seed brings the same disturbances.
    #[arg(long, env = "SEED", default_value_t = crate::chance::seed(), hide_default_value = true)]
    pub seed: u64,
    #[arg(long, env = "DISTURBANCES", default_value_t = 200)]
    pub disturbances: usize,
    /// 1 or 3; topics are on each of them, and two of three must have every record.
    #[arg(long, env = "BROKERS", default_value_t = 3)]
    pub brokers: u32,
    #[arg(long, env = "KAFKA", value_enum, default_value_t = Version::chosen())]
    pub kafka: Version,
    /// By default the newest that the brokers know.
    #[arg(long, env = "PROTOCOL", value_enum)]
    pub protocol: Option<Protocol>,
    /// Of a hundred records so many are odd: header names that are no text, no keys, large ones, times far away. Where
    /// there are some, the topics of results have limits that such results break.
    #[arg(long, env = "POISON", default_value_t = 5)]
    pub poison: u64,
    /// Leaves brokers alone: to see whose fault something is.
    #[arg(long)]
    pub spare_brokers: bool,
}

impl Options {
    pub fn protocol(&self) -> Protocol {
        self.protocol.unwrap_or(match self.kafka {
            Version::V4_3 => Protocol::Consumer,
            Version::V3_9 => Protocol::Classic,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Consumer,
    Classic,
}

impl Protocol {
    /// After this long without a sign of life a member's partitions go to others.
    fn session_timeout(self) -> Duration {
        match self {
            // The least our brokers allow; set for the group.
            Self::Consumer => Duration::from_secs(3),
            // What Tonearm asks for.
            Self::Classic => Duration::from_secs(6),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consumer => "consumer",
            Self::Classic => "classic",
        })
    }
}

/// The folder where a run leaves its report and what its workers said.
pub fn folder(seed: u64) -> PathBuf {
    crate::root().join(format!("target/chaos/{seed}"))
}

/// Lets everything go wrong, and tells what came of it. Uses brokers of its own.
pub fn run(options: Options) -> Report {
    let began = Instant::now();
    let cluster = Cluster::own(Kind { version: options.kafka, brokers: options.brokers, ..Kind::default() });
    let topics = Topics::new(PARTITIONS);
    topics.session_timeout(Protocol::Consumer.session_timeout());
    if options.poison > 0 {
        // Every other seed has compacted rejects, and two of four have compacted predictions.
        let compacted = [(&topics.rejected, 1), (&topics.predictions, 2)];
        let compacted = compacted.iter().filter(|(_, bit)| options.seed & bit == *bit).map(|(topic, _)| topic.as_str());
        poison::limit(&topics, &compacted.collect::<Vec<_>>());
    }
    let crew = Crew::new(&topics, options.protocol(), MEMBERS + 1, folder(options.seed));
    let watch = Watch::start(&topics);
    let feed = Feed::start(&topics.audio, options);
    let report = Report {
        options,
        took: Duration::ZERO,
        verdict: Default::default(),
        counts: Default::default(),
        gaps: Default::default(),
        gaps_of_several: Vec::new(),
        from_ready: Vec::new(),
        restarts: Vec::new(),
        faults: Vec::new(),
    };
    let mut chaos = Chaos { options, cluster, crew, watch, report };
    chaos.disturb();
    let Chaos { mut crew, watch, mut report, .. } = chaos;

    let published = feed.stop();
    let mut last = (0, Instant::now());
    while last.0 < published && last.1.elapsed() < PATIENCE && crew.faults.len() < FAULTS {
        crew.supervise();
        std::thread::sleep(Duration::from_millis(50));
        let came = watch.arrivals().len();
        if came > last.0 {
            last = (came, Instant::now());
        }
    }
    crew.stop_all();
    let samples = watch.stop();
    let history = History {
        published: read_all(&topics.audio),
        predictions: read_all(&topics.predictions),
        rejected: read_all(&topics.rejected),
        positions: committed(&topics.group, &topics.audio, PARTITIONS),
    };
    report.verdict = verify(&history);
    let mut written = read_uncommitted(&topics.predictions);
    written.extend(read_uncommitted(&topics.rejected));
    report.verdict.faults.extend(ahead(&samples, &written));
    if history.published.len() != published {
        report.faults.push(format!("{published} records were published, {} are there", history.published.len()));
    }
    report.from_ready = crew.from_ready;
    report.restarts = crew.restarts;
    report.faults.extend(crew.faults);
    report.took = began.elapsed();
    std::fs::write(folder(options.seed).join("report.txt"), report.to_string()).expect("the report can be kept");
    report
}

struct Chaos<'t> {
    options: Options,
    cluster: &'static Cluster,
    crew: Crew<'t>,
    watch: Watch,
    report: Report,
}

/// Disturbances up to one after which all is well again.
struct Round {
    from: Instant,
    disturbances: Vec<Disturbance>,
}

impl Chaos<'_> {
    fn disturb(&mut self) {
        let Options { seed, disturbances, brokers, spare_brokers, .. } = self.options;
        let steps = plan(seed, disturbances, if spare_brokers { 0 } else { brokers as usize });
        (0..MEMBERS).for_each(|member| self.crew.start(member));
        if !self.settle("the start") {
            return;
        }
        let began = Instant::now();
        let mut round: Option<Round> = None;
        for (nth, step) in steps.iter().enumerate() {
            self.wait(Duration::from_millis(step.pause_ms));
            let from = Instant::now();
            *self.report.counts.entry(step.disturbance).or_default() += 1;
            let round_now = round.get_or_insert(Round { from, disturbances: Vec::new() });
            round_now.disturbances.push(step.disturbance);
            let went_on = self.strike(step) && (!step.settles || self.settle(&step.disturbance.to_string()));
            let gap = match (step.settles, round.take()) {
                (true, Some(round)) => seconds(self.close(&round).partition),
                (_, open) => {
                    round = open;
                    String::new()
                }
            };
            println!(
                "{:>4}/{disturbances} {:>9} {:<20} {} {} {gap:>8}",
                nth + 1,
                seconds(began.elapsed()),
                step.disturbance.to_string(),
                if step.disturbance == Disturbance::KillBroker { "broker" } else { "worker" },
                step.victim + usize::from(step.disturbance != Disturbance::KillBroker),
            );
            if !went_on {
                return;
            }
        }
    }

    /// False where nothing goes on.
    fn strike(&mut self, step: &Step) -> bool {
        let Self { crew, cluster, .. } = self;
        let away = Duration::from_millis(step.away_ms);
        let victim = step.victim;
        match step.disturbance {
            Disturbance::Kill => {
                crew.kill(victim);
                self.wait(away);
                self.crew.start(victim);
            }
            Disturbance::KillForLong => {
                crew.kill(victim);
                if !self.settle("kill -9, before the restart") {
                    return false;
                }
                self.crew.start(victim);
            }
            Disturbance::Stop => {
                crew.stop(victim);
                self.wait(away);
                self.crew.start(victim);
            }
            Disturbance::Freeze => {
                crew.excuse();
                crew.signal(victim, Signal::SIGSTOP);
                self.wait(self.options.protocol().session_timeout() + away);
                self.crew.signal(victim, Signal::SIGCONT);
                self.crew.expect_progress(victim);
            }
            Disturbance::Replace => {
                crew.excuse();
                crew.signal(victim, Signal::SIGSTOP);
                let zombie = crew.replace(victim);
                if !self.settle("SIGSTOP, before SIGCONT") {
                    return false;
                }
                zombie.into_iter().for_each(|zombie| self.crew.wake(zombie));
            }
            Disturbance::Join => crew.start(GUEST),
            Disturbance::Leave => crew.stop(GUEST),
            Disturbance::KillBroker => {
                let broker = victim as u32;
                crew.excuse();
                cluster.kill(broker);
                self.wait(away);
                self.cluster.restart(broker);
                let deadline = Instant::now() + PATIENCE;
                while !self.cluster.is_whole() {
                    if Instant::now() > deadline {
                        self.report.faults.push(format!("broker {broker} does not catch up"));
                        return false;
                    }
                    self.wait(Duration::from_millis(200));
                }
                self.crew.excuse();
                (0..=GUEST).for_each(|member| self.crew.expect_progress(member));
            }
        }
        true
    }

    fn wait(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.crew.supervise();
            std::thread::sleep(Duration::from_millis(20).min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// Waits until records that are published from now on have results in every partition, and every process has a
    /// share in them. False where that does not come.
    fn settle(&mut self, after: &str) -> bool {
        let now_ms = now_ms();
        let deadline = Instant::now() + PATIENCE;
        let mut waiting: Vec<i32> = (0..PARTITIONS).collect();
        let mut looked_at = self.watch.arrivals().len();
        while !waiting.is_empty() || !self.crew.all_make_progress() {
            if self.crew.faults.len() >= FAULTS {
                return false;
            }
            if Instant::now() > deadline {
                let members = self.crew.without_progress();
                let fault = format!(
                    "no progress for {} s after {after}: partitions {waiting:?}, processes {members:?}",
                    PATIENCE.as_secs()
                );
                self.report.faults.push(fault);
                return false;
            }
            self.wait(Duration::from_millis(20));
            let arrivals = self.watch.arrivals();
            for arrival in &arrivals[looked_at..] {
                // Some records are poisoned with a time to come.
                if (now_ms..now_ms + PATIENCE.as_millis() as i64).contains(&arrival.published_ms) {
                    waiting.retain(|partition| *partition != arrival.source.0);
                }
            }
            looked_at = arrivals.len();
        }
        true
    }

    fn close(&mut self, round: &Round) -> report::Gap {
        let gap = report::gap(&self.watch.arrivals(), PARTITIONS, round.from, Instant::now());
        match round.disturbances[..] {
            [disturbance] => self.report.gaps.entry(disturbance).or_default().push(gap),
            _ => self.report.gaps_of_several.push(gap),
        }
        gap
    }
}

//! What came of a chaos run.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{Options, plan::Disturbance, watch::Arrival};
use crate::verifier::{Source, Verdict};

/// A restarted worker makes progress this soon after it says that it is ready.
pub const PROGRESS_AFTER_READY: Duration = Duration::from_secs(3);
/// Another worker takes over this soon after the session timeout of one that was killed.
pub const TAKEOVER_AFTER_SESSION: Duration = Duration::from_secs(3);

/// How long readers saw nothing new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// Of the partition that waited longest.
    pub partition: Duration,
    /// Of all partitions together.
    pub all: Duration,
}

/// The longest times without a result between `from` and `until`; a time that began before counts from where it began.
pub fn gap(arrivals: &[Arrival], partitions: i32, from: std::time::Instant, until: std::time::Instant) -> Gap {
    let longest = |wanted: &dyn Fn(Source) -> bool| {
        let (mut last, mut longest) = (None, Duration::ZERO);
        for arrival in arrivals.iter().filter(|arrival| wanted(arrival.source) && arrival.at <= until) {
            if arrival.at >= from {
                longest = longest.max(arrival.at - last.unwrap_or(from));
            }
            last = Some(arrival.at);
        }
        longest.max(until.saturating_duration_since(last.unwrap_or(from).max(from)))
    };
    let of = |partition| longest(&move |source: Source| source.0 == partition);
    Gap { partition: (0..partitions).map(of).max().unwrap_or_default(), all: longest(&|_| true) }
}

pub struct Report {
    pub options: Options,
    pub took: Duration,
    pub verdict: Verdict,
    /// How often each disturbance came.
    pub counts: BTreeMap<Disturbance, usize>,
    /// For those that came alone, by disturbance.
    pub gaps: BTreeMap<Disturbance, Vec<Gap>>,
    /// For those that came in quick succession.
    pub gaps_of_several: Vec<Gap>,
    /// Between a process' readiness and its first commit.
    pub from_ready: Vec<Duration>,
    /// Processes that ended by themselves with exit code 1, and were started again.
    pub restarts: Vec<String>,
    /// What else should not have been.
    pub faults: Vec<String>,
}

impl Report {
    /// True where every promise was kept.
    pub fn passed(&self) -> bool {
        self.is_exact() && self.late().is_empty()
    }

    /// True where every promise was kept but for those of time, which need a machine of their own.
    pub fn is_exact(&self) -> bool {
        self.verdict.faults.is_empty() && self.faults.is_empty()
    }

    /// The promises of time that were not measured, or that half of the cases or more did not keep: single ones may be
    /// the machine's fault.
    fn late(&self) -> Vec<String> {
        let mut late = Vec::new();
        for (what, times, bound) in self.promises() {
            if times.is_empty() {
                late.push(format!("{what}: never measured"));
            } else if median(&times) > bound {
                late.push(format!("{what}: {} is over {}", seconds(median(&times)), seconds(bound)));
            }
        }
        late
    }

    fn promises(&self) -> [(&'static str, Vec<Duration>, Duration); 2] {
        let takeovers = self.gaps.get(&Disturbance::KillForLong).into_iter().flatten();
        let takeovers: Vec<Duration> = takeovers.map(|gap| gap.partition).collect();
        let bound = self.options.protocol().session_timeout() + TAKEOVER_AFTER_SESSION;
        [
            ("from ready to the first commit", self.from_ready.clone(), PROGRESS_AFTER_READY),
            ("from kill -9 to the takeover", takeovers, bound),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { seed, brokers, kafka, poison, .. } = self.options;
        let result = if self.passed() { "passed" } else { "FAILED" };
        let disturbances: usize = self.counts.values().sum();
        let brokers = if brokers == 1 { "1 broker".to_owned() } else { format!("{brokers} brokers") };
        let (protocol, took) = (self.options.protocol(), self.took.as_secs());
        writeln!(
            f,
            "chaos {result}: seed {seed}, {brokers} of Kafka {kafka}, group protocol {protocol}, \
             {poison} % poison, {disturbances} disturbances in {took} s"
        )?;
        writeln!(f, "{}", self.verdict)?;
        writeln!(f)?;
        writeln!(f, "{:<24}{:>6}   time without progress: of the worst partition | of all", "disturbance", "times")?;
        writeln!(f, "{:<24}{:>6}   {:>26} {:>8} | {:>8} {:>8}", "", "", "median", "worst", "median", "worst")?;
        for (disturbance, times) in &self.counts {
            let gaps = self.gaps.get(disturbance).map(Vec::as_slice).unwrap_or_default();
            writeln!(f, "{:<24}{times:>6}   {}", disturbance.to_string(), Columns(gaps))?;
        }
        let kills = [Disturbance::Kill, Disturbance::KillForLong].map(|kind| self.gaps.get(&kind));
        let kills: Vec<Gap> = kills.into_iter().flatten().flatten().copied().collect();
        writeln!(f, "{:<24}{:>6}   {}", "after any kill -9", kills.len(), Columns(&kills))?;
        let several = &self.gaps_of_several;
        writeln!(f, "{:<24}{:>6}   {}", "in quick succession", several.len(), Columns(several))?;
        writeln!(f)?;
        for (what, times, bound) in self.promises().into_iter().filter(|(_, times, _)| !times.is_empty()) {
            let kept = times.iter().filter(|time| **time <= bound).count();
            let (median, worst) = (seconds(median(&times)), seconds(worst(&times)));
            let bound = seconds(bound);
            writeln!(f, "{what}: median {median}, worst {worst}, within {bound}: {kept} of {}", times.len())?;
        }
        writeln!(f, "workers that ended by themselves and were started again: {}", self.restarts.len())?;
        self.restarts.iter().try_for_each(|restart| writeln!(f, "  {restart}"))?;
        let faults = self.faults.iter().chain(&self.late()).cloned().collect::<Vec<_>>();
        writeln!(f, "other faults: {}", faults.len())?;
        faults.iter().try_for_each(|fault| writeln!(f, "  {fault}"))
    }
}

/// Median and worst of each kind of gap.
struct Columns<'a>(&'a [Gap]);

impl fmt::Display for Columns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "{:>26} {:>8} | {:>8} {:>8}", "–", "–", "–", "–");
        }
        let of = |of: fn(&Gap) -> Duration| self.0.iter().map(of).collect::<Vec<_>>();
        let (partition, all) = (of(|gap| gap.partition), of(|gap| gap.all));
        let [a, b] = [median(&partition), worst(&partition)].map(seconds);
        let [c, d] = [median(&all), worst(&all)].map(seconds);
        write!(f, "{a:>26} {b:>8} | {c:>8} {d:>8}")
    }
}

pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f32())
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn worst(times: &[Duration]) -> Duration {
    times.iter().max().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::broker::Version;

    #[test]
    fn a_gap_is_the_longest_time_without_a_result() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let arrival = |seconds, partition| Arrival { at: at(seconds), source: (partition, 0), published_ms: 0 };
        let arrivals =
            [arrival(1, 0), arrival(2, 1), arrival(4, 0), arrival(5, 1), arrival(9, 0), arrival(10, 1), arrival(30, 0)];
        let gap = |from, until| {
            let Gap { partition, all } = gap(&arrivals, 2, at(from), at(until));
            (partition.as_secs(), all.as_secs())
        };
        assert_eq!(gap(3, 10), (5, 4));
        assert_eq!(gap(6, 9), (5, 4), "it began before, and one goes on");
        assert_eq!(gap(11, 20), (9, 9), "nothing came");
        assert_eq!(gap(0, 2), (2, 1));
    }

    #[test]
    fn a_promise_of_time_is_kept_by_half_of_its_cases_and_by_no_fewer_than_one() {
        let kept = |takeovers: &[u64]| {
            let options = Options {
                seed: 1,
                disturbances: 1,
                brokers: 1,
                kafka: Version::V4_3,
                protocol: None,
                poison: 0,
                spare_brokers: true,
            };
            let gap = |seconds: &u64| Gap { partition: Duration::from_secs(*seconds), all: Duration::ZERO };
            let report = Report {
                options,
                took: Duration::ZERO,
                verdict: Default::default(),
                counts: Default::default(),
                gaps: [(Disturbance::KillForLong, takeovers.iter().map(gap).collect())].into(),
                gaps_of_several: Vec::new(),
                from_ready: vec![Duration::from_secs(1)],
                restarts: Vec::new(),
                faults: Vec::new(),
            };
            report.passed()
        };
        assert!(kept(&[4]) && kept(&[4, 5, 60]));
        assert!(!kept(&[4, 60, 60]) && !kept(&[60]) && !kept(&[]));
    }

    #[test]
    fn medians_and_worsts_are_of_all_cases() {
        let times = [3, 1, 2].map(Duration::from_secs);
        assert_eq!((median(&times), worst(&times)), (Duration::from_secs(2), Duration::from_secs(3)));
        assert_eq!((median(&[]), worst(&[])), (Duration::ZERO, Duration::ZERO));
    }
}

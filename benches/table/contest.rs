//! Contenders do the same work in turn, A B C, A B C, …, so that whatever else the machine does meets all of them
//! alike.

use serde::Serialize;
use tonearm_benches::clock::Time;

use crate::claim::{Asked, Claim, median, ratios};

/// How long a contender's turn is, at least.
const TURN_S: f64 = 0.4;

/// Does the work so often, and says how long it took.
pub type Work<'a> = Box<dyn FnMut(usize) -> Time + 'a>;

#[derive(Debug, Serialize)]
pub struct Contest {
    pub stage: String,
    /// Of what there are `amount` in the work, done once.
    pub unit: &'static str,
    pub amount: f64,
    /// The first is ours.
    pub contenders: Vec<Contender>,
}

#[derive(Debug, Serialize)]
pub struct Contender {
    pub name: String,
    /// What our rate must be over this one's, at least.
    pub asked: Option<f64>,
    /// Of the work done once, one of each round.
    pub rounds: Vec<Time>,
}

impl Contender {
    /// Units per second of CPU time: all threads count, and time lent to other programs does not.
    pub fn rates(&self, amount: f64) -> Vec<f64> {
        self.rounds.iter().map(|time| amount / time.cpu_s).collect()
    }
}

pub struct Entry<'a> {
    pub name: String,
    pub asked: Option<f64>,
    pub work: Work<'a>,
}

impl<'a> Entry<'a> {
    pub fn new(name: impl Into<String>, asked: Option<f64>, work: impl FnMut(usize) -> Time + 'a) -> Self {
        Self { name: name.into(), asked, work: Box::new(work) }
    }
}

impl Contest {
    pub fn hold(
        stage: impl Into<String>,
        unit: &'static str,
        amount: f64,
        rounds: usize,
        entries: Vec<Entry<'_>>,
    ) -> Self {
        let stage = stage.into();
        eprintln!("{stage}: {}", entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", "));
        let mut running: Vec<(Entry<'_>, usize, Vec<Time>)> = entries
            .into_iter()
            .map(|mut entry| {
                (entry.work)(1);
                let once = (entry.work)(1).wall_s;
                (entry, (TURN_S / once).ceil().max(1.0) as usize, Vec::new())
            })
            .collect();
        for _ in 0..rounds {
            for (entry, repeat, times) in &mut running {
                let Time { cpu_s, wall_s } = (entry.work)(*repeat);
                let repeat = *repeat as f64;
                times.push(Time { cpu_s: cpu_s / repeat, wall_s: wall_s / repeat });
            }
        }
        let contenders =
            running.into_iter().map(|(entry, _, rounds)| Contender { name: entry.name, asked: entry.asked, rounds });
        Self { stage, unit, amount, contenders: contenders.collect() }
    }

    /// Ours over each of the others, faster is larger.
    pub fn claims(&self) -> Vec<Claim> {
        let Some((ours, others)) = self.contenders.split_first() else { return Vec::new() };
        let rates = ours.rates(self.amount);
        let claim = |other: &Contender| {
            let their = other.rates(self.amount);
            let (our, peer) = (median(&rates), median(&their));
            Claim::new(
                format!("{}: {} over {}", self.stage, ours.name, other.name),
                other.asked.map(Asked::AtLeast),
                "×",
                ratios(&rates, &their),
            )
            .figures(format!("{} and {} {}", rounded(our), rounded(peer), self.unit))
        };
        others.iter().map(claim).collect()
    }
}

/// Three digits, which is more than any figure here is good for.
pub fn rounded(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

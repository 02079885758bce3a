//! One line of the table: what was measured, round by round, and what was asked.

use serde::Serialize;

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Serialize)]
pub struct Claim {
    pub what: String,
    pub asked: Option<Asked>,
    /// In `unit`, one of each round.
    pub rounds: Vec<f64>,
    pub unit: &'static str,
    /// The figures behind it, in words.
    pub figures: String,
}

impl Claim {
    pub fn new(what: impl Into<String>, asked: Option<Asked>, unit: &'static str, rounds: Vec<f64>) -> Self {
        Self { what: what.into(), asked, rounds, unit, figures: String::new() }
    }

    pub fn figures(mut self, figures: impl Into<String>) -> Self {
        self.figures = figures.into();
        self
    }

    pub fn median(&self) -> f64 {
        median(&self.rounds)
    }

    /// Whether the median is what was asked; None where nothing was.
    pub fn holds(&self) -> Option<bool> {
        self.asked.map(|asked| match asked {
            Asked::AtLeast(bound) => self.median() >= bound,
            Asked::AtMost(bound) => self.median() <= bound,
        })
    }
}

/// The middle one, or the mean of the two in the middle; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len().wrapping_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => f64::NAN,
    }
}

pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

pub fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// What each round of the one is over the same round of the other.
pub fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under).collect()
}

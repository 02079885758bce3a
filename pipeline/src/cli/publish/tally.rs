//! How many files have come how far.

use std::{fmt::Display, io::IsTerminal, path::Path};

use indicatif::{ProgressBar, ProgressStyle};

use super::parcels::Parcel;
use crate::cli::say;

pub struct Tally {
    pub total: usize,
    /// The topic has them.
    pub published: usize,
    /// Published by an earlier run.
    pub before: usize,
    /// Named, each with what is wrong with it.
    pub failed: usize,
    /// The topic may have them.
    pub unanswered: usize,
    bar: ProgressBar,
}

impl Tally {
    pub fn new(total: usize) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {msg}") {
            bar.set_style(style);
        }
        Self { total, published: 0, before: 0, failed: 0, unanswered: 0, bar }
    }

    /// Those that are left.
    pub fn left(&self) -> usize {
        self.total - self.published - self.before - self.failed
    }

    /// What is to be published.
    pub fn expect(&self, parcels: &[Parcel]) {
        self.bar.set_length(parcels.iter().map(|parcel| parcel.bytes).sum());
    }

    pub fn show(&self, path: &Path) {
        self.bar.set_message(path.display().to_string());
    }

    pub fn publish(&mut self, bytes: u64) {
        self.published += 1;
        self.bar.inc(bytes);
    }

    pub fn fail(&mut self, path: &Path, reason: impl Display) {
        self.failed += 1;
        self.say(format_args!("{}: {reason}", path.display()));
    }

    /// Says on standard error what should be known now.
    pub fn say(&self, text: impl Display) {
        self.bar.suspend(|| say::problem(text));
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

//! Everything that is measured, in one table: each stage on one thread, the whole of it through a real Kafka, memory,
//! start-up, latency.
//!
//!     cargo bench -p tonearm-benches --bench table -- [--peers] [--keep] [--rounds N] [SECTION…]
//!
//! `--peers` sets up the peers and measures them in turn with ours: A B C, A B C, …. `--keep` writes the table and the
//! raw figures into `benches/runs/DATE-MACHINE/`. Sections: decode, resample, log-mel, forward, pipeline, memory,
//! latency.

mod claim;
mod contest;
mod idle;
mod keep;
mod peak;
mod peers;
mod pipeline;
mod program;
mod roofline;
mod stages;

use claim::Claim;
use peers::Python;

const SECTIONS: [&str; 7] = ["decode", "resample", "log-mel", "forward", "pipeline", "memory", "latency"];

/// What to do.
struct Asked {
    python: Option<Python>,
    keep: bool,
    /// How often each contender has its turn: in stages, and through Kafka.
    rounds: usize,
    pipeline_rounds: usize,
    sections: Vec<String>,
}

impl Asked {
    fn read() -> Self {
        let mut asked = Self { python: None, keep: false, rounds: 7, pipeline_rounds: 5, sections: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // cargo's own.
                "--bench" => {}
                "--peers" => asked.python = Some(Python::set_up()),
                "--keep" => asked.keep = true,
                "--rounds" => {
                    let rounds = arguments.next().and_then(|rounds| rounds.parse().ok()).expect("--rounds N");
                    (asked.rounds, asked.pipeline_rounds) = (rounds, rounds);
                }
                section if SECTIONS.contains(&section) => asked.sections.push(section.to_owned()),
                other => panic!("{other} is not one of --peers, --keep, --rounds, {}", SECTIONS.join(", ")),
            }
        }
        asked
    }

    fn wants(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|asked| asked == section)
    }
}

fn main() {
    let asked = Asked::read();
    let mut contests = Vec::new();
    for (section, measure) in [
        ("decode", stages::decode as fn(&Asked) -> Vec<contest::Contest>),
        ("resample", stages::resample),
        ("log-mel", stages::log_mel),
        ("forward", stages::forward),
    ] {
        if asked.wants(section) {
            contests.extend(measure(&asked));
        }
    }
    let mut claims: Vec<Claim> = contests.iter().flat_map(contest::Contest::claims).collect();
    for (section, measure) in [
        ("pipeline", pipeline::measure as fn(&Asked) -> Vec<Claim>),
        ("memory", idle::memory),
        ("latency", idle::start_and_latency),
    ] {
        if asked.wants(section) {
            claims.extend(measure(&asked));
        }
    }
    let roofs = roofline::of(&contests);
    let page = keep::page(&claims, &contests, &roofs);
    println!("\n{page}");
    if asked.keep {
        keep::write(asked.python.is_some(), &page, &claims, &contests, &roofs);
    }
}

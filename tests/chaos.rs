//! `make chaos`: a long run, its seed and its report.

use std::process::ExitCode;

use clap::Parser;
use tonearm_tests::chaos::{Options, folder, run};

/// Kills, freezes, stops and joins workers and brokers while records keep coming, and says whether every record has its
/// one result.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let Arguments { options } = Arguments::parse();
    println!(
        "SEED={} DISTURBANCES={} BROKERS={} PROTOCOL={} POISON={}",
        options.seed, options.disturbances, options.brokers, options.protocol, options.poison
    );
    let report = run(options);
    println!("\n{report}\n{}", folder(options.seed).display());
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

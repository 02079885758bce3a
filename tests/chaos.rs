//! `make chaos`: a long run, its seed and its report.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};
use tonearm_tests::{
    broker::Version,
    chaos::{Options, Protocol, folder, run},
};

/// Kills, freezes, stops and joins workers and brokers while records keep coming, and says whether every record has its
/// one result.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let Arguments { options } = Arguments::parse();
    if options.kafka == Version::V3_9 && options.protocol() == Protocol::Consumer {
        let message = "Kafka 3.9 (KAFKA) has no groups of protocol consumer (PROTOCOL)";
        Arguments::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    println!(
        "SEED={} DISTURBANCES={} BROKERS={} KAFKA={} PROTOCOL={} POISON={}",
        options.seed,
        options.disturbances,
        options.brokers,
        options.kafka,
        options.protocol(),
        options.poison
    );
    let report = run(options);
    println!("\n{report}\n{}", folder(options.seed).display());
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

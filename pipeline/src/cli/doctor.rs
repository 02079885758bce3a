//! `tonearm doctor`: everything a run would need, looked at before it is needed.

use std::path::Path;

use clap::Args;
use tonearm_models::repository;
use tonearm_schemas::reject::Stage;

use super::{CommandError, CommandResult, Global, flag, model_flags, models, say};
use crate::{
    config::Config,
    kafka::{self, Finding, Level},
    telemetry::log,
};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm doctor\n  \
    tonearm doctor --config /etc/tonearm.toml --stages decode\n  \
    tonearm doctor --json | jq 'select(.level == \"fail\")'\n\n\
    Nothing is written to Kafka. Exit codes: 0 if a run would work, warnings or not; 3 if somebody has to mend something\n\
    before; 1 if no broker answers.")]
pub struct DoctorArgs {
    /// Consumer group
    #[arg(long, value_name = "ID")]
    group: Option<String>,
    /// Model, by name or name@version
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Stages the process would run
    #[arg(long, value_name = "STAGES")]
    stages: Option<String>,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

/// What a run takes besides `runtime.in_flight_mib`: libtorch, the model, and the buffers of its workers.
const BESIDES_BYTES: usize = 256 << 20;

pub fn main(global: &Global, args: &DoctorArgs) -> CommandResult {
    let [name, version] = model_flags(args.model.as_deref());
    let config = global.config([
        name,
        version,
        flag("kafka.group_id", "--group", args.group.as_ref()),
        flag("runtime.stages", "--stages", args.stages.as_ref()),
    ])?;
    log::init(if global.log.is_some() { &config.log.level } else { "error" }, config.log.json);

    let mut worst = Level::Ok;
    let mut tell = |finding: &Finding| -> CommandResult {
        worst = worst.max(finding.level);
        if args.json {
            say::line(serde_json::to_string(finding).map_err(CommandError::failed)?)?;
        } else {
            say::line(pretty(finding))?;
        }
        Ok(())
    };
    tell(&model(&config))?;
    tell(&memory(&config))?;
    match kafka::reach(&config.kafka).and_then(|()| kafka::preflight(&config)) {
        Ok(findings) => findings.iter().try_for_each(&mut tell)?,
        Err(error) => {
            let text = error.to_string();
            let (says, cure) = text.split_once("; ").unwrap_or((&text, "start it, or set kafka.brokers"));
            tell(&Finding::fail("brokers", says, cure))?;
            return Err(if error.needs_a_person() { CommandError::SaidToAPerson } else { CommandError::Said });
        }
    }
    if worst == Level::Fail { Err(CommandError::SaidToAPerson) } else { Ok(()) }
}

fn pretty(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Warn => "warn",
        Level::Fail => "FAIL",
    };
    let line = format!("{level:4}  {}: {}", finding.about, finding.says);
    finding.cure.as_ref().map_or(line.clone(), |cure| format!("{line}\n      → {cure}"))
}

/// Loads the model, which checks its hash, shape and labels. Processes without `infer` only need its front end.
fn model(config: &Config) -> Finding {
    let about = "model";
    let found = match repository::find(&config.models_dir, &config.model) {
        Ok(found) => found,
        Err(error) => {
            let text = error.to_string();
            let (says, cure) = text.split_once("; ").unwrap_or((&text, "tonearm models import makes it again"));
            return Finding::fail(about, says, cure);
        }
    };
    let name = format!("{}@{}", found.manifest.name, found.manifest.version);
    if !config.runtime.stages.has(Stage::Infer) {
        return Finding::ok(about, format_args!("{name} is there"));
    }
    match models::load(&found, config.precision) {
        Ok(model) => Finding::ok(about, format_args!("{name} is whole, engine {}", model.engine())),
        Err(error) => Finding::fail(about, error, "tonearm models import makes it again"),
    }
}

fn memory(config: &Config) -> Finding {
    let in_flight = config.runtime.in_flight_bytes;
    let mib = |bytes: usize| bytes >> 20;
    let Some(there) = memory_bytes() else { return Finding::ok("memory", "not limited as far as can be seen") };
    let wanted = in_flight + BESIDES_BYTES;
    let says = format!(
        "{} MiB, and a run takes {} MiB (runtime.in_flight_mib) and about {} MiB besides",
        mib(there),
        mib(in_flight),
        mib(BESIDES_BYTES)
    );
    let fits = mib(there.saturating_sub(BESIDES_BYTES)).max(1);
    if there < in_flight {
        Finding::fail("memory", says, format_args!("set runtime.in_flight_mib to {fits} or less"))
    } else if there < wanted {
        Finding::warn("memory", says, format_args!("set runtime.in_flight_mib to {fits} or less"))
    } else {
        Finding::ok("memory", says)
    }
}

/// What this process may use: the machine's memory, or less if it is in a container.
fn memory_bytes() -> Option<usize> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
    });
    // cgroup v2: each folder on the way up may have a limit.
    let group = read(Path::new("/proc/self/cgroup"))
        .and_then(|text| Some(text.lines().find_map(|line| line.strip_prefix("0::/"))?.trim().to_owned()));
    let folder = Path::new("/sys/fs/cgroup").join(group.unwrap_or_default());
    let limits = folder.ancestors().take_while(|folder| folder.starts_with("/sys/fs/cgroup"));
    let limits = limits.filter_map(|folder| read(&folder.join("memory.max"))?.trim().parse::<usize>().ok());
    machine.into_iter().chain(limits).min()
}

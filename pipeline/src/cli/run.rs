//! `tonearm run`

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Args;
use tonearm_engine::{Catalogue, Engine};
use tonearm_models::repository;
use tonearm_schemas::reject::Stage;

use super::{CommandError, CommandResult, Global, flag, model_flags, models::load, signals};
use crate::{
    config::Config,
    kafka::{self, Level},
    run::{self, RunError},
    telemetry::{admin, health::Health, log, metrics},
};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm run\n  \
    tonearm run --brokers kafka-1:9092,kafka-2:9092 --group taggers --instance tagger-7\n  \
    tonearm run --config /etc/tonearm.toml\n  \
    tonearm run --stages decode                    one of three kinds of processes, see docs/delivery.md\n\n\
    SIGTERM, SIGHUP or Ctrl-C finishes what is being worked on, commits and leaves the group; a second one stops at once.")]
pub struct RunArgs {
    /// Consumer group
    #[arg(long, value_name = "ID")]
    group: Option<String>,
    /// Name of this process within its group, the same after a restart
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// Model, by name or name@version
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// CPU threads
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// Stages this process runs, without a gap [default: decode,features,infer]
    #[arg(long, value_name = "STAGES")]
    stages: Option<String>,
    /// End if no broker answers within 10 s, instead of waiting for one
    #[arg(long)]
    exit_if_unreachable: bool,
}

pub fn main(global: &Global, args: &RunArgs) -> CommandResult {
    let [name, version] = model_flags(args.model.as_deref());
    let config = global.config([
        name,
        version,
        flag("kafka.group_id", "--group", args.group.as_ref()),
        flag("kafka.instance_id", "--instance", args.instance.as_ref()),
        flag("runtime.workers", "--workers", args.workers),
        flag("runtime.stages", "--stages", args.stages.as_ref()),
    ])?;
    log::init(&config.log.level, config.log.json);

    let stop = signals::stop_on_signals()?;
    end_in_time(&stop, config.runtime.drain_timeout);

    let metrics = metrics::install(&config.model.to_string()).map_err(CommandError::failed)?;
    let health = Health::default();
    let admin = match config.admin_listen {
        Some(address) => Some(
            admin::serve(address, metrics, config.model.to_string(), health.clone()).map_err(CommandError::failed)?,
        ),
        None => None,
    };

    let found = repository::find(&config.models_dir, &config.model)?;
    let model = if config.runtime.stages.has(Stage::Infer) {
        let model = load(&found, config.precision)?;
        tracing::info!(
            model = found.manifest.name,
            version = %found.manifest.version,
            precision = model.precision().as_str(),
            engine = model.engine(),
            "model is warm"
        );
        Some(model)
    } else {
        None
    };
    health.model_is_warm();
    let catalogue = Catalogue::new(config.runtime.stages, model, found.manifest, config.output, config.limits);
    let engine = Engine::start(Arc::new(catalogue), config.runtime.workers).map_err(RunError::from)?;
    let result = kafka::wait_for_brokers(&config.kafka, args.exit_if_unreachable, &stop)
        .map_err(RunError::from)
        .and_then(|()| match stop.load(Ordering::Relaxed) {
            true => Ok(()),
            false => {
                say_what_does_not_fit(&config);
                run::run(&config, &Arc::new(engine), &health, &stop)
            }
        })
        .map_err(CommandError::from);
    if let Some(admin) = admin {
        admin.shutdown_background();
    }
    result
}

/// Warns of what some records will meet, beside the work, which does not wait for it: `tonearm doctor` tells all of it.
fn say_what_does_not_fit(config: &Config) {
    let config = config.clone();
    let look = move || match kafka::preflight(&config) {
        Ok(findings) => {
            for finding in findings.into_iter().filter(|finding| finding.level != Level::Ok) {
                let cure = finding.cure.unwrap_or_default();
                tracing::warn!("{}: {}; {cure}", finding.about, finding.says);
            }
        }
        Err(error) => tracing::debug!("it was not looked at what might not fit: {error}"),
    };
    if let Err(error) = std::thread::Builder::new().name("preflight".to_owned()).spawn(look) {
        tracing::debug!("it is not looked at what might not fit: {error}");
    }
}

/// Once the process is to stop, it ends a little after its drain's deadline, whatever a worker or a broker does.
fn end_in_time(stop: &Arc<AtomicBool>, drain_timeout: Duration) {
    const LOOK: Duration = Duration::from_millis(50);
    /// What closing the consumer may take on top.
    const CLOSE: Duration = Duration::from_millis(450);
    let stop = Arc::clone(stop);
    let watch = move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
        std::thread::sleep(drain_timeout + run::COMMIT_GRACE + CLOSE);
        tracing::error!("the drain's deadline is over and something still hangs; the process ends here");
        // Without the destructors of libraries, which worker threads may still be in.
        signal_hook::low_level::exit(1);
    };
    if let Err(error) = std::thread::Builder::new().name("end-in-time".to_owned()).spawn(watch) {
        tracing::warn!("nothing ends the process if a worker hangs: {error}");
    }
}

//! `tonearm run`

use std::sync::{Arc, atomic::Ordering};

use clap::Args;
use tonearm_models::repository;
use tonearm_schemas::reject::Stage;

use super::{CommandError, CommandResult, Global, flag, model_flags, predict::load, signals};
use crate::{
    run,
    telemetry::{
        admin::{self, Health},
        log, metrics,
    },
    track::Tagger,
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

    let metrics = metrics::install(&config.model.to_string()).map_err(CommandError::failed)?;
    let health = Health::default();
    let admin = match config.admin_listen {
        Some(address) => Some(admin::serve(address, metrics, health.clone()).map_err(CommandError::failed)?),
        None => None,
    };

    let found = repository::find(&config.models_dir, &config.model).map_err(CommandError::failed)?;
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
    health.model_warm.store(true, Ordering::Relaxed);
    let tagger = Tagger::new(config.runtime.stages, model, found.manifest, config.output, config.limits);
    let tagger = Arc::new(tagger);
    let result = run::run(&config, &tagger, &health, &stop).map_err(CommandError::failed);
    if let Some(admin) = admin {
        admin.shutdown_background();
    }
    result
}

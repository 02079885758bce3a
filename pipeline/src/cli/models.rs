//! `tonearm models`

use std::{io::IsTerminal, path::PathBuf, sync::Arc};

use clap::Subcommand;
use indicatif::ProgressBar;
use tonearm_models::{
    import::{self, Importable, MUSICNN},
    repository::{self, ModelRef},
};
use tonearm_schemas::manifest::FeatureSpec;
use tonearm_stages::infer::{self, Model, Precision, PrecisionChoice};

use super::{CommandError, CommandResult, Global, say};
use crate::telemetry::log;

#[derive(Subcommand)]
pub enum ModelsCommand {
    /// List the models in the repository (models.dir)
    #[command(after_help = "Example:\n  tonearm models list")]
    List,
    /// Make TorchScript models of musicnn's, from the wheel on PyPI
    #[command(after_help = "Examples:\n  \
        pip download --no-deps musicnn==0.1.0 && tonearm models import musicnn-0.1.0-py3-none-any.whl\n  \
        tonearm models import musicnn-0.1.0-py3-none-any.whl vgg-msd")]
    Import {
        /// musicnn's wheel
        #[arg(value_name = "WHEEL")]
        wheel: PathBuf,
        /// Which models [default: all four]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Load models and check their hashes, shapes and labels
    #[command(after_help = "Examples:\n  tonearm models verify\n  tonearm models verify musicnn-mtt@1.0.0")]
    Verify {
        /// Which models [default: all in the repository]
        #[arg(value_name = "MODEL")]
        models: Vec<ModelRef>,
    },
}

pub fn main(global: &Global, command: &ModelsCommand) -> CommandResult {
    let config = global.config([])?;
    log::init(if global.log.is_some() { &config.log.level } else { "error" }, config.log.json);
    let dir = &config.models_dir;
    match command {
        ModelsCommand::List => {
            let models = repository::list(dir).map_err(CommandError::failed)?;
            if models.is_empty() {
                say::problem(format_args!(
                    "no model is in {} (models.dir); `tonearm models import` makes some",
                    dir.display()
                ));
            }
            for model in &models {
                match repository::find(dir, model) {
                    Ok(found) => {
                        let manifest = &found.manifest;
                        let FeatureSpec::LogMel(mel) = &manifest.features;
                        say::line(format_args!(
                            "{model:20}  {} labels, windows of {:.2} s, {} mel bands at {} Hz, {}",
                            manifest.output.labels.len(),
                            manifest.windows.frames as f64 * manifest.seconds_per_frame(),
                            mel.bands,
                            manifest.audio.sample_rate_hz,
                            manifest.licence
                        ))?;
                    }
                    Err(error) => say::line(format_args!("{model:20}  {error}"))?,
                }
            }
            Ok(())
        }
        ModelsCommand::Import { wheel, names } => {
            let chosen = choose(names)?;
            for model in chosen {
                let spinner = ProgressBar::new_spinner().with_message(format!("importing {}", model.name));
                if std::io::stderr().is_terminal() {
                    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
                }
                let folder = import::import(wheel, model, dir).map_err(CommandError::failed)?;
                spinner.finish_and_clear();
                say::line(folder.display())?;
            }
            Ok(())
        }
        ModelsCommand::Verify { models } => {
            let all =
                if models.is_empty() { repository::list(dir).map_err(CommandError::failed)? } else { models.clone() };
            if all.is_empty() {
                return Err(CommandError::Failed(format!("no model is in {} (models.dir)", dir.display())));
            }
            let mut failed = false;
            for model in &all {
                let loaded = repository::find(dir, model).map_err(|e| e.to_string()).and_then(|found| {
                    let float32 = PrecisionChoice::Only(Precision::Float32);
                    infer::load(&found.file(), &found.manifest, float32).map_err(|e| e.to_string())
                });
                match loaded {
                    Ok(_) => say::line(format_args!("{model}: good"))?,
                    Err(error) => {
                        failed = true;
                        say::problem(format_args!("{model}: {error}"));
                    }
                }
            }
            if failed { Err(CommandError::Said) } else { Ok(()) }
        }
    }
}

fn choose(names: &[String]) -> Result<Vec<&'static Importable>, CommandError> {
    if names.is_empty() {
        return Ok(MUSICNN.iter().collect());
    }
    let known = || MUSICNN.map(|model| model.name).join(", ");
    names
        .iter()
        .map(|name| {
            MUSICNN
                .iter()
                .find(|model| model.name == name)
                .ok_or_else(|| CommandError::Usage(format!("model {name:?} is not one of {}", known())))
        })
        .collect()
}

/// Loads a model and warms it up.
pub fn load(found: &repository::Model, precision: PrecisionChoice) -> Result<Arc<dyn Model>, CommandError> {
    let model = infer::load(&found.file(), &found.manifest, precision).map_err(CommandError::failed)?;
    Ok(Arc::from(model))
}

//! `tonearm predict`

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tonearm_models::repository;
use tonearm_schemas::prediction::{Prediction, Source};
use tonearm_stages::infer::{self, Model, PrecisionChoice};

use super::{
    CommandError, CommandResult, Global, files, flag, model_flags, paint,
    say::{self, OutputError},
};
use crate::{
    config::Stages,
    telemetry::log,
    track::{Block, Made, Origin, Sink, Tagger},
    workers::{CloseOnDrop, Pool, Task},
};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm predict song.mp3\n  \
    tonearm predict --json --windows --labels all *.flac > predictions.jsonl\n  \
    tonearm predict --model vgg-msd@1.0.0 song.m4a\n\n\
    A file that cannot be predicted is named on standard error, and the exit code is 1.")]
pub struct PredictArgs {
    /// Audio files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One JSON object per line, schema tonearm.prediction/1
    #[arg(long)]
    json: bool,
    /// With the scores of every window
    #[arg(long)]
    windows: bool,
    /// How many labels, best first, or all
    #[arg(long, value_name = "K|all")]
    labels: Option<String>,
    /// Model, by name or name@version
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// auto, float32 or bfloat16
    #[arg(long, value_name = "P")]
    precision: Option<String>,
    /// CPU threads
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
}

pub fn main(global: &Global, args: &PredictArgs) -> CommandResult {
    let [name, version] = model_flags(args.model.as_deref());
    let config = global.config([
        name,
        version,
        flag("model.precision", "--precision", args.precision.as_ref()),
        flag("output.labels", "--labels", args.labels.as_ref()),
        flag("output.windows", "--windows", args.windows.then_some(true)),
        flag("runtime.workers", "--workers", args.workers),
    ])?;
    log::init(if global.log.is_some() { &config.log.level } else { "error" }, config.log.json);
    let files = files::expand(&args.files, false)?;
    let found = repository::find(&config.models_dir, &config.model).map_err(CommandError::failed)?;
    let model = load(&found, config.precision)?;
    let tagger = Arc::new(Tagger::new(Stages::ALL, Some(model), found.manifest, config.output, config.limits));

    let bar = ProgressBar::hidden();
    if files.len() > 1 && std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar.set_length(files.len() as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} files, {elapsed} ({eta} left)") {
            bar.set_style(style);
        }
    }
    let printer =
        Mutex::new(Printer { next: 0, waiting: Vec::new(), failed: false, output: Ok(()), json: args.json, bar: &bar });

    let pool = Pool::new();
    std::thread::scope(|scope| {
        let close = CloseOnDrop(&pool);
        for _ in 0..config.runtime.workers.get() {
            scope.spawn(|| pool.work());
        }
        for (index, file) in files.iter().enumerate() {
            let (tagger, printer) = (&tagger, &printer);
            let task: Task<'_> = Box::new(move |pool| {
                if printer.lock().unwrap_or_else(PoisonError::into_inner).output.is_err() {
                    return;
                }
                let name = file.path.display().to_string();
                let result = std::fs::read(&file.path)
                    .map_err(|e| format!("{name}: cannot be read: {e}"))
                    .and_then(|bytes| predict(tagger, pool, &name, &bytes));
                printer.lock().unwrap_or_else(PoisonError::into_inner).print(index, result);
            });
            pool.submit(task);
        }
        drop(close);
    });
    bar.finish_and_clear();
    drop(pool);
    let printer = printer.into_inner().unwrap_or_else(PoisonError::into_inner);
    printer.output?;
    if printer.failed { Err(CommandError::Said) } else { Ok(()) }
}

/// Loads a model and warms it up.
pub fn load(found: &repository::Model, precision: PrecisionChoice) -> Result<Arc<dyn Model>, CommandError> {
    let model = infer::load(&found.file(), &found.manifest, precision).map_err(CommandError::failed)?;
    Ok(Arc::from(model))
}

fn predict(tagger: &Arc<Tagger>, pool: &Pool<'_>, name: &str, bytes: &[u8]) -> Result<Prediction, String> {
    let origin = Origin {
        id: name.to_owned(),
        key: None,
        source: Source::File { file: name.to_owned() },
        received: Instant::now(),
    };
    match tagger.process(pool, origin, bytes, None, &NoBlocks) {
        Some(Made::Prediction(prediction)) => Ok(*prediction),
        Some(Made::Reject { reject, .. }) => Err(format!("{name}: {reject}")),
        Some(Made::Block(_)) | None => Err(format!("{name}: it has no prediction")),
    }
}

/// With all stages here, there is no next one.
struct NoBlocks;

impl Sink for NoBlocks {
    fn goes_on(&self) -> bool {
        true
    }

    fn take(&self, _: Block) -> bool {
        false
    }
}

/// Prints results in the order of the arguments, as soon as those before them are printed.
struct Printer<'a> {
    next: usize,
    waiting: Vec<(usize, Result<Prediction, String>)>,
    failed: bool,
    /// An error, from when nothing more can be printed.
    output: Result<(), OutputError>,
    json: bool,
    bar: &'a ProgressBar,
}

impl Printer<'_> {
    fn print(&mut self, index: usize, result: Result<Prediction, String>) {
        self.bar.inc(1);
        self.waiting.push((index, result));
        while let Some(at) = self.waiting.iter().position(|(index, _)| *index == self.next) {
            let (_, result) = self.waiting.swap_remove(at);
            self.next += 1;
            self.bar.suspend(|| self.print_one(&result));
        }
    }

    fn print_one(&mut self, result: &Result<Prediction, String>) {
        match result {
            Ok(prediction) => {
                let text = if self.json {
                    serde_json::to_string(prediction).map(|json| json + "\n").map_err(|e| OutputError::Failed(e.into()))
                } else {
                    Ok(paint::prediction(prediction))
                };
                if self.output.is_ok() {
                    self.output = text.and_then(say::text);
                }
            }
            Err(message) => {
                self.failed = true;
                say::problem(message);
            }
        }
    }
}

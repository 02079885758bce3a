//! `tonearm predict`

use std::{
    future::ready,
    io::IsTerminal,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tonearm_engine::{Block, Caller, Catalogue, Client, Engine, Job, Origin, Outcome, Stages};
use tonearm_models::repository;
use tonearm_schemas::prediction::{Prediction, Source};

use super::{
    CommandError, CommandResult, Global, files, flag, model_flags,
    models::load,
    paint,
    say::{self, OutputError},
};
use crate::telemetry::log;

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
    let found = repository::find(&config.models_dir, &config.model)?;
    let model = load(&found, config.precision)?;

    let bar = ProgressBar::hidden();
    if files.len() > 1 && std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar.set_length(files.len() as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} files, {elapsed} ({eta} left)") {
            bar.set_style(style);
        }
    }
    let printer =
        Printer { next: 0, waiting: Vec::new(), failed: false, output: Ok(()), json: args.json, bar: bar.clone() };
    let printer = Arc::new(Mutex::new(printer));
    let catalogue = Catalogue::new(Stages::ALL, Some(model), found.manifest, config.output, config.limits);
    let engine = Engine::start(Arc::new(catalogue), config.runtime.workers).map_err(CommandError::failed)?;
    // As many files are in memory as workers may have begun, and one more.
    let room = Room::new(2 * config.runtime.workers.get() + 1);
    for (index, file) in files.iter().enumerate() {
        let name = file.path.display().to_string();
        let place = room.take();
        if printer.lock().unwrap_or_else(PoisonError::into_inner).output.is_err() {
            break;
        }
        let reply = Reply { index, name: name.clone(), printer: Arc::clone(&printer), _place: place };
        match std::fs::read(&file.path) {
            Ok(bytes) => engine.submit(Job {
                origin: Origin {
                    id: name.clone(),
                    key: None,
                    source: Source::File { file: name },
                    received: Instant::now(),
                },
                bytes: bytes.into(),
                content_type: None,
                caller: Box::new(reply),
            }),
            Err(e) => reply.print(Err(format!("{name}: cannot be read: {e}"))),
        }
    }
    engine.finish();
    bar.finish_and_clear();
    let mut printer = printer.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::replace(&mut printer.output, Ok(()))?;
    if printer.failed { Err(CommandError::Said) } else { Ok(()) }
}

/// Hears how a file's track ends.
struct Reply {
    index: usize,
    name: String,
    printer: Arc<Mutex<Printer>>,
    _place: Place,
}

impl Reply {
    fn print(&self, result: Result<Prediction, String>) {
        self.printer.lock().unwrap_or_else(PoisonError::into_inner).print(self.index, result);
    }
}

impl Caller for Reply {
    fn client(&self) -> &dyn Client {
        self
    }

    fn end(self: Box<Self>, outcome: Outcome) {
        self.print(match outcome {
            Outcome::Prediction(prediction) => Ok(*prediction),
            Outcome::Reject { reject, .. } => Err(format!("{}: {reject}", self.name)),
            Outcome::Block(_) => Err(format!("{}: it has no prediction", self.name)),
        });
    }
}

impl Client for Reply {
    fn may_begin(&self) -> bool {
        true
    }

    fn is_wanted(&self) -> bool {
        true
    }

    /// With all stages here there are no blocks.
    fn room(&self, _: usize) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(ready(false))
    }

    fn take(&self, _: Block) {}
}

/// A bounded number of places.
struct Room(Arc<(Mutex<usize>, Condvar)>);

impl Room {
    fn new(places: usize) -> Self {
        Self(Arc::new((Mutex::new(places), Condvar::new())))
    }

    /// Waits for a place.
    fn take(&self) -> Place {
        let (free, changed) = &*self.0;
        let free = free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = changed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Place(Arc::clone(&self.0))
    }
}

/// It is free again when it is dropped.
struct Place(Arc<(Mutex<usize>, Condvar)>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.1.notify_one();
    }
}

/// Prints results in the order of the arguments, as soon as those before them are printed.
struct Printer {
    next: usize,
    waiting: Vec<(usize, Result<Prediction, String>)>,
    failed: bool,
    /// An error, from when nothing more can be printed.
    output: Result<(), OutputError>,
    json: bool,
    bar: ProgressBar,
}

impl Printer {
    fn print(&mut self, index: usize, result: Result<Prediction, String>) {
        self.bar.inc(1);
        self.waiting.push((index, result));
        while let Some(at) = self.waiting.iter().position(|(index, _)| *index == self.next) {
            let (_, result) = self.waiting.swap_remove(at);
            self.next += 1;
            self.bar.clone().suspend(|| self.print_one(&result));
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

//! `tonearm inspect`

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;
use tonearm_schemas::reject::{Reject, RejectClass, Stage};
use tonearm_stages::decode;

use super::{CommandError, CommandResult, files, paint, say};
use crate::telemetry::log;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm inspect song.mp3 cover.flac\n  \
    tonearm inspect --json *.m4a\n\n\
    Frames are counted by decoding the whole file, with the encoder's delay and padding cut off.")]
pub struct InspectArgs {
    /// Audio files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One JSON object per line: file, codec, sample_rate_hz, channels, frames, duration_s; or file, error {class,
    /// message}
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    file: String,
    #[serde(flatten)]
    found: Found,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Audio { codec: String, sample_rate_hz: u32, channels: u32, frames: u64, duration_s: f64 },
    Error { error: Error },
}

#[derive(Serialize)]
struct Error {
    /// A class of rejects, or `unreadable` for a file that cannot be read.
    class: String,
    message: String,
}

pub fn main(args: &InspectArgs) -> CommandResult {
    log::init("off", false);
    let mut failed = false;
    for file in &files::expand(&args.files, false)? {
        let found = match std::fs::read(&file.path) {
            Ok(bytes) => inspect(&bytes),
            Err(e) => Found::Error { error: Error { class: "unreadable".to_owned(), message: e.to_string() } },
        };
        let file = file.path.display().to_string();
        if let Found::Error { error } = &found {
            failed = true;
            say::problem(format_args!("{file}: {}: {}", error.class, error.message));
        }
        match (&found, args.json) {
            (_, true) => {
                let line = serde_json::to_string(&Line { file, found }).map_err(CommandError::failed)?;
                say::line(line)?;
            }
            (Found::Audio { codec, sample_rate_hz, channels, frames, duration_s }, false) => say::line(format_args!(
                "{file}: {codec}, {sample_rate_hz} Hz, {channels} channel{}, {frames} frames, {}",
                if *channels == 1 { "" } else { "s" },
                paint::duration(*duration_s)
            ))?,
            (Found::Error { .. }, false) => {}
        }
    }
    if failed { Err(CommandError::Said) } else { Ok(()) }
}

fn inspect(bytes: &[u8]) -> Found {
    let decoded = catch_unwind(AssertUnwindSafe(|| decode::inspect(bytes, None)))
        .unwrap_or_else(|_| Err(Reject::new(Stage::Decode, RejectClass::DecoderCrash, "the decoder panicked")));
    match decoded {
        Ok((info, frames)) => Found::Audio {
            codec: info.codec,
            sample_rate_hz: info.sample_rate_hz,
            channels: info.channels,
            frames,
            duration_s: frames as f64 / f64::from(info.sample_rate_hz),
        },
        Err(reject) => Found::Error { error: Error { class: reject.class.to_string(), message: reject.message } },
    }
}

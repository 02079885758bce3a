//! What the benches share: the music they measure with, its PCM and its windows, models, and clocks.

pub mod clock;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tonearm_models::repository;
use tonearm_schemas::manifest::Manifest;
use tonearm_stages::{
    decode::Decoder,
    features::Features,
    infer::{self, LoadError, Model, PrecisionChoice},
    resample::Resampler,
    windows::Window,
};

/// The codecs that are measured, by the ending of their file in `long/`.
pub const CODECS: [(&str, &str); 7] = [
    ("mp3", "mp3"),
    ("aac", "m4a"),
    ("alac", "alac.m4a"),
    ("flac", "flac"),
    ("vorbis", "ogg"),
    ("opus", "opus"),
    ("pcm", "wav"),
];
/// Seconds of the files in `long/`, and of those in `minute/`.
pub const LONG_S: f64 = 600.0;
pub const MINUTE_S: f64 = 60.0;
/// Pairs of rates that are measured, Hz.
pub const RATES_HZ: [(u32, u32); 5] =
    [(44_100, 16_000), (48_000, 16_000), (22_050, 16_000), (96_000, 16_000), (8_000, 16_000)];
pub const MODELS: [&str; 4] = ["musicnn-mtt", "musicnn-msd", "vgg-mtt", "vgg-msd"];
pub const DEFAULT_MODEL: &str = "musicnn-mtt";
/// Precisions that are measured where the machine has them.
pub const PRECISIONS: [&str; 2] = ["float32", "bfloat16"];
/// Samples of a piece: about what decoders give the stages behind them.
pub const PIECE: usize = 16_384;

/// The folder of the music, which is made at the first call on a machine (a minute and a half).
pub fn music() -> PathBuf {
    let script = tonearm_tests::root().join("benches/music");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("benches/music can be run");
    assert!(output.status.success(), "benches/music failed");
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// The bytes of a file of the music.
pub fn read(file: &Path) -> Vec<u8> {
    std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Decodes all of `bytes`, and keeps no more than a piece. How many frames there were.
///
/// # Errors
/// This version of Tonearm does not decode them.
pub fn decode(bytes: &[u8]) -> Result<u64, String> {
    let mut decoder = Decoder::open(bytes, None).map_err(|reject| reject.to_string())?;
    let mut mono = Vec::new();
    while decoder.next(&mut mono).map_err(|reject| reject.to_string())? {
        mono.clear();
    }
    Ok(decoder.frames())
}

/// The first minute of the music, mono at 44.1 kHz.
pub fn pcm() -> Vec<f32> {
    let bytes = read(&music().join("long/music.wav"));
    let mut decoder = Decoder::open(&bytes, None).expect("a WAV file");
    let frames = MINUTE_S as usize * 44_100;
    let mut mono = Vec::new();
    while mono.len() < frames && decoder.next(&mut mono).expect("a whole WAV file") {}
    mono.truncate(frames);
    mono
}

/// Resamples `mono` a piece at a time. How many samples come out.
pub fn resample(mono: &[f32], from_hz: u32, to_hz: u32, out: &mut Vec<f32>) -> usize {
    let mut resampler = Resampler::new(from_hz, to_hz).expect("rates that are allowed");
    let mut samples = 0;
    for piece in mono.chunks(PIECE) {
        resampler.push(piece, out);
        samples += out.len();
        out.clear();
    }
    resampler.finish(out);
    samples + out.len()
}

/// The first minute of the music, mono at the models' rate.
pub fn pcm_16k() -> Vec<f32> {
    let mut out = Vec::new();
    let mut resampler = Resampler::new(44_100, 16_000).expect("rates that are allowed");
    resampler.push(&pcm(), &mut out);
    resampler.finish(&mut out);
    out
}

/// The windows of `samples` at the model's rate.
pub fn windows(manifest: &Manifest, samples: &[f32]) -> Vec<Window> {
    let (mut features, mut windows) = (Features::new(manifest), Vec::new());
    features.push(samples, &mut windows);
    features.finish(&mut windows).expect("the music is long enough");
    windows
}

/// A model of the checkout's repository and its manifest; None where this machine does not have the precision.
pub fn model(name: &str, precision: &str) -> Option<(Box<dyn Model>, Manifest)> {
    let precision: PrecisionChoice = precision.parse().unwrap_or_else(|e| panic!("{e}"));
    let found = repository::find(&tonearm_tests::root().join("models/repository"), &name.parse().ok()?)
        .unwrap_or_else(|e| panic!("{e}: run `make models`"));
    match infer::load(&found.file(), &found.manifest, precision) {
        Ok(model) => Some((model, found.manifest)),
        Err(LoadError::NoBfloat16) => None,
        Err(e) => panic!("{e}"),
    }
}

/// The manifest of a model of the checkout's repository.
pub fn manifest(name: &str) -> Manifest {
    let name = name.parse().expect("a model's name");
    repository::find(&tonearm_tests::root().join("models/repository"), &name)
        .unwrap_or_else(|e| panic!("{e}: run `make models`"))
        .manifest
}

/// Criterion with little patience: all stages are done in two minutes.
pub fn criterion() -> criterion::Criterion {
    criterion::Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2))
        .without_plots()
}

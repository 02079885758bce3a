//! Log-mel frames, proven against a slow transform in double precision and against librosa.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use safetensors::SafeTensors;
use serde::Deserialize;
use tonearm_schemas::manifest::{LogBase, LogMelSpec, LogSpec, MelNorm, MelScale, Padding, WindowFunction};
use tonearm_stages::spectrogram::LogMel;

/// Four units in the last place of the largest values.
const CLOSE: f64 = 4e-6;

/// The front end of musicnn.
const MUSICNN: LogMelSpec = LogMelSpec {
    n_fft: 512,
    hop: 256,
    window: WindowFunction::Hann,
    padding: Padding::CenterZero,
    power: 2.0,
    bands: 96,
    mel_scale: MelScale::Slaney,
    mel_norm: MelNorm::Slaney,
    min_hz: 0.0,
    max_hz: 8000.0,
    log: LogSpec { base: LogBase::Ten, scale: 10_000.0, offset: 1.0 },
};

/// Specs that differ from [`MUSICNN`] in everything, with their sample rates.
fn specs() -> [(LogMelSpec, u32); 5] {
    let natural = LogSpec { base: LogBase::E, scale: 1.0, offset: 0.01 };
    [
        (MUSICNN, 16_000),
        (
            LogMelSpec {
                n_fft: 400,
                hop: 160,
                window: WindowFunction::Hamming,
                padding: Padding::None,
                power: 1.0,
                bands: 64,
                mel_scale: MelScale::Htk,
                mel_norm: MelNorm::None,
                min_hz: 125.0,
                max_hz: 7_500.0,
                log: natural,
            },
            16_000,
        ),
        (LogMelSpec { n_fft: 2048, hop: 512, bands: 128, max_hz: 11_025.0, ..MUSICNN }, 22_050),
        (
            LogMelSpec {
                n_fft: 1024,
                hop: 1024,
                power: 1.5,
                min_hz: 1_200.0,
                max_hz: 16_000.0,
                log: natural,
                ..MUSICNN
            },
            44_100,
        ),
        // More bands than bins below 1 kHz: some bands hold no bin at all.
        (LogMelSpec { n_fft: 90, hop: 7, bands: 80, mel_norm: MelNorm::None, max_hz: 4_000.0, ..MUSICNN }, 8_000),
    ]
}

fn log_mel(spec: &LogMelSpec, rate_hz: u32, samples: &[f32], piece: usize) -> Vec<f32> {
    let mut log_mel = LogMel::new(spec, rate_hz);
    let mut frames = Vec::new();
    for piece in samples.chunks(piece) {
        log_mel.push(piece, &mut frames);
    }
    log_mel.finish(&mut frames);
    frames
}

/// A loud low sine, a quiet high one and quieter noise: strong and weak bins in every frame.
fn music(rate_hz: u32, len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..len)
        .map(|n| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let t = TAU * n as f64 / f64::from(rate_hz);
            let noise = f64::from(state as i32) / 2.0_f64.powi(31);
            let swell = 1.0 - (-(n as f64) / 3000.0).exp();
            (0.9 * swell * (440.0 * t).sin() + 0.01 * (2_900.0 * t).sin() + 1e-4 * noise) as f32
        })
        .collect()
}

/// The definition, term by term: pad, window, DFT, magnitude, triangles, logarithm.
fn slow_log_mel(spec: &LogMelSpec, rate_hz: u32, samples: &[f32]) -> Vec<f64> {
    let n_fft = spec.n_fft;
    let side = vec![0.0; if spec.padding == Padding::CenterZero { n_fft / 2 } else { 0 }];
    let padded = [&side, samples, &side].concat();
    let count = if padded.len() < n_fft { 0 } else { 1 + (padded.len() - n_fft) / spec.hop };

    let bins = n_fft / 2 + 1;
    let triangles = triangles(spec, rate_hz);
    let turn: Vec<(f64, f64)> = (0..n_fft).map(|n| (TAU * n as f64 / n_fft as f64).sin_cos()).collect();
    let mut frames = Vec::new();
    for frame in 0..count {
        let windowed: Vec<f64> = (0..n_fft)
            .map(|n| {
                let (a, b) = if spec.window == WindowFunction::Hann { (0.5, 0.5) } else { (0.54, 0.46) };
                (a - b * turn[n].1) * f64::from(padded[frame * spec.hop + n])
            })
            .collect();
        let magnitude = |bin: usize| {
            let (re, im) = windowed.iter().enumerate().fold((0.0, 0.0), |(re, im), (n, x)| {
                let (sin, cos) = turn[bin * n % n_fft];
                (re + x * cos, im - x * sin)
            });
            re.hypot(im).powf(spec.power.into())
        };
        let spectrum: Vec<f64> = (0..bins).map(magnitude).collect();
        for triangle in triangles.chunks(bins) {
            let mel: f64 = triangle.iter().zip(&spectrum).map(|(weight, bin)| weight * bin).sum();
            let ln = (f64::from(spec.log.scale) * mel + f64::from(spec.log.offset)).ln();
            frames.push(if spec.log.base == LogBase::Ten { ln / 10.0_f64.ln() } else { ln });
        }
    }
    frames
}

/// The filter bank, dense: `[bands × bins]`.
fn triangles(spec: &LogMelSpec, rate_hz: u32) -> Vec<f64> {
    let to_mel = |hz: f64| match spec.mel_scale {
        MelScale::Htk => 2595.0 * (1.0 + hz / 700.0).log10(),
        MelScale::Slaney if hz < 1000.0 => hz * 3.0 / 200.0,
        MelScale::Slaney => 15.0 + 27.0 * (hz / 1000.0).ln() / 6.4_f64.ln(),
    };
    let to_hz = |mel: f64| match spec.mel_scale {
        MelScale::Htk => 700.0 * (10.0_f64.powf(mel / 2595.0) - 1.0),
        MelScale::Slaney if mel < 15.0 => mel * 200.0 / 3.0,
        MelScale::Slaney => 1000.0 * 6.4_f64.powf((mel - 15.0) / 27.0),
    };
    let (low, high) = (to_mel(spec.min_hz.into()), to_mel(spec.max_hz.into()));
    let edge = |i: usize| to_hz(low + (high - low) * i as f64 / (spec.bands + 1) as f64);
    let mut triangles = Vec::new();
    for band in 0..spec.bands {
        let (lower, middle, upper) = (edge(band), edge(band + 1), edge(band + 2));
        let height = if spec.mel_norm == MelNorm::Slaney { 2.0 / (upper - lower) } else { 1.0 };
        for bin in 0..=spec.n_fft / 2 {
            let hz = bin as f64 * f64::from(rate_hz) / spec.n_fft as f64;
            let up = (hz - lower) / (middle - lower);
            let down = (upper - hz) / (upper - middle);
            triangles.push(height * up.min(down).max(0.0));
        }
    }
    triangles
}

/// The contract is 1e-4. What remains is the rounding of the band and its logarithm to f32; a transform in f32 already
/// shows the rounding of the loud sine in the quiet bands, 1e-4.
#[test]
fn every_value_is_that_of_the_slow_transform() {
    for (spec, rate_hz) in specs() {
        let samples = music(rate_hz, 8 * spec.n_fft + 3);
        let fast = log_mel(&spec, rate_hz, &samples, 1000);
        let slow = slow_log_mel(&spec, rate_hz, &samples);
        assert_eq!(fast.len(), slow.len(), "{spec:?}");
        for (i, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
            let (frame, band) = (i / spec.bands, i % spec.bands);
            let error = (f64::from(*fast) - slow).abs();
            assert!(error < CLOSE, "frame {frame}, band {band}: {fast} for {slow} ({spec:?})");
        }
    }
}

#[derive(Deserialize)]
struct FrontEnd {
    sample_rate_hz: u32,
    features: LogMelSpec,
}

fn reference(file: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/references");
    fs::read(folder.join(file)).unwrap()
}

fn tensor(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let bytes = tensors.tensor(name).unwrap().data();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn assert_close(found: &[f32], expected: &[f32], bands: usize, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (frame, band) = (i / bands, i % bands);
        assert!(
            f64::from(found - expected).abs() < CLOSE,
            "{what}, frame {frame}, band {band}: {found} for {expected}"
        );
    }
}

#[test]
fn every_value_is_that_of_librosa() {
    let front_ends: BTreeMap<String, FrontEnd> = serde_json::from_slice(&reference("front_ends.json")).unwrap();
    let bytes = reference("spectrograms.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (name, FrontEnd { sample_rate_hz, features }) in front_ends {
        let samples = tensor(&tensors, &format!("{name}.pcm"));
        let frames = log_mel(&features, sample_rate_hz, &samples, 1_152);
        assert_close(&frames, &tensor(&tensors, &format!("{name}.log_mel")), features.bands, &name);
    }
    let samples = tensor(&tensors, "musicnn.pcm");
    for len in [0, 1, 255, 256, 257, 511, 512] {
        let frames = log_mel(&MUSICNN, 16_000, &samples[56_000..][..len], 100);
        let name = format!("musicnn.log_mel_of_{len}_samples");
        assert_close(&frames, &tensor(&tensors, &name), 96, &name);
    }
}

#[test]
fn a_track_has_as_many_frames_as_librosa_gives_it() {
    let none = LogMelSpec { padding: Padding::None, ..MUSICNN };
    for len in [0, 1, 255, 256, 257, 511, 512, 513, 767, 768, 769, 16_000] {
        let count = |spec| log_mel(spec, 16_000, &music(16_000, len), 100).len() / 96;
        assert_eq!(count(&MUSICNN), 1 + len / 256, "{len} samples");
        assert_eq!(count(&none), if len < 512 { 0 } else { 1 + (len - 512) / 256 }, "{len} samples");
    }
}

#[test]
fn silence_is_the_logarithm_of_the_offset() {
    assert!(log_mel(&MUSICNN, 16_000, &[0.0; 1_000], 1_000).iter().all(|&value| value == 0.0));
}

/// A model must not score what is not a sound: the scores of NaN are NaN, and those are rejected.
#[test]
fn a_sample_that_is_no_number_shows_in_its_frames_and_no_others() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut samples = music(16_000, 4_000);
        samples[2_000] = wrong;
        for (frame, values) in log_mel(&MUSICNN, 16_000, &samples, 4_000).chunks(96).enumerate() {
            let reached = (frame * 256).abs_diff(2_000) < 256;
            assert!(values.iter().all(|value| value.is_nan() == reached), "frame {frame} after {wrong}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]
    #[test]
    fn the_pieces_a_track_comes_in_do_not_matter(
        index in 0_usize..5,
        pieces in prop::collection::vec(0_usize..3_000, 0..8),
    ) {
        let (spec, rate_hz) = &specs()[index];
        let samples = music(*rate_hz, pieces.iter().sum());
        let mut log_mel_in_pieces = LogMel::new(spec, *rate_hz);
        // What is there already stays.
        let mut frames = vec![7.0; 3];
        let mut rest = samples.as_slice();
        for len in pieces {
            let (piece, later) = rest.split_at(len);
            log_mel_in_pieces.push(piece, &mut frames);
            rest = later;
        }
        log_mel_in_pieces.finish(&mut frames);
        prop_assert_eq!(&frames[..3], &[7.0; 3]);
        prop_assert_eq!(&frames[3..], log_mel(spec, *rate_hz, &samples, usize::MAX));
    }
}

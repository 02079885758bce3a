//! What a stage could not be faster than on one core of this machine: the arithmetic it needs at the core's measured
//! peak, or the bytes it moves at the speed of a copy.

use std::hint::black_box;

use serde::Serialize;
use tch::{Device, Kind, Tensor};
use tonearm_benches::{CODECS, clock::time, music, read};

use crate::{claim::median, contest::Contest, peak};

#[derive(Debug, Serialize)]
pub struct Roof {
    pub stage: String,
    /// Milliseconds of CPU time for a second of audio, or for a window.
    pub floor_ms: f64,
    pub ours_ms: f64,
    pub per: &'static str,
    pub because: String,
}

/// What one core does in a second.
struct Core {
    float32_flop: f64,
    bfloat16_flop: f64,
    copied_bytes: f64,
}

impl Core {
    fn measure() -> Self {
        tch::set_num_threads(1);
        Self {
            // A matrix product finds units that no stable instruction of Rust's reaches, AMX; a library's may also be
            // slow.
            float32_flop: product_flop(Kind::Float).max(peak::float32_flop()),
            bfloat16_flop: product_flop(Kind::BFloat16).max(peak::bfloat16_flop()),
            copied_bytes: copied_bytes(),
        }
    }
}

/// Operations per second of libtorch's matrix product: the best of several sizes, as small ones pay for the call and
/// large ones for memory.
fn product_flop(kind: Kind) -> f64 {
    let mut best = 0.0_f64;
    for size in [256, 512, 1024, 2048] {
        let matrix = || Tensor::rand([size, size], (Kind::Float, Device::Cpu)).to_kind(kind);
        let (a, b) = (matrix(), matrix());
        for _ in 0..20 {
            let seconds = time(|| _ = black_box(a.matmul(&b))).cpu_s;
            best = best.max(2.0 * (size as f64).powi(3) / seconds);
        }
    }
    best
}

/// Bytes read and written per second in a copy that no cache holds.
fn copied_bytes() -> f64 {
    let from = vec![1_u8; 256 << 20];
    let mut to = vec![0_u8; from.len()];
    let best = (0..5).map(|_| time(|| to.copy_from_slice(black_box(&from))).cpu_s).fold(f64::INFINITY, f64::min);
    black_box(&to);
    2.0 * from.len() as f64 / best
}

/// The roofs of the stages that were measured.
pub fn of(contests: &[Contest]) -> Vec<Roof> {
    if contests.is_empty() {
        return Vec::new();
    }
    let core = Core::measure();
    let giga = |per_s: f64| per_s / 1e9;
    let mut roofs = Vec::new();
    for contest in contests {
        let Some(ours) = contest.contenders.first() else { continue };
        let ours_ms = 1e3 / median(&ours.rates(contest.amount));
        let mut words = contest.stage.split(' ');
        let (stage, what) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (floor_s, per, because) = match stage {
            "decode" => {
                let ending = CODECS.iter().find(|(codec, _)| *codec == what).map_or("", |(_, ending)| ending);
                let encoded = read(&music().join(format!("long/music.{ending}"))).len() as f64 / contest.amount;
                // f32 out at 44.1 kHz. What a codec's own arithmetic needs is not counted.
                let bytes = encoded + 44_100.0 * 4.0;
                (bytes / core.copied_bytes, "s of audio", format!("{:.0} kB moved", bytes / 1e3))
            }
            "resample" => {
                let (from_hz, to_hz) = (what.parse().unwrap_or(1.0), 16_000.0);
                let flop = overlap_save_flop(from_hz, to_hz);
                (flop / core.float32_flop, "s of audio", format!("{:.2} MFLOP of transforms", flop / 1e6))
            }
            "log-mel" => {
                let flop = LOG_MEL_FRAMES_PER_S * log_mel_flop();
                (flop / core.float32_flop, "s of audio", format!("{:.2} MFLOP", flop / 1e6))
            }
            _ => {
                let flop = if what.starts_with("musicnn") { MUSICNN_FLOP } else { VGG_FLOP };
                let bfloat16 = contest.stage.ends_with("bfloat16");
                let speed = if bfloat16 { core.bfloat16_flop } else { core.float32_flop };
                let because = format!("{:.2} GFLOP at {:.0} GFLOP/s", giga(flop), giga(speed));
                (flop / speed, "window", because)
            }
        };
        roofs.push(Roof { stage: contest.stage.clone(), floor_ms: floor_s * 1e3, ours_ms, per, because });
    }
    roofs
}

/// Operations of a real transform of `n` values: half of a complex one's 5 n log₂ n.
fn transform_flop(n: f64) -> f64 {
    2.5 * n * n.log2()
}

/// Operations for a second of audio: a transform of each block at both rates, and one complex product by a real number
/// per bin.
fn overlap_save_flop(from_hz: f64, to_hz: f64) -> f64 {
    // As long as resample.rs's: blocks of 2048 samples of the lower rate, a tenth of them seen twice.
    let block = 2048.0 / f64::min(from_hz, to_hz);
    let transforms = transform_flop(block * from_hz) + transform_flop(block * to_hz);
    (transforms + 2048.0) / (0.9 * block)
}

// The front end of musicnn (models/manifests/musicnn-mtt.toml).
const N_FFT: f64 = 512.0;
const BANDS: f64 = 96.0;
const LOG_MEL_FRAMES_PER_S: f64 = 16_000.0 / 256.0;

/// Operations for a frame: the window, the transform, squares, two triangles over each bin, and 15 for each logarithm.
fn log_mel_flop() -> f64 {
    N_FFT + transform_flop(N_FFT) + 3.0 * N_FFT / 2.0 + 4.0 * N_FFT / 2.0 + 15.0 * BANDS
}

// Operations of a window's convolutions and dense layers, two for each weight and place, as PyTorch's FlopCounterMode
// counts them.
const MUSICNN_FLOP: f64 = 2_797_107_168.0;
const VGG_FLOP: f64 = 1_770_161_152.0;

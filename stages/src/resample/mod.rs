//! Mono PCM at one rate → mono PCM at another, with the edges of soxr HQ, librosa's default resampler.
//!
//! One filter for every pair of rates, applied in blocks. The other rate comes about in them, if the two have a short
//! common unit of time; else by reading between the samples of a third rate.

mod between;
mod blocks;

use between::Between;
use blocks::{Blocks, Rates};

/// Rates a track may have, Hz.
pub const IN_HZ: std::ops::RangeInclusive<u32> = 4_000..=768_000;
/// Rates a model may ask for, Hz.
pub const OUT_HZ: std::ops::RangeInclusive<u32> = 8_000..=192_000;

/// The rule: a pair whose unit of time has at most so many samples of the higher rate is resampled in blocks of
/// whole units, any other by reading between samples. All usual pairs are below: 11,025 to 192,000 Hz has 2560. Above,
/// blocks grow to millions of samples; and a unit that long may have a large prime factor, which makes its transform
/// slower than reading is.
const LONGEST_UNIT: u32 = 2560;

/// A rate no resampler is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sample rate {hz} Hz is outside {min}..={max} Hz")]
pub struct RateError {
    pub hz: u32,
    pub min: u32,
    pub max: u32,
}

/// Resamples one track, piece by piece.
///
/// - Flat within 0.01 dB up to 0.913 of the lower of the two Nyquist frequencies, 6 dB down at 0.957 of it, more than
///   120 dB down from 1.0 of it.
/// - No delay: output sample `m` lies at `m / out_hz` seconds. Silence is assumed before and after the track.
/// - `ceil(frames × out_hz / in_hz)` samples in all.
/// - The samples do not depend on how the track is cut into pieces.
/// - Equal rates pass through unchanged.
/// - It holds less than 2 MiB, whatever the rates, and takes less than 3 MiB while it is made.
pub struct Resampler {
    in_hz: u32,
    out_hz: u32,
    samples_in: u64,
    samples_out: u64,
    way: Way,
}

/// How the other rate comes about.
enum Way {
    Same,
    Blocks(Blocks),
    Between(Between),
}

impl Way {
    fn of(in_hz: u32, out_hz: u32) -> Self {
        let divisor = gcd(in_hz, out_hz);
        let (unit_in, unit_out) = (in_hz / divisor, out_hz / divisor);
        if unit_in == unit_out {
            Self::Same
        } else if unit_in.max(unit_out) <= LONGEST_UNIT {
            let in_per_low = f64::from(in_hz) / f64::from(in_hz.min(out_hz));
            let rates = Rates { unit_in: unit_in as usize, unit_out: unit_out as usize, in_per_low };
            Self::Blocks(Blocks::new(&rates, 0))
        } else {
            Self::Between(Between::new(in_hz, out_hz))
        }
    }
}

impl Resampler {
    /// # Errors
    /// A rate outside [`IN_HZ`] or [`OUT_HZ`].
    pub fn new(in_hz: u32, out_hz: u32) -> Result<Self, RateError> {
        for (hz, allowed) in [(in_hz, IN_HZ), (out_hz, OUT_HZ)] {
            if !allowed.contains(&hz) {
                return Err(RateError { hz, min: *allowed.start(), max: *allowed.end() });
            }
        }
        Ok(Self { in_hz, out_hz, samples_in: 0, samples_out: 0, way: Way::of(in_hz, out_hz) })
    }

    /// Takes the next `mono` samples and appends to `out` what they complete.
    pub fn push(&mut self, mono: &[f32], out: &mut Vec<f32>) {
        let before = out.len();
        self.samples_in += mono.len() as u64;
        match &mut self.way {
            Way::Same => out.extend_from_slice(mono),
            Way::Blocks(blocks) => blocks.push(mono, out),
            Way::Between(between) => between.push(mono, out),
        }
        self.samples_out += (out.len() - before) as u64;
    }

    /// Appends the rest of the track to `out`.
    pub fn finish(mut self, out: &mut Vec<f32>) {
        let total = (self.samples_in * u64::from(self.out_hz)).div_ceil(u64::from(self.in_hz));
        let end = out.len() + (total - self.samples_out) as usize;
        while out.len() < end {
            match &mut self.way {
                Way::Same => break,
                Way::Blocks(blocks) => blocks.push_silence(out),
                Way::Between(between) => between.push_silence(out),
            }
        }
        out.truncate(end);
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

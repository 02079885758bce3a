//! PCM at the model's rate → frames of log-mel features.

use multiversion::multiversion;
use tonearm_schemas::manifest::{LogBase, LogMelSpec, LogSpec, Padding, WindowFunction};

use crate::mel::MelBank;
use crate::power_spectra::{LANES, PowerSpectra};

/// Log-mel frames of one track, piece by piece: `log(scale · (mel × |STFT|^power) + offset)`, as librosa 0.11 computes
/// `melspectrogram` in double precision.
///
/// - The transform is not scaled: a full-scale sine has the magnitude `sum(window) / 2` in its bin.
/// - Frame `i` of [`Padding::CenterZero`] is centred on sample `i × hop`, with silence before and after the track;
///   `1 + samples / hop` frames, so one frame for no samples at all.
/// - Frame `i` of [`Padding::None`] starts at sample `i × hop`; only whole frames.
/// - The frames do not depend on how the track is cut into pieces.
/// - A sample that is not finite makes the frames it lies in NaN.
pub struct LogMel {
    n_fft: usize,
    hop: usize,
    padding: Padding,
    power: f32,
    log: LogSpec,
    spectra: PowerSpectra,
    bank: MelBank,
    /// The samples from the start of the next group on.
    pending: Vec<f32>,
    /// Of a group of frames: `[bins × LANES]` and `[bands × LANES]`.
    spectrum: Vec<[f32; LANES]>,
    mel: Vec<[f32; LANES]>,
}

impl LogMel {
    /// Features as `spec` says, which [`Manifest::parse`](tonearm_schemas::manifest::Manifest::parse) has checked.
    pub fn new(spec: &LogMelSpec, sample_rate_hz: u32) -> Self {
        let before = match spec.padding {
            Padding::CenterZero => spec.n_fft / 2,
            Padding::None => 0,
        };
        Self {
            n_fft: spec.n_fft,
            hop: spec.hop,
            padding: spec.padding,
            power: spec.power,
            log: spec.log,
            spectra: PowerSpectra::new(window(spec.window, spec.n_fft)),
            bank: MelBank::new(spec, sample_rate_hz),
            pending: vec![0.0; before],
            spectrum: vec![[0.0; LANES]; spec.n_fft / 2 + 1],
            mel: vec![[0.0; LANES]; spec.bands],
        }
    }

    /// Takes the next `samples` and appends frames that they complete to `frames: [n × bands]`, in whole groups of
    /// [`LANES`]: the rest comes later, so that it does not matter how a track is cut.
    pub fn push(&mut self, samples: &[f32], frames: &mut Vec<f32>) {
        let (whole, step) = ((LANES - 1) * self.hop + self.n_fft, LANES * self.hop);
        let mut pending = std::mem::take(&mut self.pending);
        let mut rest = samples;
        // Groups that begin in what is pending are completed there; the others are read where they lie.
        while !pending.is_empty() {
            let (missing, later) = rest.split_at(whole.saturating_sub(pending.len()).min(rest.len()));
            pending.extend_from_slice(missing);
            rest = later;
            if pending.len() < whole {
                break;
            }
            self.group(&pending, LANES, frames);
            pending.drain(..step);
            let taken = samples.len() - rest.len();
            if let Some(start) = taken.checked_sub(pending.len()) {
                pending.clear();
                rest = &samples[start..];
            }
        }
        while rest.len() >= whole {
            self.group(rest, LANES, frames);
            rest = &rest[step..];
        }
        pending.extend_from_slice(rest);
        self.pending = pending;
    }

    /// Ends the track: appends its last frames.
    pub fn finish(&mut self, frames: &mut Vec<f32>) {
        if self.padding == Padding::CenterZero {
            self.push(&vec![0.0; self.n_fft / 2], frames);
        }
        self.flush(frames);
    }

    /// Appends the `count` frames after the last ones of a finished track that goes on in silence. The first of them
    /// still see the end of the track.
    pub fn silence(&mut self, count: usize, frames: &mut Vec<f32>) {
        if let Some(hops) = count.checked_sub(1) {
            let missing = hops * self.hop + self.n_fft - self.pending.len();
            self.push(&vec![0.0; missing], frames);
            self.flush(frames);
        }
    }

    /// Appends the whole frames that wait for their group.
    fn flush(&mut self, frames: &mut Vec<f32>) {
        if let Some(more) = self.pending.len().checked_sub(self.n_fft) {
            let count = 1 + more / self.hop;
            let mut pending = std::mem::take(&mut self.pending);
            self.group(&pending, count, frames);
            pending.drain(..count * self.hop);
            self.pending = pending;
        }
    }

    /// Appends the first `count` frames of `samples`, at most [`LANES`].
    fn group(&mut self, samples: &[f32], count: usize, frames: &mut Vec<f32>) {
        self.spectra.apply(samples, self.hop, count, &mut self.spectrum);
        let values = self.spectrum.as_flattened_mut();
        if self.power == 1.0 {
            values.iter_mut().for_each(|value| *value = value.sqrt());
        } else if self.power != 2.0 {
            let exponent = self.power / 2.0;
            values.iter_mut().for_each(|value| *value = value.powf(exponent));
        }

        self.bank.apply(&self.spectrum, &mut self.mel);
        logarithms(self.mel.as_flattened_mut(), self.log);
        for lane in 0..count {
            frames.extend(self.mel.iter().map(|band| band[lane]));
        }
    }
}

// The loops over all values are compiled for wider registers too. The results are the same to the bit: nothing is
// reordered or fused.

/// `log(scale · value + offset)` of each value.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2"))]
fn logarithms(values: &mut [f32], LogSpec { base, scale, offset }: LogSpec) {
    let per_e = match base {
        LogBase::E => 1.0,
        LogBase::Ten => std::f32::consts::LOG10_E,
    };
    for value in values {
        *value = per_e * ln(scale * *value + offset);
    }
}

/// The periodic window function, `[n_fft]`, 0..=1.
fn window(function: WindowFunction, n_fft: usize) -> Vec<f64> {
    let floor = match function {
        WindowFunction::Hann => 0.5,
        WindowFunction::Hamming => 0.54,
    };
    let turn = std::f64::consts::TAU / n_fft as f64;
    (0..n_fft).map(|n| floor - (1.0 - floor) * (turn * n as f64).cos()).collect()
}

/// Natural logarithm of a positive normal number within 2e-7 of its size, in steps that compilers vectorise; NaN for
/// what is not finite.
#[inline(always)]
fn ln(x: f32) -> f32 {
    // x = 2^exponent · m with m in [√½, √2).
    const SQRT_HALF: u32 = std::f32::consts::FRAC_1_SQRT_2.to_bits();
    let shifted = x.to_bits().wrapping_sub(SQRT_HALF);
    let exponent = (shifted as i32 >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff) + SQRT_HALF);
    // ln m = 2 artanh s, |s| < 0.172: the first term left out is below 2e-9 of the sum.
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let tail = s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0))));
    let ln_m = 2.0 * (s + s * tail);
    exponent * std::f32::consts::LN_2 + ln_m + 0.0 * x
}

#[cfg(test)]
mod tests {
    use super::ln;

    #[test]
    fn the_logarithm_is_that_of_the_standard_library_for_every_kind_of_number() {
        let last = f32::MAX.to_bits();
        for bits in (f32::MIN_POSITIVE.to_bits()..=last).step_by(499).chain([1.0_f32.to_bits(), last]) {
            let x = f32::from_bits(bits);
            let exact = f64::from(x).ln();
            let error = (f64::from(ln(x)) - exact).abs();
            assert!(error <= 2e-7 * exact.abs(), "ln({x:e}) is {}, not {exact}", ln(x));
        }
        assert!([f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().all(|x| ln(x).is_nan()));
    }
}

//! PCM at the model's rate → frames of log-mel features.

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};
use tonearm_schemas::manifest::{LogBase, LogMelSpec, LogSpec, Padding, WindowFunction};

use crate::mel::MelBank;

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
    hop: usize,
    bands: usize,
    padding: Padding,
    power: f32,
    log: LogSpec,
    /// The window function, `[n_fft]`.
    window: Vec<f64>,
    bank: MelBank,
    /// The samples from the start of the next frame on.
    pending: Vec<f32>,
    /// In double precision like librosa's: in single, the rounding of a loud bin reaches quiet ones, and the logarithm shows it.
    fft: Arc<dyn RealToComplex<f64>>,
    windowed: Vec<f64>,
    bins: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
    spectrum: Vec<f32>,
}

impl LogMel {
    /// Features as `spec` says, which [`Manifest::parse`](tonearm_schemas::manifest::Manifest::parse) has checked.
    pub fn new(spec: &LogMelSpec, sample_rate_hz: u32) -> Self {
        let fft = RealFftPlanner::new().plan_fft_forward(spec.n_fft);
        let before = match spec.padding {
            Padding::CenterZero => spec.n_fft / 2,
            Padding::None => 0,
        };
        Self {
            hop: spec.hop,
            bands: spec.bands,
            padding: spec.padding,
            power: spec.power,
            log: spec.log,
            window: window(spec.window, spec.n_fft),
            bank: MelBank::new(spec, sample_rate_hz),
            pending: vec![0.0; before],
            windowed: fft.make_input_vec(),
            bins: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            spectrum: vec![0.0; spec.n_fft / 2 + 1],
            fft,
        }
    }

    /// Takes the next `samples` and appends the frames they complete to `frames: [n × bands]`.
    pub fn push(&mut self, samples: &[f32], frames: &mut Vec<f32>) {
        self.pending.extend_from_slice(samples);
        let n_fft = self.window.len();
        let mut start = 0;
        while self.pending.len() - start >= n_fft {
            self.frame(start, frames);
            start += self.hop;
        }
        self.pending.drain(..start);
    }

    /// Ends the track: appends its last frames.
    pub fn finish(&mut self, frames: &mut Vec<f32>) {
        if self.padding == Padding::CenterZero {
            self.push(&vec![0.0; self.window.len() / 2], frames);
        }
    }

    /// Appends the `count` frames after the last ones of a finished track that goes on in silence. The first of them still
    /// see the end of the track.
    pub fn silence(&mut self, count: usize, frames: &mut Vec<f32>) {
        for _ in 0..count {
            let missing = self.window.len() - self.pending.len();
            self.push(&vec![0.0; missing], frames);
        }
    }

    fn frame(&mut self, start: usize, frames: &mut Vec<f32>) {
        let samples = &self.pending[start..][..self.window.len()];
        for ((to, sample), gain) in self.windowed.iter_mut().zip(samples).zip(&self.window) {
            *to = f64::from(*sample) * gain;
        }
        // Only fails where a length is wrong, and all lengths come from the transform.
        let done = self.fft.process_with_scratch(&mut self.windowed, &mut self.bins, &mut self.scratch);
        debug_assert!(done.is_ok());

        for (to, bin) in self.spectrum.iter_mut().zip(&self.bins) {
            *to = bin.norm_sqr() as f32;
        }
        if self.power == 1.0 {
            self.spectrum.iter_mut().for_each(|value| *value = value.sqrt());
        } else if self.power != 2.0 {
            let exponent = self.power / 2.0;
            self.spectrum.iter_mut().for_each(|value| *value = value.powf(exponent));
        }

        let first = frames.len();
        frames.resize(first + self.bands, 0.0);
        let frame = &mut frames[first..];
        self.bank.apply(&self.spectrum, frame);
        let LogSpec { base, scale, offset } = self.log;
        let per_e = match base {
            LogBase::E => 1.0,
            LogBase::Ten => std::f32::consts::LOG10_E,
        };
        for value in frame {
            *value = per_e * ln(scale * *value + offset);
        }
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

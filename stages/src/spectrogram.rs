//! PCM at the model's rate → frames of log-mel features.

use std::sync::Arc;

use multiversion::multiversion;
use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};
use tonearm_schemas::manifest::{LogBase, LogMelSpec, LogSpec, Padding, WindowFunction};

use crate::mel::{LANES, MelBank};

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
    padding: Padding,
    power: f32,
    log: LogSpec,
    /// Half of the window function, `[n_fft]`.
    window: Vec<f64>,
    bank: MelBank,
    /// The samples from the start of the next frame on.
    pending: Vec<f32>,
    /// In double precision like librosa's: in single, the rounding of a loud bin reaches quiet ones, and the logarithm shows it.
    fft: Arc<dyn Fft<f64>>,
    /// Two frames, one as the real and one as the imaginary part, and then their transform.
    pair: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
    /// Of a group of frames: `[bins × LANES]` and `[bands × LANES]`.
    spectrum: Vec<[f32; LANES]>,
    mel: Vec<[f32; LANES]>,
}

impl LogMel {
    /// Features as `spec` says, which [`Manifest::parse`](tonearm_schemas::manifest::Manifest::parse) has checked.
    pub fn new(spec: &LogMelSpec, sample_rate_hz: u32) -> Self {
        let fft = FftPlanner::new().plan_fft_forward(spec.n_fft);
        let before = match spec.padding {
            Padding::CenterZero => spec.n_fft / 2,
            Padding::None => 0,
        };
        Self {
            hop: spec.hop,
            padding: spec.padding,
            power: spec.power,
            log: spec.log,
            window: window(spec.window, spec.n_fft).iter().map(|gain| 0.5 * gain).collect(),
            bank: MelBank::new(spec, sample_rate_hz),
            pending: vec![0.0; before],
            pair: vec![Complex::default(); spec.n_fft],
            scratch: vec![Complex::default(); fft.get_inplace_scratch_len()],
            spectrum: vec![[0.0; LANES]; spec.n_fft / 2 + 1],
            mel: vec![[0.0; LANES]; spec.bands],
            fft,
        }
    }

    /// Takes the next `samples` and appends frames that they complete to `frames: [n × bands]`, in whole groups of [`LANES`]: the rest
    /// comes later, so that it does not matter how a track is cut.
    pub fn push(&mut self, samples: &[f32], frames: &mut Vec<f32>) {
        self.pending.extend_from_slice(samples);
        let mut start = 0;
        while self.whole_frames(start) >= LANES {
            self.group(start, LANES, frames);
            start += LANES * self.hop;
        }
        self.pending.drain(..start);
    }

    /// Ends the track: appends its last frames.
    pub fn finish(&mut self, frames: &mut Vec<f32>) {
        if self.padding == Padding::CenterZero {
            self.push(&vec![0.0; self.window.len() / 2], frames);
        }
        self.flush(frames);
    }

    /// Appends the `count` frames after the last ones of a finished track that goes on in silence. The first of them still
    /// see the end of the track.
    pub fn silence(&mut self, count: usize, frames: &mut Vec<f32>) {
        if let Some(hops) = count.checked_sub(1) {
            let missing = hops * self.hop + self.window.len() - self.pending.len();
            self.push(&vec![0.0; missing], frames);
            self.flush(frames);
        }
    }

    /// Whole frames among the pending samples from `start` on.
    fn whole_frames(&self, start: usize) -> usize {
        (self.pending.len() - start).checked_sub(self.window.len()).map_or(0, |more| 1 + more / self.hop)
    }

    /// Appends the whole frames that wait for their group.
    fn flush(&mut self, frames: &mut Vec<f32>) {
        let count = self.whole_frames(0);
        if count > 0 {
            self.group(0, count, frames);
            self.pending.drain(..count * self.hop);
        }
    }

    /// Appends `count` frames, at most [`LANES`], the first of which begins at `start` of the pending samples.
    fn group(&mut self, start: usize, count: usize, frames: &mut Vec<f32>) {
        for lane in (0..count).step_by(2) {
            self.transform(start, lane, lane + 1 < count);
        }
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

    /// Writes the power spectra of frame `lane` of a group, and of the next one if there is one, into their lanes.
    fn transform(&mut self, start: usize, lane: usize, two: bool) {
        let first = start + lane * self.hop;
        let second = if two { first + self.hop } else { first };
        self.transform_pair(first, second);
        if (self.pair[0].re + self.pair[0].im).is_finite() {
            powers(&self.pair, &mut self.spectrum, lane);
            return;
        }
        // Each bin of the transform holds both frames: the one that is not finite would spoil the other.
        let finite = [first, second].map(|at| self.pending[at..][..self.window.len()].iter().all(|x| x.is_finite()));
        self.transform_pair(if finite[0] { first } else { second }, if finite[1] { second } else { first });
        powers(&self.pair, &mut self.spectrum, lane);
        for (lane, _) in (lane..).zip(finite).filter(|(_, finite)| !finite) {
            self.spectrum.iter_mut().for_each(|bin| bin[lane] = f32::NAN);
        }
    }

    /// The transform of the frames that begin at `first` and `second` of the pending samples.
    fn transform_pair(&mut self, first: usize, second: usize) {
        let n_fft = self.window.len();
        let (first, second) = (&self.pending[first..][..n_fft], &self.pending[second..][..n_fft]);
        interleave(&mut self.pair, first, second, &self.window);
        self.fft.process_with_scratch(&mut self.pair, &mut self.scratch);
    }
}

// The loops over all values are compiled for wider registers too. The results are the same to the bit: nothing is reordered or fused.

/// `first` and `second` under the window, halved, as real and imaginary parts.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2"))]
fn interleave(pair: &mut [Complex<f64>], first: &[f32], second: &[f32], window: &[f64]) {
    for (((to, a), b), gain) in pair.iter_mut().zip(first).zip(second).zip(window) {
        *to = Complex::new(f64::from(*a) * gain, f64::from(*b) * gain);
    }
}

/// The powers of the two frames in `pair`, their transform, into the lanes `lane` and `lane + 1` of `spectrum`.
///
/// With Z the transform of (a + ib) / 2: A(k) = Z(k) + conj Z(n − k) and i B(k) = Z(k) − conj Z(n − k).
#[multiversion(targets("x86_64+avx2"))]
fn powers(pair: &[Complex<f64>], spectrum: &mut [[f32; LANES]], lane: usize) {
    let put = |to: &mut [f32; LANES], z: &Complex<f64>, mirrored: &Complex<f64>| {
        let (sum, difference) = (z + mirrored, z - mirrored);
        let a = sum.re * sum.re + difference.im * difference.im;
        let b = sum.im * sum.im + difference.re * difference.re;
        if let Some(to) = to.get_mut(lane..lane + 2) {
            to.copy_from_slice(&[a as f32, b as f32]);
        }
    };
    let (Some((zero, others)), Some((constant, rest))) = (spectrum.split_first_mut(), pair.split_first()) else {
        return;
    };
    put(zero, constant, constant);
    for ((to, z), mirrored) in others.iter_mut().zip(rest).zip(rest.iter().rev()) {
        put(to, z, mirrored);
    }
}

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

//! Samples → power spectra of frames, several frames side by side.

use std::f64::consts::TAU;
use std::sync::Arc;

use multiversion::multiversion;
use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};
use wide::f32x8;

/// Frames that are worked on side by side: a register of AVX, two in double precision, one of those with AVX-512.
pub(crate) const LANES: usize = 8;

/// `|DFT|²` of real frames under a window, [`LANES`] of them at a time.
///
/// In double precision like librosa's: in single, the rounding of a loud bin reaches quiet ones, and the logarithm
/// shows it. A sample that is not finite makes the whole spectra of its frames NaN or infinite, and no others.
pub(crate) enum PowerSpectra {
    PowerOfTwo(SideBySide),
    Other(OneByOne),
}

impl PowerSpectra {
    /// `window: [n_fft]`, of an even length of at least 16.
    pub fn new(window: Vec<f64>) -> Self {
        if window.len().is_power_of_two() {
            Self::PowerOfTwo(SideBySide::new(window))
        } else {
            Self::Other(OneByOne::new(window))
        }
    }

    /// Writes the spectra of the first `count` frames of `samples`, at most [`LANES`], into their lanes of
    /// `powers: [n_fft / 2 + 1]`.
    pub fn apply(&mut self, samples: &[f32], hop: usize, count: usize, powers: &mut [[f32; LANES]]) {
        match self {
            Self::PowerOfTwo(spectra) => spectra.apply(samples, hop, count, powers),
            Self::Other(spectra) => spectra.apply(samples, hop, count, powers),
        }
    }
}

/// For any length.
pub(crate) struct OneByOne {
    window: Vec<f64>,
    transform: Arc<dyn RealToComplex<f64>>,
    frame: Vec<f64>,
    bins: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
}

impl OneByOne {
    fn new(window: Vec<f64>) -> Self {
        let transform = RealFftPlanner::new().plan_fft_forward(window.len());
        Self {
            window,
            frame: transform.make_input_vec(),
            bins: transform.make_output_vec(),
            scratch: transform.make_scratch_vec(),
            transform,
        }
    }

    fn apply(&mut self, samples: &[f32], hop: usize, count: usize, powers: &mut [[f32; LANES]]) {
        for lane in 0..count {
            for ((to, sample), gain) in self.frame.iter_mut().zip(&samples[lane * hop..]).zip(&self.window) {
                *to = f64::from(*sample) * gain;
            }
            // Fails only if a length is wrong, and all lengths come from the transform.
            let done = self.transform.process_with_scratch(&mut self.frame, &mut self.bins, &mut self.scratch);
            debug_assert!(done.is_ok());
            for (powers, bin) in powers.iter_mut().zip(&self.bins) {
                powers[lane] = bin.norm_sqr() as f32;
            }
        }
    }
}

/// For powers of two: each value of a transform is a register with that of every frame, so nothing is ever shuffled.
///
/// The samples of a frame are taken as half as many complex ones, z(m) = x(2m) + i x(2m + 1), and transformed in place
/// by decimation in frequency (Gentleman and Sande, "Fast Fourier Transforms for Fun and Profit", 1966), four parts at
/// a time. With Z the transform, n its length and V(k) = −i exp(−πik / n):
///
/// ```text
/// 2 X(k) = (Z(k) + conj Z(n − k)) + V(k) · (Z(k) − conj Z(n − k))
/// ```
///
/// and 2 conj X(n − k) is the difference of the same two terms.
pub(crate) struct SideBySide {
    /// Half of the window.
    window: Vec<f64>,
    passes: Vec<Pass>,
    /// Where the passes leave Z(k).
    places: Vec<usize>,
    /// V(k) for the first half of the bins.
    turns: Vec<[f64; 2]>,
    /// Real and imaginary parts in turn.
    values: Vec<Lanes>,
}

type Lanes = [f64; LANES];
type ComplexLanes = [Lanes; 2];

/// A pass over blocks that each become `parts` blocks, whose transforms are the `parts`-th bins of that of the whole.
struct Pass {
    /// 4, or 2 in the last pass.
    parts: usize,
    /// exp(−2πi · jq / block) for value j of part q = 1, 2, 3.
    turns: Vec<[[f64; 2]; 3]>,
}

impl SideBySide {
    fn new(window: Vec<f64>) -> Self {
        let complex = window.len() / 2;
        let turn = |angle: f64| [angle.cos(), -angle.sin()];
        let mut passes = Vec::new();
        let mut block = complex;
        while block > 1 {
            let parts = block.min(4);
            let angle = |j, q| TAU * (j * q) as f64 / block as f64;
            let turns = (0..block / parts).map(|j| [1, 2, 3].map(|q| turn(angle(j, q)))).collect();
            passes.push(Pass { parts, turns });
            block /= parts;
        }
        let place = |mut bin: usize| {
            let mut block = complex;
            passes.iter().fold(0, |place, pass| {
                let part = bin % pass.parts;
                bin /= pass.parts;
                block /= pass.parts;
                place + part * block
            })
        };
        Self {
            places: (0..complex).map(place).collect(),
            turns: (0..=complex / 2).map(|k| turn(TAU * (k as f64 / window.len() as f64 + 0.25))).collect(),
            values: vec![[0.0; LANES]; window.len()],
            window: window.into_iter().map(|gain| 0.5 * gain).collect(),
            passes,
        }
    }

    fn apply(&mut self, samples: &[f32], hop: usize, count: usize, powers: &mut [[f32; LANES]]) {
        // Lanes without a frame repeat the last one.
        let frames = std::array::from_fn(|lane| &samples[lane.min(count - 1) * hop..][..self.window.len()]);
        load(&frames, &self.window, &mut self.values);
        for pass in &self.passes {
            match pass.parts {
                4 => quarter(&pass.turns, &mut self.values),
                _ => halve(&mut self.values),
            }
        }
        split(&self.values, &self.places, &self.turns, powers);
    }
}

// Compiled for wider registers too. The results are the same to the bit: nothing is reordered or fused.

/// The frames under the window, sample by sample.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2"))]
fn load(frames: &[&[f32]; LANES], window: &[f64], values: &mut [Lanes]) {
    let (values, _) = values.as_chunks_mut::<LANES>();
    let (window, _) = window.as_chunks::<LANES>();
    for (at, (values, window)) in values.iter_mut().zip(window).enumerate() {
        let mut samples = [f32x8::default(); LANES];
        for (samples, frame) in samples.iter_mut().zip(frames) {
            *samples = f32x8::from(&frame[at * LANES..][..LANES]);
        }
        for ((to, samples), gain) in values.iter_mut().zip(f32x8::transpose(samples)).zip(window) {
            for (to, sample) in to.iter_mut().zip(samples.to_array()) {
                *to = f64::from(sample) * gain;
            }
        }
    }
}

/// One pass over blocks of `4 × turns` complex values.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2"))]
fn quarter(turns: &[[[f64; 2]; 3]], values: &mut [Lanes]) {
    let part = 2 * turns.len();
    for block in values.chunks_exact_mut(4 * part) {
        let (a, rest) = block.split_at_mut(part);
        let (b, rest) = rest.split_at_mut(part);
        let (c, d) = rest.split_at_mut(part);
        let [a, b, c, d] = [a, b, c, d].map(|part| part.as_chunks_mut::<2>().0);
        for ((((a, b), c), d), turns) in a.iter_mut().zip(b).zip(c).zip(d).zip(turns) {
            let (even, odd) = (sum(a, c), sum(b, d));
            let (even_turned, odd_turned) = (difference(a, c), turned_back(&difference(b, d)));
            *a = sum(&even, &odd);
            *b = product(&sum(&even_turned, &odd_turned), turns[0]);
            *c = product(&difference(&even, &odd), turns[1]);
            *d = product(&difference(&even_turned, &odd_turned), turns[2]);
        }
    }
}

/// The last pass if the length is no power of four.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2"))]
fn halve(values: &mut [Lanes]) {
    for [a, b] in values.as_chunks_mut::<2>().0.as_chunks_mut::<2>().0 {
        (*a, *b) = (sum(a, b), difference(a, b));
    }
}

/// Powers of the real frames' transforms.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2"))]
fn split(values: &[Lanes], places: &[usize], turns: &[[f64; 2]], powers: &mut [[f32; LANES]]) {
    let (values, _) = values.as_chunks::<2>();
    let last = powers.len() - 1;
    for (k, turn) in turns.iter().enumerate() {
        let (z, mirrored) = (&values[places[k]], &values[places[(last - k) % last]]);
        let mirrored = [mirrored[0], negated(&mirrored[1])];
        let (a, b) = (sum(z, &mirrored), product(&difference(z, &mirrored), *turn));
        powers[k] = power(&sum(&a, &b));
        powers[last - k] = power(&difference(&a, &b));
    }
}

#[inline(always)]
fn sum(a: &ComplexLanes, b: &ComplexLanes) -> ComplexLanes {
    each(a, b, |a, b| a + b)
}

#[inline(always)]
fn difference(a: &ComplexLanes, b: &ComplexLanes) -> ComplexLanes {
    each(a, b, |a, b| a - b)
}

#[inline(always)]
fn each(a: &ComplexLanes, b: &ComplexLanes, of: impl Fn(f64, f64) -> f64) -> ComplexLanes {
    let mut result = *a;
    for (result, b) in result.as_flattened_mut().iter_mut().zip(b.as_flattened()) {
        *result = of(*result, *b);
    }
    result
}

/// `−i · a`.
#[inline(always)]
fn turned_back([re, im]: &ComplexLanes) -> ComplexLanes {
    [*im, negated(re)]
}

#[inline(always)]
fn negated(a: &Lanes) -> Lanes {
    let mut result = *a;
    for result in &mut result {
        *result = -*result;
    }
    result
}

#[inline(always)]
fn product([re, im]: &ComplexLanes, [cos, sin]: [f64; 2]) -> ComplexLanes {
    let mut result = [[0.0; LANES]; 2];
    for lane in 0..LANES {
        result[0][lane] = re[lane] * cos - im[lane] * sin;
        result[1][lane] = re[lane] * sin + im[lane] * cos;
    }
    result
}

#[inline(always)]
fn power([re, im]: &ComplexLanes) -> [f32; LANES] {
    let mut result = [0.0; LANES];
    for lane in 0..LANES {
        result[lane] = (re[lane] * re[lane] + im[lane] * im[lane]) as f32;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames side by side are those one by one, for every power of two, whole groups and less.
    #[test]
    fn side_by_side_is_one_by_one() {
        let mut state = 1_u32;
        let mut noise = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        };
        for log in 4..=16 {
            let n_fft = 1 << log;
            let hop = n_fft / 2 - 1;
            let window: Vec<f64> = (0..n_fft).map(|_| f64::from(noise())).collect();
            let samples: Vec<f32> = (0..n_fft + (LANES - 1) * hop).map(|_| noise()).collect();
            for count in [1, 5, LANES] {
                let [mut ours, mut asked] = [(); 2].map(|()| vec![[0.0; LANES]; n_fft / 2 + 1]);
                SideBySide::new(window.clone()).apply(&samples, hop, count, &mut ours);
                OneByOne::new(window.clone()).apply(&samples, hop, count, &mut asked);
                let loudest = asked.as_flattened().iter().copied().fold(0.0, f32::max);
                for (bin, (ours, asked)) in ours.iter().zip(&asked).enumerate() {
                    for lane in 0..count {
                        // Squares that differ by their rounding to f32, or by that of the largest in f64.
                        let allowed = 1e-7 * asked[lane] + 1e-13 * loudest;
                        let error = (ours[lane] - asked[lane]).abs();
                        assert!(error <= allowed, "n_fft {n_fft}, bin {bin}, lane {lane} of {count}: {error:e}");
                    }
                }
            }
        }
    }
}

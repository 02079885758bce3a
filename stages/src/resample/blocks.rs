//! The filter, and rates with a short common unit of time.
//!
//! A windowed sinc applied by overlap-save: a block of input is transformed, multiplied with the filter's real
//! response, cut or filled up with zeros to the output's number of bins, and transformed back. The two transforms span
//! the same time, so every pair of rates has the same edges, whatever their common divisor.

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

// The filter is a sinc under a Kaiser window, fitted to the measured response of soxr HQ (libsoxr 0.1.3). Its -6 dB
// point is the same for all rates. Its window is β 13.04 and half width 97 if the ratio of the rates is a small
// integer, else β 15.98 and 109.7 (44.1 to 16 kHz). The one here lies between: within 0.004 of both at every frequency.
/// The filter's -6 dB point, as a part of the lower Nyquist frequency.
const CUTOFF: f64 = 0.95687;
/// From the middle of the filter to its end, in samples of the lower rate.
const HALF_WIDTH: f64 = 100.5;
/// Shape of the Kaiser window.
const KAISER_BETA: f64 = 13.7;
/// Samples of the lower rate in a block, at least. Larger ones were not faster when measured.
const BLOCK: usize = 2048;
/// Samples of the higher rate beyond which a block is no longer than its filter needs: memory and caches.
const LONG_BLOCK: usize = 1 << 15;

/// Two rates, and the pair the filter is for.
pub struct Rates {
    /// Samples in the shortest time that is a whole number of them at both rates.
    pub unit_in: usize,
    pub unit_out: usize,
    /// Input samples to one of the lower rate of the pair.
    pub in_per_low: f64,
}

/// The overlap-save machine.
pub struct Blocks {
    filter: Filter,
    /// The block being filled: `filled` samples, the first `overlap` of them seen before.
    input: Vec<f32>,
    filled: usize,
    overlap: usize,
    /// The part of an output block that no wrapped-around sample reaches.
    valid: std::ops::Range<usize>,
    /// Valid output samples before the first that is wanted, still to come.
    lead: usize,
    work_in: Vec<f32>,
    work_out: Vec<f32>,
}

impl Blocks {
    /// Gives `early` samples from before the track's first.
    pub fn new(rates: &Rates, early: usize) -> Self {
        let &Rates { unit_in, unit_out, in_per_low } = rates;
        let out_per_in = unit_out as f64 / unit_in as f64;
        let half_width = HALF_WIDTH * in_per_low;

        // Both ends of a block are spoilt over half a filter; one more output sample, as the first good one is rounded
        // up.
        let first = (half_width * out_per_in).ceil() as usize;
        let overlap = ((2.0 * half_width + 1.0 / out_per_in).ceil() as usize).div_ceil(unit_in);
        // A power of two of units: even, as transforms of real samples like it, and quick if the units are.
        let least = (2 * overlap).next_power_of_two();
        let most = 1 << (LONG_BLOCK / unit_in.max(unit_out)).max(1).ilog2();
        let wanted = (BLOCK as f64 * in_per_low / unit_in as f64).ceil() as usize;
        let units = wanted.next_power_of_two().min(most).max(least);
        Self {
            filter: Filter::new(units * unit_in, units * unit_out, in_per_low),
            input: vec![0.0; units * unit_in],
            filled: overlap * unit_in,
            overlap: overlap * unit_in,
            valid: first..first + (units - overlap) * unit_out,
            lead: overlap * unit_out - first - early,
            work_in: vec![0.0; units * unit_in],
            work_out: vec![0.0; units * unit_out],
        }
    }

    pub fn push(&mut self, mut mono: &[f32], out: &mut Vec<f32>) {
        while !mono.is_empty() {
            let (now, later) = mono.split_at(mono.len().min(self.input.len() - self.filled));
            self.input[self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            mono = later;
            if self.filled == self.input.len() {
                self.process(out);
            }
        }
    }

    /// Fills the block up with zeros.
    pub fn push_silence(&mut self, out: &mut Vec<f32>) {
        self.input[self.filled..].fill(0.0);
        self.process(out);
    }

    fn process(&mut self, out: &mut Vec<f32>) {
        self.work_in.copy_from_slice(&self.input);
        self.filter.apply(&mut self.work_in, &mut self.work_out);

        let valid = &self.work_out[self.valid.clone()];
        let lead = self.lead.min(valid.len());
        self.lead -= lead;
        out.extend_from_slice(&valid[lead..]);
        let seen = self.input.len() - self.overlap;
        self.input.copy_within(seen.., 0);
        self.filled = self.overlap;
    }
}

/// The filter on whole blocks, which are taken for periodic.
struct Filter {
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
    /// The response at the bins both transforms have, the scale of the transforms in it.
    response: Vec<f32>,
    bins_in: Vec<Complex<f32>>,
    bins_out: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
}

impl Filter {
    fn new(len_in: usize, len_out: usize, in_per_low: f64) -> Self {
        let mut planner = RealFftPlanner::<f32>::new();
        let forward = planner.plan_fft_forward(len_in);
        let inverse = planner.plan_fft_inverse(len_out);
        let mut response = response(len_in, HALF_WIDTH * in_per_low, CUTOFF / in_per_low);
        response.truncate(len_in.min(len_out) / 2 + 1);
        Self {
            response,
            bins_in: forward.make_output_vec(),
            bins_out: inverse.make_input_vec(),
            scratch: vec![Complex::default(); forward.get_scratch_len().max(inverse.get_scratch_len())],
            forward,
            inverse,
        }
    }

    /// Uses `input` up.
    fn apply(&mut self, input: &mut [f32], output: &mut [f32]) {
        // Both only fail if a length is wrong, and all lengths come from the transforms.
        let forward = self.forward.process_with_scratch(input, &mut self.bins_in, &mut self.scratch[..]);
        for ((to, from), gain) in self.bins_out.iter_mut().zip(&self.bins_in).zip(&self.response) {
            *to = from * gain;
        }
        self.bins_out[self.response.len()..].fill(Complex::default());
        // The outer bins of a real signal are real; here the last is -120 dB of what the input had there, or NaN.
        for outer in [0, self.bins_out.len() - 1] {
            self.bins_out[outer].im = 0.0;
        }
        let inverse = self.inverse.process_with_scratch(&mut self.bins_out, output, &mut self.scratch[..]);
        debug_assert!(forward.is_ok() && inverse.is_ok());
    }
}

/// Real response of the filter at the `len / 2 + 1` bins of a transform of `len` samples, 1 / `len` at 0 Hz.
///
/// `half_width` is in samples of that transform, `cutoff` a part of its Nyquist frequency.
fn response(len: usize, half_width: f64, cutoff: f64) -> Vec<f32> {
    // Laid around sample 0, so that it has no delay.
    let mut taps = vec![0.0; len];
    let mut sum = 0.0;
    for n in 0..=half_width as usize {
        let t = n as f64 / half_width;
        let tap = sinc(cutoff * n as f64) * bessel_i0(KAISER_BETA * (1.0 - t * t).sqrt());
        taps[n] = tap;
        sum += tap;
        if n > 0 {
            taps[len - n] = tap;
            sum += tap;
        }
    }
    let forward = RealFftPlanner::<f64>::new().plan_fft_forward(len);
    let mut bins = forward.make_output_vec();
    let done = forward.process(&mut taps, &mut bins);
    debug_assert!(done.is_ok());
    bins.iter().map(|bin| (bin.re / (sum * len as f64)) as f32).collect()
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

/// The modified Bessel function of the first kind and order 0, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let (mut sum, mut term, mut k) = (1.0, 1.0, 1.0);
    while term > 1e-17 * sum {
        term *= (x / (2.0 * k)).powi(2);
        sum += term;
        k += 1.0;
    }
    sum
}

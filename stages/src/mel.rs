//! The mel filter bank: which bins of a spectrum make up a band, and how much of each.

use multiversion::multiversion;
use tonearm_schemas::manifest::{LogMelSpec, MelNorm, MelScale};

use crate::power_spectra::LANES;

/// Triangles on the mel scale, `[bands × bins]`, of which only the non-zero run of each band is kept.
pub(crate) struct MelBank {
    bands: Vec<Band>,
    /// The runs of all bands, one after the other.
    weights: Vec<f32>,
}

struct Band {
    first_bin: usize,
    bins: usize,
}

impl MelBank {
    /// The bank of librosa's `filters.mel`, computed in f64.
    pub fn new(spec: &LogMelSpec, sample_rate_hz: u32) -> Self {
        let to_hz = |mel: f64| mel_to_hz(spec.mel_scale, mel);
        let (low, high) =
            (hz_to_mel(spec.mel_scale, spec.min_hz.into()), hz_to_mel(spec.mel_scale, spec.max_hz.into()));
        let edge_hz = |i: usize| to_hz(low + (high - low) * i as f64 / (spec.bands + 1) as f64);
        let bin_hz = f64::from(sample_rate_hz) / spec.n_fft as f64;

        let mut bank = Self { bands: Vec::with_capacity(spec.bands), weights: Vec::new() };
        for band in 0..spec.bands {
            let (lower, middle, upper) = (edge_hz(band), edge_hz(band + 1), edge_hz(band + 2));
            let peak = match spec.mel_norm {
                MelNorm::Slaney => 2.0 / (upper - lower),
                MelNorm::None => 1.0,
            };
            let weight = |bin: usize| {
                let hz = bin as f64 * bin_hz;
                let triangle = ((hz - lower) / (middle - lower)).min((upper - hz) / (upper - middle));
                (peak * triangle.max(0.0)) as f32
            };
            let bins = 0..=spec.n_fft / 2;
            let first_bin = bins.clone().find(|&bin| weight(bin) > 0.0).unwrap_or(0);
            let run = (first_bin..=*bins.end()).map(weight).take_while(|&weight| weight > 0.0);
            let before = bank.weights.len();
            bank.weights.extend(run);
            bank.bands.push(Band { first_bin, bins: bank.weights.len() - before });
        }
        bank
    }

    /// `bank × spectrum` of several frames side by side: `spectrum: [bins]`, `bands: [bands]`.
    pub fn apply(&self, spectrum: &[[f32; LANES]], bands: &mut [[f32; LANES]]) {
        apply(&self.bands, &self.weights, spectrum, bands);
    }
}

/// Compiled for wider registers too, with the same results to the bit.
#[multiversion(targets("x86_64+avx2"))]
fn apply(runs: &[Band], mut weights: &[f32], spectrum: &[[f32; LANES]], bands: &mut [[f32; LANES]]) {
    for (values, run) in bands.iter_mut().zip(runs) {
        let (own, rest) = weights.split_at(run.bins);
        weights = rest;
        let mut sums = [0.0; LANES];
        for (weight, bin) in own.iter().zip(&spectrum[run.first_bin..]) {
            for (sum, value) in sums.iter_mut().zip(bin) {
                *sum += weight * value;
            }
        }
        *values = sums;
    }
}

// Slaney, "Auditory Toolbox" (1998), mfcc.m: linear up to 1 kHz, then 27 steps per factor of 6.4.
const SLANEY_HZ_PER_MEL: f64 = 200.0 / 3.0;
const SLANEY_BREAK_HZ: f64 = 1000.0;
const SLANEY_BREAK_MEL: f64 = SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL;

fn slaney_log_step() -> f64 {
    6.4_f64.ln() / 27.0
}

fn hz_to_mel(scale: MelScale, hz: f64) -> f64 {
    match scale {
        MelScale::Htk => 2595.0 * (1.0 + hz / 700.0).log10(),
        MelScale::Slaney if hz < SLANEY_BREAK_HZ => hz / SLANEY_HZ_PER_MEL,
        MelScale::Slaney => SLANEY_BREAK_MEL + (hz / SLANEY_BREAK_HZ).ln() / slaney_log_step(),
    }
}

fn mel_to_hz(scale: MelScale, mel: f64) -> f64 {
    match scale {
        MelScale::Htk => 700.0 * (10.0_f64.powf(mel / 2595.0) - 1.0),
        MelScale::Slaney if mel < SLANEY_BREAK_MEL => mel * SLANEY_HZ_PER_MEL,
        MelScale::Slaney => SLANEY_BREAK_HZ * ((mel - SLANEY_BREAK_MEL) * slaney_log_step()).exp(),
    }
}

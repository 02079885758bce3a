//! The resampler's contract: soxr HQ's edges, no delay, the exact length, for every pair of rates.

use std::collections::HashMap;
use std::f64::consts::{PI, TAU};
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rubato::audioadapter_buffers::owned::InterleavedOwned;
use rubato::{Async, FixedAsync, Resampler as _, SincInterpolationParameters, SincInterpolationType, WindowFunction};
use safetensors::SafeTensors;
use tonearm_stages::resample::Resampler;

const IN_HZ: [u32; 18] = [
    8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000,
    // Rates of old machines, and rates with no common divisor with any other.
    37_800, 22_254, 44_056, 44_099, 191_999,
];
const OUT_HZ: [u32; 3] = [16_000, 22_050, 44_100];

fn pairs() -> impl Iterator<Item = (u32, u32)> {
    let extremes = [
        (4_000, 192_000),
        (4_001, 192_000),
        (768_000, 8_000),
        (767_957, 8_000),
        (767_957, 191_999),
        (48_000, 8_000),
        (7_919, 16_000),
        // Units of 2551 samples, a prime, in blocks; and of 2561, too many for them.
        (81_632, 16_000),
        (81_952, 16_000),
    ];
    let pairs = OUT_HZ.into_iter().flat_map(|out_hz| IN_HZ.into_iter().map(move |in_hz| (in_hz, out_hz)));
    pairs.filter(|(in_hz, out_hz)| in_hz != out_hz).chain(extremes)
}

fn resample(in_hz: u32, out_hz: u32, samples: &[f32]) -> Vec<f32> {
    let mut resampler = Resampler::new(in_hz, out_hz).unwrap();
    let mut out = Vec::new();
    for piece in samples.chunks(1000) {
        resampler.push(piece, &mut out);
    }
    resampler.finish(&mut out);
    out
}

/// A sine of `hz`, its phase at time 0 being 1 rad.
fn sine(hz: f64, rate_hz: u32, len: usize) -> Vec<f32> {
    (0..len).map(|n| (TAU * hz * n as f64 / f64::from(rate_hz) + 1.0).sin() as f32).collect()
}

fn noise(len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as i32 as f32 / 2.0_f32.powi(31)
    };
    (0..len).map(|_| next()).collect()
}

fn rms(samples: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for sample in samples {
        sum += sample * sample;
        count += 1.0;
    }
    f64::sqrt(sum / count)
}

fn db(ratio: f64) -> f64 {
    20.0 * ratio.log10()
}

/// What a resampler makes of a sine that is `part` of the lower Nyquist frequency, away from the track's ends.
struct Heard {
    /// Amplitude of the same sine in the output; negative where it is upside down.
    gain: f64,
    /// Amplitude of the same sine a quarter turn later: 0 where there is no delay.
    quadrature: f64,
    /// Root mean square of all else, relative to the input's.
    rest: f64,
}

fn hear(in_hz: u32, out_hz: u32, part: f64) -> Heard {
    let low_hz = in_hz.min(out_hz);
    let hz = part * f64::from(low_hz) / 2.0;
    let out = resample(in_hz, out_hz, &sine(hz, in_hz, in_hz as usize / 4));
    // The filter is about 100 samples of the lower rate long on each side.
    let margin = 120 * out_hz as usize / low_hz as usize;
    let range = margin..out.len() - margin;
    let (mut ss, mut cc, mut sc, mut ys, mut yc) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let phase = |m: usize| TAU * hz * m as f64 / f64::from(out_hz) + 1.0;
    for m in range.clone() {
        let (s, c) = phase(m).sin_cos();
        let y = f64::from(out[m]);
        ss += s * s;
        cc += c * c;
        sc += s * c;
        ys += y * s;
        yc += y * c;
    }
    let determinant = ss * cc - sc * sc;
    let gain = (ys * cc - yc * sc) / determinant;
    let quadrature = (yc * ss - ys * sc) / determinant;
    let rest = range.map(|m| {
        let (s, c) = phase(m).sin_cos();
        f64::from(out[m]) - gain * s - quadrature * c
    });
    Heard { gain, quadrature, rest: rms(rest) * f64::sqrt(2.0) }
}

/// Any bug in gain, delay, block borders, aliases or images shows here. An error of a hundredth of an input sample
/// would be a quadrature of 0.01 at 0.3 of the Nyquist frequency.
#[test]
fn a_sine_in_the_pass_band_is_the_same_sine_at_the_other_rate() {
    for (in_hz, out_hz) in pairs() {
        for part in [0.003, 0.07, 0.3, 0.6, 0.85, 0.9, 0.913] {
            let Heard { gain, quadrature, rest } = hear(in_hz, out_hz, part);
            let at = format!("{in_hz} to {out_hz} Hz at {part} of Nyquist");
            assert!(db(gain).abs() < 1e-4, "{at}: gain {gain}");
            assert!(quadrature.abs() < 2e-6, "{at}: quadrature {quadrature}");
            assert!(db(rest) < -125.0, "{at}: {:.1} dB of something else", db(rest));
        }
    }
}

/// The contract is 100 dB; the filter reaches 120 and more in f32.
#[test]
fn nothing_is_heard_of_a_sine_in_the_stop_band() {
    for (in_hz, out_hz) in pairs().filter(|(in_hz, out_hz)| in_hz > out_hz) {
        let highest = f64::from(in_hz) / f64::from(out_hz);
        for part in [1.0, 1.0007, 1.003, 1.01, 1.03, 1.05, 1.087, 1.1, 1.15, 1.2, 1.5, 2.0, 3.7] {
            if part < highest {
                let hz = part * f64::from(out_hz) / 2.0;
                let out = resample(in_hz, out_hz, &sine(hz, in_hz, in_hz as usize / 4));
                let level = db(rms(out[120..out.len() - 120].iter().map(|&y| f64::from(y))) * f64::sqrt(2.0));
                assert!(level < -120.0, "{in_hz} to {out_hz} Hz at {part} of Nyquist: {level:.1} dB");
            }
        }
    }
}

/// Up to the very Nyquist frequency of the input: the image lies as close above as the sine lies below.
#[test]
fn a_higher_rate_has_no_images() {
    for (in_hz, out_hz) in pairs().filter(|(in_hz, out_hz)| in_hz < out_hz) {
        for part in [0.92, 0.95, 0.97, 0.985, 0.995, 0.999] {
            let rest = db(hear(in_hz, out_hz, part).rest);
            assert!(rest < -125.0, "{in_hz} to {out_hz} Hz at {part} of Nyquist: image of {rest:.1} dB");
        }
    }
}

/// Models heard soxr's edge when they were trained. The gains are measured on soxr 1.1.0, HQ, 44.1 to 16 kHz and 48 to
/// 16 kHz; the two differ by up to 0.006.
#[test]
fn the_edge_is_that_of_soxr_hq() {
    let soxr = [
        (0.913, 0.99896, 1.0),
        (0.92, 0.99875, 0.9998),
        (0.93, 0.99137, 0.99122),
        (0.94, 0.92838, 0.92453),
        (0.95, 0.72126, 0.71735),
        (0.9565, 0.51193, 0.51237),
        (0.96, 0.39386, 0.39701),
        (0.97, 0.12768, 0.13388),
        (0.98, 0.01965, 0.02226),
        (0.99, 0.00087, 0.00113),
    ];
    for (in_hz, out_hz) in pairs() {
        for (part, at_44100, at_48000) in soxr {
            let gain = hear(in_hz, out_hz, part).gain;
            let far = (gain - at_44100).abs().max((gain - at_48000).abs());
            assert!(
                far < 0.004,
                "{in_hz} to {out_hz} Hz at {part} of Nyquist: gain {gain}, soxr's {at_44100}, {at_48000}"
            );
        }
    }
}

/// `y(t) = Σ x[n] h(t - n)`, evaluated sample by sample in f64.
fn slow_resample(in_hz: u32, out_hz: u32, samples: &[f32]) -> Vec<f64> {
    let low_per_in = f64::min(1.0, f64::from(out_hz) / f64::from(in_hz));
    let half = 100.5 / low_per_in;
    // I0(x) = 1/π ∫ exp(x cos θ) dθ over half a turn; the midpoint rule is exact to rounding.
    let bessel = |x: f64| (0..24).map(|k| f64::exp(x * f64::cos(PI * (f64::from(k) + 0.5) / 24.0))).sum::<f64>();
    let kernel = |t: f64| {
        let x = PI * 0.95687 * low_per_in * t;
        let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
        let kaiser = bessel(13.7 * (1.0 - (t / half).powi(2)).max(0.0).sqrt()) / bessel(13.7);
        0.95687 * low_per_in * sinc * kaiser
    };
    // The kernel at every input sample within reach, by where an output sample lies between input samples.
    let mut kernels = HashMap::new();
    (0..(samples.len() as u64 * u64::from(out_hz)).div_ceil(u64::from(in_hz)))
        .map(|m| {
            let (n, phase) = (m * u64::from(in_hz) / u64::from(out_hz), m * u64::from(in_hz) % u64::from(out_hz));
            let reach = half as i64 + 1;
            let weights = kernels.entry(phase).or_insert_with(|| {
                let t = phase as f64 / f64::from(out_hz);
                let weight = |k: i64| if (t - k as f64).abs() < half { kernel(t - k as f64) } else { 0.0 };
                (-reach..=reach).map(weight).collect::<Vec<f64>>()
            });
            let sample = |k: i64| usize::try_from(n as i64 + k).ok().and_then(|n| samples.get(n)).copied();
            (-reach..=reach).zip(weights).map(|(k, weight)| f64::from(sample(k).unwrap_or(0.0)) * *weight).sum()
        })
        .collect()
}

/// White noise from the first sample to the last: a wrong block border, a lost or a doubled sample, a wrapped-around
/// block end are all of the size of the noise, 1.
#[test]
fn every_sample_is_that_of_the_slow_convolution_from_the_first_to_the_last() {
    let pairs = [
        (44_100, 16_000),
        (48_000, 16_000),
        (8_000, 16_000),
        (11_025, 16_000),
        (22_050, 16_000),
        (16_000, 44_100),
        (48_000, 44_100),
        (44_056, 16_000),
        (44_099, 16_000),
        (48_001, 44_100),
        (4_001, 16_000),
        (191_999, 16_000),
        (767_957, 16_000),
    ];
    for (in_hz, out_hz) in pairs {
        // Far above its rate, the slow way takes its time.
        for ms in if in_hz < 100_000 { [3, 400, 701] } else { [3, 40, 61] } {
            let samples = noise(in_hz as usize * ms / 1000 + 7);
            let fast = resample(in_hz, out_hz, &samples);
            let slow = slow_resample(in_hz, out_hz, &samples);
            assert_eq!(fast.len(), slow.len());
            for (m, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
                // The filter's own stop band, and f32.
                let error = (f64::from(*fast) - slow).abs();
                assert!(error < 4e-6, "{in_hz} to {out_hz} Hz, {ms} ms, sample {m}: {fast} for {slow}");
            }
        }
    }
}

/// `tones` lie in the pass band: a shift of a thousandth of a sample would be 5e-4. `edges` hold a sine in the
/// transition band, a click, noise and an abrupt end: soxr's own higher quality differs by 0.01. The first samples of a
/// track that starts abruptly are left out: there soxr differs from itself with silence before the track, by up to
/// 0.015.
#[test]
fn tracks_sound_as_soxr_hq_leaves_them() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/references/resampled.safetensors");
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let samples = |name: String| -> Vec<f32> {
        let bytes = tensors.tensor(&name).unwrap().data();
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    for in_hz in [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000] {
        for (signal, tolerance) in [("tones", 3e-4), ("edges", 1e-3)] {
            let ours = resample(in_hz, 16_000, &samples(format!("{in_hz}.{signal}.input")));
            let soxr = samples(format!("{in_hz}.{signal}.output"));
            assert_eq!(ours.len(), soxr.len());
            let worst = ours.iter().zip(&soxr).skip(4).map(|(ours, soxr)| (ours - soxr).abs()).fold(0.0, f32::max);
            assert!(worst < tolerance, "{signal} at {in_hz} Hz: {worst}");
        }
    }
}

#[test]
fn a_track_keeps_its_length_rounded_up() {
    for (in_hz, out_hz) in pairs().chain([(16_000, 16_000)]) {
        for len in (0..9).chain([146, 147, 148, 440, 441, 442, 5_291, 5_292, 5_293, 44_099, 44_100, 44_101]) {
            let expected = (len as u64 * u64::from(out_hz)).div_ceil(u64::from(in_hz));
            let out = resample(in_hz, out_hz, &noise(len));
            assert_eq!(out.len() as u64, expected, "{len} samples, {in_hz} to {out_hz} Hz");
        }
    }
}

/// rubato with a filter of the same edges, under another window, at the very place of every output sample.
///
/// Silence before the track puts the first of them at time 0.
fn rubato(in_hz: u32, out_hz: u32, samples: &[f32]) -> Vec<f64> {
    let divides = |d: &u32| in_hz.is_multiple_of(*d) && out_hz.is_multiple_of(*d);
    let divisor = (1..=in_hz.min(out_hz)).rev().find(divides).unwrap();
    let ratio = f64::from(out_hz) / f64::from(in_hz);
    let taps = ((188.0 * f64::max(1.0, 1.0 / ratio)) as u32).next_multiple_of(8);
    let parameters = SincInterpolationParameters::new(taps as usize, WindowFunction::BlackmanHarris)
        .f_cutoff(0.956_87)
        .oversampling_factor((out_hz / divisor) as usize)
        .interpolation(SincInterpolationType::Nearest);
    // rubato's sample n lies (n + 1) × in / out + divisor / out - taps / 2 input samples behind the first.
    let before = |lead: u32| u64::from(taps / 2 + lead) * u64::from(out_hz) - u64::from(divisor);
    let lead = (0..in_hz).find(|&lead| before(lead).is_multiple_of(in_hz.into())).unwrap();
    let first = (before(lead) / u64::from(in_hz)) as usize - 1;

    let mut input = vec![0.0; lead as usize];
    input.extend(samples.iter().map(|&sample| f64::from(sample)));
    input.resize(input.len() + 2 * taps as usize, 0.0);
    let len = input.len();
    let input = InterleavedOwned::new_from(input, 1, len).unwrap();
    let mut rubato = Async::<f64>::new_sinc(ratio, 1.0, &parameters, len, 1, FixedAsync::Input).unwrap();
    let out = rubato.process(&input, None).unwrap().take_data();
    let total = (samples.len() as u64 * u64::from(out_hz)).div_ceil(in_hz.into()) as usize;
    out[first..][..total].to_vec()
}

/// A sweep through the pass band, which both filters leave as it is. rubato's window lets through what is 105 dB down,
/// and its ripple is as large; a delay of a thousandth of a sample would be -50 dB, an alias as loud as it is.
#[test]
fn rubato_hears_the_same_in_the_pass_band_of_all_usual_pairs() {
    for out_hz in [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000] {
        for in_hz in IN_HZ.into_iter().take(13).filter(|&in_hz| in_hz != out_hz) {
            let len = in_hz / 5;
            let highest = 0.9 * f64::from(in_hz.min(out_hz)) / f64::from(in_hz) / 2.0;
            let sweep = |n: u32| (PI * highest * f64::from(n).powi(2) / f64::from(len)).sin() as f32;
            let samples: Vec<f32> = (0..len).map(sweep).collect();
            let (ours, theirs) = (resample(in_hz, out_hz, &samples), rubato(in_hz, out_hz, &samples));
            assert_eq!(ours.len(), theirs.len());
            // The sweep's abrupt end is no sound of the pass band.
            let whole = ours.len() - 120 * out_hz as usize / in_hz.min(out_hz) as usize;
            let far = ours.iter().zip(&theirs).take(whole).map(|(ours, theirs)| (f64::from(*ours) - theirs).abs());
            let worst = db(far.fold(0.0, f64::max));
            assert!(worst < -95.0, "{in_hz} to {out_hz} Hz: {worst:.1} dB");
        }
    }
}

/// A track that says the same every second: a position that is rounded at each step would have moved by then.
#[test]
fn the_last_second_of_a_long_track_is_in_time() {
    let second = noise(44_099);
    let mut resampler = Resampler::new(44_099, 16_000).unwrap();
    let mut out = Vec::new();
    for _ in 0..300 {
        resampler.push(&second, &mut out);
    }
    resampler.finish(&mut out);
    let (early, late) = (&out[16_000..][..16_000], &out[298 * 16_000..][..16_000]);
    let worst = early.iter().zip(late).map(|(early, late)| (early - late).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-6, "{worst}");
}

#[test]
fn equal_rates_pass_every_bit() {
    let samples = noise(10_000);
    assert_eq!(resample(44_100, 44_100, &samples), samples);
}

#[test]
fn a_rate_that_is_not_allowed_is_named_with_the_range() {
    let message = |in_hz, out_hz| Resampler::new(in_hz, out_hz).err().map(|error| error.to_string());
    assert_eq!(message(3_000, 16_000).as_deref(), Some("sample rate 3000 Hz is outside 4000..=768000 Hz"));
    assert_eq!(message(768_001, 16_000).as_deref(), Some("sample rate 768001 Hz is outside 4000..=768000 Hz"));
    assert_eq!(message(44_100, 7_999).as_deref(), Some("sample rate 7999 Hz is outside 8000..=192000 Hz"));
    assert_eq!(message(44_100, 192_001).as_deref(), Some("sample rate 192001 Hz is outside 8000..=192000 Hz"));
    assert_eq!(message(4_000, 192_000), None);
    assert_eq!(message(768_000, 8_000), None);
}

/// A model must not score what is not a sound: the scores of NaN are NaN, and those are rejected.
#[test]
fn a_sample_that_is_no_number_is_none_at_the_other_rate() {
    for (in_hz, wrong) in [(44_100, f32::NAN), (48_000, f32::INFINITY), (8_000, f32::NAN), (16_000, f32::NAN)] {
        let mut samples = noise(in_hz as usize);
        samples[in_hz as usize / 2] = wrong;
        let out = resample(in_hz, 16_000, &samples);
        assert!(out[8_000].is_nan() && out.len() == 16_000, "{in_hz} Hz");
    }
}

#[test]
fn coprime_rates_at_both_ends_of_the_range_work() {
    let out = resample(767_957, 191_999, &vec![1.0; 767_957]);
    assert_eq!(out.len(), 191_999);
    assert!(out[1000..191_000].iter().all(|y| (y - 1.0).abs() < 1e-5));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]
    #[test]
    fn the_pieces_a_track_comes_in_do_not_matter(
        in_hz in prop::sample::select(vec![8_000_u32, 22_050, 44_100, 48_000, 7_919, 44_099, 191_999]),
        pieces in prop::collection::vec(0_usize..12_000, 0..8),
    ) {
        let samples = noise(pieces.iter().sum());
        let mut resampler = Resampler::new(in_hz, 16_000).unwrap();
        // What is there already stays.
        let mut out = vec![7.0; 3];
        let mut rest = samples.as_slice();
        for len in pieces {
            let (piece, later) = rest.split_at(len);
            resampler.push(piece, &mut out);
            rest = later;
        }
        resampler.finish(&mut out);
        prop_assert_eq!(&out[..3], &[7.0; 3]);
        prop_assert_eq!(&out[3..], resample(in_hz, 16_000, &samples));
    }
}

//! Tries a model in bfloat16 on sounds of many kinds: how far are its scores from float32's?

use std::f32::consts::TAU;

use tonearm_schemas::manifest::{Manifest, ReducedPrecision};
use tonearm_stages::{features::Features, infer::Model};

/// Windows of each kind of sound.
const WINDOWS_OF_A_KIND: f64 = 2.0;
/// Equal temperament: a semitone up.
const SEMITONE: f32 = 1.059_463_1;

/// Compares the two models' scores of the same windows; `None` if one of them fails.
pub fn compare(manifest: &Manifest, float32: &dyn Model, bfloat16: &dyn Model) -> Option<ReducedPrecision> {
    let mut found = ReducedPrecision { worst_difference: 0.0, windows: 0, fast_fir: Default::default() };
    for sound in sounds(manifest) {
        let mut features = Features::new(manifest);
        let mut windows = Vec::new();
        features.push(&sound, &mut windows);
        for window in windows {
            let (exact, fast) = (float32.forward(&window.values).ok()?, bfloat16.forward(&window.values).ok()?);
            for (exact, fast) in exact.iter().zip(&fast) {
                found.worst_difference = found.worst_difference.max((exact - fast).abs());
            }
            found.windows += 1;
        }
    }
    Some(found)
}

/// Mono PCM at the model's rate: silence, noise, tones, sweeps, beats, and a band of all of them.
fn sounds(manifest: &Manifest) -> Vec<Vec<f32>> {
    let rate = manifest.audio.sample_rate_hz as f32;
    let seconds = manifest.seconds_per_frame() * (manifest.windows.frames as f64 * WINDOWS_OF_A_KIND + 4.0);
    let length = (seconds * f64::from(rate)) as usize;
    let mut seed = 1_u32;
    // Numerical Recipes' generator.
    let mut noise = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    let noise: Vec<f32> = (0..length).map(|_| noise()).collect();
    let sound = |value: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
        noise.iter().enumerate().map(|(i, &noise)| value(i as f32 / rate, noise)).collect()
    };
    // A plucked tone with harmonics, struck anew every `beat` seconds.
    let tone = |t: f32, hz: f32, beat: f32| {
        let harmonics = (1..8).map(|n| (TAU * hz * n as f32 * t).sin() / n as f32).sum::<f32>();
        harmonics * (-3.0 * (t % beat) / beat).exp()
    };
    let chord =
        |t: f32, root: f32| [0, 4, 7].map(|steps| tone(t, root * SEMITONE.powi(steps), 1.0)).iter().sum::<f32>();
    let drum = |t: f32, noise: f32, beat: f32| noise * (-30.0 * (t % beat)).exp();
    // A voice: vibrato of 5 Hz.
    let voice = |t: f32, hz: f32| tone(t, hz, 2.0) + (TAU * hz * t + 3.0 * (TAU * 5.0 * t).sin()).sin();
    vec![
        sound(&|_, _| 0.0),
        sound(&|_, noise| 0.9 * noise),
        sound(&|_, noise| 0.003 * noise),
        sound(&|t, _| 0.5 * (TAU * 440.0 * t).sin()),
        // Up to the Nyquist frequency.
        sound(&|t, _| 0.5 * (TAU * rate / 4.0 * t * t / seconds as f32).sin()),
        sound(&|t, _| 0.1 * chord(t, 220.0)),
        sound(&|t, _| 0.02 * chord(t, 880.0)),
        sound(&|t, noise| 0.6 * drum(t, noise, 0.5)),
        sound(&|t, noise| 0.5 * drum(t, noise, 0.125) + 0.3 * tone(t, 55.0, 0.25)),
        sound(&|t, _| 0.2 * voice(t, 330.0)),
        sound(&|t, noise| {
            0.3 * drum(t, noise, 0.5) + 0.05 * chord(t, 110.0) + 0.1 * voice(t, 440.0) + 0.2 * tone(t, 55.0, 0.5)
        }),
        sound(&|t, noise| (0.5 * chord(t, 164.8) + 0.05 * noise).clamp(-0.9, 0.9)),
    ]
}

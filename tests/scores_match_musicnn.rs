//! The imported models give the scores of the original musicnn package on the same PCM. The golden scores are in
//! `tests/references`, with the script that made them.

use std::{fs, path::PathBuf};

use safetensors::SafeTensors;
use tonearm_schemas::prediction::Prediction;
use tonearm_tests::{
    audio::wav_of,
    program::{answer, command},
    root,
};

/// A tenth of what is promised. TensorFlow's and libtorch's float32 differ by 1e-6; frames off by one sample, or a
/// batch norm with another epsilon, move scores by more than 1e-3.
const TOLERANCE: f32 = 1e-4;
/// What bfloat16 may add, where it is on by default.
const TOLERANCE_BFLOAT16: f32 = 1e-2;
/// The part of the golden PCM that is shorter than one window.
const SHORT: std::ops::Range<usize> = 56_000..86_001;

fn reference(name: &str) -> PathBuf {
    root().join("tests/references").join(name)
}

fn tensor(file: &str, name: &str) -> Vec<f32> {
    let bytes = fs::read(reference(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let data = tensors.tensor(name).unwrap_or_else(|e| panic!("{name} in {file}: {e}")).data();
    data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn labels(model: &str) -> Vec<String> {
    let text = fs::read_to_string(reference("labels.json")).expect("labels.json");
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    serde_json::from_value(all[model].clone()).expect("a list of labels")
}

fn predict(model: &str, precision: &str, pcm: &[f32]) -> Prediction {
    let file = tempfile::NamedTempFile::with_suffix(".wav").expect("a file");
    fs::write(file.path(), wav_of(pcm, 16_000)).expect("a file");
    let options = ["--json", "--windows", "--labels", "all", "--precision", precision, "--model", model];
    let mut command = command(["predict"]);
    command.args(options).arg(file.path());
    let answer = answer(command);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    serde_json::from_str(&answer.out).expect("a prediction")
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{what}: within {worst:.1e}");
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

fn scores(prediction: &Prediction) -> Vec<f32> {
    prediction.windows.iter().flatten().flat_map(|window| window.scores.clone()).collect()
}

fn check(model: &str) {
    check_in(model, "float32", TOLERANCE);
    // What bfloat16 needs, as the program says it.
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        check_in(model, "bfloat16", TOLERANCE_BFLOAT16);
        assert_eq!(predict(model, "auto", &[0.0; 50_000]).model.precision, "bfloat16", "the importer found it good");
    } else {
        assert_eq!(predict(model, "auto", &[0.0; 50_000]).model.precision, "float32");
    }
}

fn check_in(model: &str, precision: &str, tolerance: f32) {
    let pcm = tensor("spectrograms.safetensors", "musicnn.pcm");
    let prediction = predict(model, precision, &pcm);
    assert_eq!((prediction.model.name.as_str(), prediction.model.version.as_str()), (model, "1.0.0"));
    assert_eq!(prediction.model.precision, precision);
    assert_close(
        &scores(&prediction),
        &tensor("scores.safetensors", &format!("{model}.windows")),
        tolerance,
        "each window",
    );

    // Each label with its mean: a swapped pair of labels shows here.
    let names = labels(model);
    assert_eq!(prediction.labels.len(), names.len());
    let of_label = |name: &String| prediction.labels.iter().find(|found| found.label == *name).map(|found| found.score);
    let means: Vec<f32> = names.iter().map(|name| of_label(name).unwrap_or_else(|| panic!("no {name}"))).collect();
    assert_close(&means, &tensor("scores.safetensors", &format!("{model}.mean")), tolerance, "the mean of each label");

    let short = predict(model, precision, &pcm[SHORT]);
    assert!(short.audio.padded, "a track shorter than a window is flagged");
    let expected = tensor("scores.safetensors", &format!("{model}.short_track"));
    assert_close(&scores(&short), &expected, tolerance, "the track shorter than a window");
}

#[test]
fn musicnn_mtt_scores_as_the_original() {
    check("musicnn-mtt");
}

#[test]
fn musicnn_msd_scores_as_the_original() {
    check("musicnn-msd");
}

#[test]
fn vgg_mtt_scores_as_the_original() {
    check("vgg-mtt");
}

#[test]
fn vgg_msd_scores_as_the_original() {
    check("vgg-msd");
}

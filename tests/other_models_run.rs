//! A model that the program does not compile runs by libtorch and gives the scores it would give compiled; the log says
//! so, and why. A model's logits become scores.

use tonearm_schemas::{
    manifest::OutputKind::{Logits, Scores},
    prediction::Prediction,
};
use tonearm_tests::{
    answers::{text, with},
    audio::wav,
    broker::Topics,
    models::{MEANS, Model, model, tiny, with_weights},
    program::Run,
    records::{Input, Reader, publish, read_all},
};

/// Labels and windows of a track of several windows.
fn scores(model: &Model) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("chord.wav");
    std::fs::write(&path, wav(220.0, 1.5, 8_000, 1)).expect("a file");
    let settings = [("TONEARM__MODELS__DIR", text(&model.repository)), ("TONEARM__MODEL__NAME", &model.name)];
    let answer = with(&settings, &["predict", "--json", "--windows", "--labels", "all", text(&path)]);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    let prediction: Prediction = serde_json::from_str(&answer.out).expect("a prediction");
    let labels = prediction.labels.iter().map(|label| label.score).collect();
    let windows = prediction.windows.expect("they were asked for").into_iter().map(|window| window.scores);
    [labels].into_iter().chain(windows).collect()
}

/// Two engines round differently.
fn assert_same(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len(), "labels and windows");
    let differences = found.iter().flatten().zip(expected.iter().flatten()).map(|(a, b)| (a - b).abs());
    assert!(differences.fold(0.0, f32::max) <= 1e-6, "{found:?} instead of {expected:?}");
}

/// What the log of `tonearm run` says of its model, after one record was predicted.
fn engine(model: &Model) -> String {
    let topics = Topics::new(1);
    let running = Run::new(&topics).model(model).start();
    publish(&topics.audio, &[Input::new(0, "chord", wav(220.0, 1.5, 8_000, 1))]);
    Reader::new(&[&topics.predictions]).take(1);
    let log = running.stop();
    assert_eq!(read_all(&topics.rejected).len(), 0);
    line(&log)
}

/// What a log says of the model.
fn line(log: &str) -> String {
    log.lines().find(|line| line.contains("model is warm")).expect("a line of the model").to_owned()
}

/// [`tiny`] with another operation in the way, which changes nothing.
fn with_operation(name: &str, operation: &str) -> Model {
    model(name, &[&format!("y = {operation}"), &format!("return torch.sigmoid({})", MEANS.replace("(x", "(y"))], Scores)
}

#[test]
fn a_model_with_an_operation_that_is_not_known_runs_by_libtorch_and_the_log_names_the_operation() {
    let unknown = with_operation("unknown", "torch.clamp(x, -1000., 1000.)");
    assert_same(&scores(&unknown), &scores(&tiny()));
    let line = engine(&unknown);
    assert!(line.contains("torchscript (torch.clamp is not known)"), "{line}");
}

#[test]
fn a_model_with_a_loop_runs_by_libtorch_and_the_log_says_why() {
    let sum = format!("return torch.sigmoid({MEANS})");
    let line = engine(&model("loop", &["for i in range(3):", "  x = torch.relu(x)", &sum], Scores));
    assert!(line.contains("torchscript (") && line.contains("for"), "{line}");
}

#[test]
fn a_model_that_cannot_be_compared_runs_by_libtorch() {
    // 2^130 times anything but zero is infinite, and a sum of infinities of both signs is no number.
    let mut lines = vec!["h = torch.reshape(x, [1, 1600])"];
    lines.extend(["h = torch.add(h, h)"; 130]);
    lines.push("return torch.sigmoid(torch.linear(h, self.w0, None))");
    let repository = tempfile::tempdir().expect("a folder");
    let model = with_weights(repository.path(), &[&[4, 1600]], &lines);
    let line = line(&Run::new(&Topics::new(1)).model(&model).ready().stop());
    assert!(line.contains("torchscript (it fails on a window of noise)"), "{line}");
}

#[test]
fn a_model_of_known_operations_is_compiled_and_the_log_says_so() {
    let line = engine(&tiny());
    assert!(line.contains("compiled") && !line.contains("torchscript"), "{line}");
}

#[test]
fn logits_become_scores_by_a_sigmoid_whoever_runs_the_model() {
    let expected = scores(&tiny());
    assert!(expected.iter().flatten().all(|score| (0.01..0.99).contains(score)), "these show a sigmoid: {expected:?}");
    let compiled = model("logits", &[&format!("return {MEANS}")], Logits);
    let unknown = model("logits-unknown", &[&format!("return torch.clamp({MEANS}, -1000., 1000.)")], Logits);
    for model in [compiled, unknown] {
        assert_same(&scores(&model), &expected);
    }
}

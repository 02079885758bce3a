//! What is published of the types is what the types say: JSON Schemas and golden records.
//!
//! `make schemas` writes the schemas anew. A golden record that no longer reads is a break of the contract: readers
//! have such records on disk.

use std::{fs, path::PathBuf};

use schemars::{JsonSchema, schema_for};
use tonearm_schemas::{
    manifest::Manifest,
    prediction::{Prediction, SCHEMA, Source},
    reject::{Reject, RejectClass, Stage},
};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn check_schema<T: JsonSchema>(name: &str) {
    let current = serde_json::to_string_pretty(&schema_for!(T)).unwrap() + "\n";
    let path = file(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &current).unwrap();
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(published == current, "{} is not what the types say; `make schemas` writes it", path.display());
}

#[test]
fn the_published_schema_of_predictions_is_current() {
    check_schema::<Prediction>("json/prediction-1.json");
}

#[test]
fn the_published_schema_of_manifests_is_current() {
    check_schema::<Manifest>("json/model-1.json");
}

#[test]
fn golden_predictions_are_read_and_written_as_they_are() {
    for name in ["golden/prediction-of-a-record.json", "golden/prediction-of-a-file.json"] {
        let text = fs::read_to_string(file(name)).unwrap();
        let prediction: Prediction = serde_json::from_str(&text).unwrap();
        assert_eq!(prediction.schema, SCHEMA);
        assert_eq!(serde_json::to_string_pretty(&prediction).unwrap() + "\n", text, "{name}");
    }
}

#[test]
fn a_prediction_says_whether_it_is_of_a_record_or_a_file() {
    let read = |name: &str| -> Prediction { serde_json::from_str(&fs::read_to_string(file(name)).unwrap()).unwrap() };
    assert!(matches!(read("golden/prediction-of-a-record.json").source, Source::Record { partition: 3, .. }));
    assert!(matches!(read("golden/prediction-of-a-file.json").source, Source::File { .. }));
}

#[test]
fn the_headers_of_a_reject_are_the_golden_ones() {
    let reject = Reject::new(Stage::Decode, RejectClass::CorruptAudio, "packet 17 at 0.4 s is damaged");
    let headers: serde_json::Map<String, serde_json::Value> =
        reject.headers("audio", 3, 1187).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let golden: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(file("golden/reject-headers.json")).unwrap()).unwrap();
    assert_eq!(serde_json::Value::from(headers), golden);
}

#[test]
fn scores_keep_at_least_six_significant_digits() {
    let text = fs::read_to_string(file("golden/prediction-of-a-record.json")).unwrap();
    let mut prediction: Prediction = serde_json::from_str(&text).unwrap();
    for score in [0.123_456_79_f32, 1.234_567_9e-5, 0.999_999_94] {
        prediction.labels[0].score = score;
        let written = serde_json::to_string(&prediction).unwrap();
        let read: Prediction = serde_json::from_str(&written).unwrap();
        assert_eq!(read.labels[0].score, score, "float32 survives unchanged");
    }
}

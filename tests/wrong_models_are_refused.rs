//! A model that is missing, damaged or not what its manifest says is refused in one clear sentence with both values.

use std::{fs, path::PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tonearm_tests::{
    answers::{A_PERSON, FAILED, assert_says, assert_says_only, file, text, tonearm, with},
    audio::wav,
    program::Answer,
    root,
};

/// A repository with a copy of musicnn-mtt that may be spoilt.
struct Repository(TempDir);

impl Repository {
    fn new() -> Self {
        let repository = Self(tempfile::tempdir().expect("a folder"));
        let original = root().join("models/repository/musicnn-mtt/1.0.0");
        fs::create_dir_all(repository.file("")).expect("a folder");
        for name in ["model.toml", "model.pt"] {
            fs::copy(original.join(name), repository.file(name)).expect("make models was run");
        }
        repository
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join("musicnn-mtt/1.0.0").join(name)
    }

    fn edit(&self, from: &str, to: &str) {
        let manifest = fs::read_to_string(self.file("model.toml")).expect("a manifest");
        assert!(manifest.contains(from), "{from:?} is not in the manifest");
        fs::write(self.file("model.toml"), manifest.replacen(from, to, 1)).expect("a manifest");
    }

    fn predict(&self) -> Answer {
        let tone = file(".wav", wav(220.0, 0.5, 16_000, 1));
        with(&[("TONEARM__MODELS__DIR", text(self.0.path()))], &["predict", text(tone.path())])
    }
}

#[test]
fn a_missing_model_is_named_with_those_there_are() {
    let answer = tonearm(&["predict", "--model", "nobody", "x.wav"]);
    assert_says_only(&answer, A_PERSON, &["nobody", "musicnn-mtt@1.0.0", "vgg-msd@1.0.0"]);
}

#[test]
fn a_missing_version_is_named_with_those_there_are() {
    let answer = tonearm(&["predict", "--model", "musicnn-mtt@9.9.9", "x.wav"]);
    assert_says_only(&answer, A_PERSON, &["musicnn-mtt@9.9.9", "musicnn-mtt@1.0.0"]);
}

#[test]
fn an_empty_repository_says_how_to_fill_it() {
    let empty = tempfile::tempdir().expect("a folder");
    let answer = with(&[("TONEARM__MODELS__DIR", text(empty.path()))], &["predict", "x.wav"]);
    assert_says_only(&answer, A_PERSON, &["musicnn-mtt", text(empty.path()), "tonearm models import"]);
}

#[test]
fn a_damaged_model_is_refused_with_both_hashes() {
    let repository = Repository::new();
    let mut bytes = fs::read(repository.file("model.pt")).expect("a model");
    let expected = format!("{:x}", Sha256::digest(&bytes));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let found = format!("{:x}", Sha256::digest(&bytes));
    fs::write(repository.file("model.pt"), bytes).expect("a model");
    assert_says_only(&repository.predict(), FAILED, &["model.pt", &expected, &found]);
}

#[test]
fn a_manifest_with_another_hash_is_refused_with_both() {
    let repository = Repository::new();
    let found = format!("{:x}", Sha256::digest(fs::read(repository.file("model.pt")).expect("a model")));
    let wrong = "0".repeat(64);
    repository.edit(&found, &wrong);
    assert_says_only(&repository.predict(), FAILED, &["model.pt", &wrong, &found]);
}

#[test]
fn a_manifest_with_an_unknown_key_is_refused_with_its_name() {
    let repository = Repository::new();
    repository.edit("[windows]\n", "[windows]\noverlap = 3\n");
    assert_says(&repository.predict(), FAILED, &["model.toml", "overlap"]);
}

#[test]
fn a_manifest_with_impossible_values_is_refused_with_all_of_them() {
    let repository = Repository::new();
    repository.edit("n_fft = 512", "n_fft = 511");
    repository.edit("sample_rate_hz = 16000", "sample_rate_hz = 3000");
    assert_says_only(&repository.predict(), FAILED, &["model.toml", "n_fft 511", "sample_rate_hz 3000"]);
}

#[test]
fn a_manifest_with_a_label_too_many_is_refused_with_both_counts() {
    let repository = Repository::new();
    repository.edit("labels = [", "labels = [\"one more\", ");
    assert_says_only(&repository.predict(), FAILED, &["51 labels", "[1, 50]"]);
}

#[test]
fn a_manifest_of_another_model_is_refused_with_both_names() {
    let repository = Repository::new();
    repository.edit("name = \"musicnn-mtt\"", "name = \"somebody-else\"");
    assert_says_only(&repository.predict(), FAILED, &["somebody-else", "musicnn-mtt"]);
}

#[test]
fn a_model_of_another_shape_is_refused_with_what_the_manifest_says() {
    let repository = Repository::new();
    repository.edit("bands = 96", "bands = 64");
    assert_says_only(&repository.predict(), FAILED, &["model.pt", "187 frames", "64 bands"]);
}

#[test]
fn a_model_that_is_no_torchscript_is_refused() {
    let repository = Repository::new();
    let hash = format!("{:x}", Sha256::digest(fs::read(repository.file("model.pt")).expect("a model")));
    repository.edit(&hash, &format!("{:x}", Sha256::digest("no model")));
    fs::write(repository.file("model.pt"), "no model").expect("a file");
    assert_says_only(&repository.predict(), FAILED, &["model.pt", "not a TorchScript model"]);
}

#[test]
fn verify_names_every_model_that_is_not_good() {
    let repository = Repository::new();
    fs::write(repository.file("model.pt"), "no model").expect("a file");
    let answer = with(&[("TONEARM__MODELS__DIR", text(repository.0.path()))], &["models", "verify"]);
    assert_says_only(&answer, FAILED, &["musicnn-mtt@1.0.0", "SHA-256"]);
}

#[test]
fn a_wheel_that_is_not_there_is_named() {
    assert_says_only(&tonearm(&["models", "import", "nowhere.whl"]), FAILED, &["nowhere.whl"]);
}

//! `model.toml`: what a model is, and the whole front end it was trained on.
//!
//! The program obeys the manifest; nothing about any one model is compiled in.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};

/// The value of the `schema` key of a [`Manifest`].
pub const SCHEMA: &str = "tonearm.model/1";
/// The name of a manifest in its model's folder.
pub const FILE_NAME: &str = "model.toml";

/// A model and its front end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "tonearm.model/1")]
pub struct Manifest {
    /// Always `tonearm.model/1`.
    pub schema: String,
    /// Lower-case letters, digits and dashes; the name of the model's folder.
    pub name: String,
    /// Semantic version; the name of the folder below.
    pub version: semver::Version,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// Where the weights come from, for a person.
    pub source: String,
    /// The TorchScript file beside the manifest.
    pub file: String,
    /// SHA-256 of that file, 64 hexadecimal digits.
    pub sha256: String,
    pub audio: AudioSpec,
    pub features: FeatureSpec,
    pub windows: WindowSpec,
    pub output: OutputSpec,
    /// How the model does in bfloat16, found when it was imported. Without it, precision `auto` is float32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfloat16: Option<ReducedPrecision>,
}

/// How far a model's scores in a faster arithmetic are from those in float32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReducedPrecision {
    /// The largest difference of any score, 0..=1.
    pub worst_difference: f32,
    /// How many windows were compared.
    pub windows: usize,
    /// Older importers wrote it; it says nothing any more.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub fast_fir: IgnoredAny,
}

impl ReducedPrecision {
    /// Whether scores are close enough to float32's.
    pub fn keeps_scores(&self) -> bool {
        self.windows > 0 && self.worst_difference <= MAX_DIFFERENCE_AT_IMPORT
    }
}

/// How far the scores of a faster arithmetic that is on by default may be from float32's.
pub const MAX_DIFFERENCE: f32 = 1e-2;
/// What is found at import must leave room for music that was not tried.
const MAX_DIFFERENCE_AT_IMPORT: f32 = MAX_DIFFERENCE / 2.0;

/// The PCM the features are computed from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AudioSpec {
    /// Frames per second, 8000..=192000 Hz.
    pub sample_rate_hz: u32,
    /// How channels become one.
    pub channels: Channels,
    /// The resampler the training audio went through.
    pub resampler: ResamplerKind,
}

/// How the channels of a track become the model's one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Channels {
    /// The mean over all channels.
    MonoMean,
}

/// The resampler's response, named after the resampler whose edges it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ResamplerKind {
    /// Flat to 0.913 of the lower Nyquist frequency, 100 dB down from 1.0 of it: soxr HQ, librosa's default.
    SoxrHq,
}

/// How PCM becomes frames of features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FeatureSpec {
    LogMel(LogMelSpec),
}

/// Log-mel frames: `log(mel × |STFT|^power)`, `[frames × bands]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogMelSpec {
    /// Samples in the transform and in the window function.
    pub n_fft: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    pub window: WindowFunction,
    pub padding: Padding,
    /// Exponent of the magnitude: 1 for amplitude, 2 for power.
    pub power: f32,
    /// Mel bands per frame.
    pub bands: usize,
    pub mel_scale: MelScale,
    pub mel_norm: MelNorm,
    /// Lower edge of the lowest band, Hz.
    pub min_hz: f32,
    /// Upper edge of the highest band, Hz.
    pub max_hz: f32,
    pub log: LogSpec,
}

/// The window a frame is multiplied with before the transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WindowFunction {
    /// Periodic Hann.
    Hann,
    /// Periodic Hamming.
    Hamming,
}

/// Where frame 0 lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Frame `i` is centred on sample `i × hop`; zeros before the start and after the end; `1 + samples / hop` frames.
    CenterZero,
    /// Frame `i` starts at sample `i × hop`; `1 + (samples - n_fft) / hop` frames, none where `samples < n_fft`.
    None,
}

/// The scale the bands are equally spaced on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MelScale {
    /// Linear below 1 kHz, logarithmic above (Slaney's Auditory Toolbox, librosa's default).
    Slaney,
    /// `2595 · log10(1 + f / 700)`.
    Htk,
}

/// How the triangle of a band is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MelNorm {
    /// Every triangle has the same area: `2 / (upper - lower)`.
    Slaney,
    /// Every triangle peaks at 1.
    None,
}

/// The logarithm at the end of the front end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogSpec {
    /// The base of `log(scale · x + offset)`.
    pub base: LogBase,
    pub scale: f32,
    pub offset: f32,
}

/// Base of a logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogBase {
    #[serde(rename = "10")]
    Ten,
    #[serde(rename = "e")]
    E,
}

/// How frames become the model's input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WindowSpec {
    /// Frames in a window.
    pub frames: usize,
    /// Frames from the start of one window to the start of the next.
    pub hop: usize,
    pub tail: Tail,
    pub short: Short,
}

/// What happens to frames after the last whole window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    /// They are dropped.
    Drop,
    /// The track is followed by as much silence as makes one more whole window.
    Pad,
}

/// What happens to a track shorter than one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Short {
    /// It is followed by as much silence as makes one window, and the prediction is flagged.
    Pad,
    /// It is rejected as `too-short`.
    Reject,
}

/// What comes out of the model for one window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    pub kind: OutputKind,
    /// One label per score, in the model's order.
    pub labels: Vec<String>,
}

/// What the model's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutputKind {
    /// Independent probabilities per label, 0..=1: the sigmoid is in the model.
    Scores,
    /// Logits of independent labels: a sigmoid is applied.
    Logits,
}

/// Everything wrong with a manifest, one sentence each.
#[derive(Debug, thiserror::Error)]
pub struct ManifestError {
    pub problems: Vec<String>,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// The text is not TOML, has unknown or missing keys, or values the stages cannot obey; all such values are named.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self =
            toml::from_str(text).map_err(|e| ManifestError { problems: vec![e.to_string().trim_end().to_owned()] })?;
        let problems = manifest.problems();
        if problems.is_empty() { Ok(manifest) } else { Err(ManifestError { problems }) }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        check(self.schema == SCHEMA, format!("schema is {:?}, this version reads {SCHEMA:?}", self.schema));
        check(
            !self.name.is_empty() && self.name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')),
            format!("name {:?} must be lower-case letters, digits and dashes", self.name),
        );
        check(
            !self.file.is_empty() && !self.file.contains(['/', '\\']),
            format!("file {:?} must be a file name beside the manifest", self.file),
        );
        check(
            self.sha256.len() == 64 && self.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
            format!("sha256 {:?} must be 64 lower-case hexadecimal digits", self.sha256),
        );
        let rate = self.audio.sample_rate_hz;
        check((8000..=192_000).contains(&rate), format!("audio.sample_rate_hz {rate} is outside 8000..=192000"));
        let FeatureSpec::LogMel(mel) = &self.features;
        check(
            (16..=65_536).contains(&mel.n_fft) && mel.n_fft.is_multiple_of(2),
            format!("features.n_fft {} must be even, 16..=65536", mel.n_fft),
        );
        check(
            (1..=mel.n_fft).contains(&mel.hop),
            format!("features.hop {} is outside 1..={} (n_fft)", mel.hop, mel.n_fft),
        );
        check((1..=1024).contains(&mel.bands), format!("features.bands {} is outside 1..=1024", mel.bands));
        check(mel.power > 0.0 && mel.power <= 4.0, format!("features.power {} must be above 0, at most 4", mel.power));
        let nyquist = rate as f32 / 2.0;
        check(
            0.0 <= mel.min_hz && mel.min_hz < mel.max_hz && mel.max_hz <= nyquist,
            format!("features.min_hz {} and max_hz {} must be in order within 0..={nyquist}", mel.min_hz, mel.max_hz),
        );
        check(
            mel.log.scale > 0.0 && mel.log.offset > 0.0 && mel.log.scale.is_finite() && mel.log.offset.is_finite(),
            format!("features.log scale {} and offset {} must be above 0", mel.log.scale, mel.log.offset),
        );
        let WindowSpec { frames, hop, .. } = self.windows;
        check((1..=100_000).contains(&frames), format!("windows.frames {frames} is outside 1..=100000"));
        check((1..=frames).contains(&hop), format!("windows.hop {hop} is outside 1..={frames} (windows.frames)"));
        check(!self.output.labels.is_empty(), "output.labels is empty".to_owned());
        problems
    }

    /// The manifest as the text of a `model.toml`.
    pub fn to_toml(&self) -> String {
        // Every type in a manifest has a TOML form, so this cannot fail.
        toml::to_string(self).unwrap_or_default()
    }

    /// Values in one window: `[frames × bands]`.
    pub fn window_len(&self) -> usize {
        let FeatureSpec::LogMel(mel) = &self.features;
        self.windows.frames * mel.bands
    }

    /// Whether bfloat16 was tried with this model and keeps its scores close enough to float32's.
    pub fn keeps_scores_in_bfloat16(&self) -> bool {
        self.bfloat16.as_ref().is_some_and(ReducedPrecision::keeps_scores)
    }

    /// Seconds from one frame to the next.
    pub fn seconds_per_frame(&self) -> f64 {
        let FeatureSpec::LogMel(mel) = &self.features;
        mel.hop as f64 / f64::from(self.audio.sample_rate_hz)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        schema = "tonearm.model/1"
        name = "tiny"
        version = "1.0.0"
        licence = "ISC"
        source = "made for a test"
        file = "model.pt"
        sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
        [audio]
        sample_rate_hz = 16000
        channels = "mono-mean"
        resampler = "soxr-hq"
        [features]
        kind = "log-mel"
        n_fft = 512
        hop = 256
        window = "hann"
        padding = "center-zero"
        power = 2.0
        bands = 96
        mel_scale = "slaney"
        mel_norm = "slaney"
        min_hz = 0.0
        max_hz = 8000.0
        log = { base = "10", scale = 10000.0, offset = 1.0 }
        [windows]
        frames = 187
        hop = 187
        tail = "drop"
        short = "pad"
        [output]
        kind = "scores"
        labels = ["loud"]
    "#;

    #[test]
    fn a_manifest_survives_being_written_and_read() {
        let manifest = Manifest::parse(MINIMAL).unwrap();
        assert_eq!(Manifest::parse(&manifest.to_toml()).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_of_an_older_importer_is_read() {
        let found = "[bfloat16]\nworst_difference = 0.004\nwindows = 24\n";
        let new = Manifest::parse(&format!("{MINIMAL}{found}")).unwrap();
        assert!(new.keeps_scores_in_bfloat16());
        assert_eq!(Manifest::parse(&format!("{MINIMAL}{found}fast_fir = true\n")).unwrap(), new);
        assert!(!new.to_toml().contains("fast_fir"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        for (section, key) in [("[windows]", "overlap = 3"), ("[features]", "octaves = 3"), ("[audio]", "bits = 3")] {
            let text = MINIMAL.replace(section, &format!("{section}\n{key}"));
            let error = Manifest::parse(&text).unwrap_err().to_string();
            assert!(error.contains(key.split(' ').next().unwrap()), "{error}");
        }
    }

    #[test]
    fn every_wrong_value_is_reported_at_once() {
        let text = MINIMAL.replace("hop = 187", "hop = 0").replace("n_fft = 512", "n_fft = 511");
        let problems = Manifest::parse(&text).unwrap_err().problems;
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}

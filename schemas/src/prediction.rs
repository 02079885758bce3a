//! The record on the predictions topic: `tonearm.prediction/1`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The value of the `schema` field of a [`Prediction`].
pub const SCHEMA: &str = "tonearm.prediction/1";
/// The `content-type` header of a prediction record.
pub const CONTENT_TYPE: &str = "application/json";

/// What the model says about one track.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "tonearm.prediction/1")]
pub struct Prediction {
    /// Always `tonearm.prediction/1`.
    #[schemars(extend("const" = SCHEMA))]
    pub schema: String,
    /// Unique per input record: `<topic>-<partition>-<offset>`, or the file name where there is no topic.
    pub id: String,
    /// The record's key, where it is UTF-8 text; null where there is no key.
    pub track: Option<String>,
    pub source: Source,
    pub audio: Audio,
    pub model: Model,
    /// The labels with the highest mean score over all windows, best first.
    pub labels: Vec<Label>,
    /// The scores of every window, in time order; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<Vec<Window>>,
    pub timing_ms: Timing,
    /// Program and version, `tonearm 0.1.0`.
    pub produced_by: String,
}

/// Where the audio came from: a record of a topic, or a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Source {
    Record {
        topic: String,
        partition: i32,
        offset: i64,
        /// The record's timestamp in milliseconds since 1970; null where the record has none.
        timestamp_ms: Option<i64>,
    },
    File {
        /// The path as it was given.
        file: String,
    },
}

/// The audio as it was decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Audio {
    /// The codec under the name ffmpeg gives it: `mp3`, `aac`, `flac`, `pcm_s16le`, ….
    pub codec: String,
    /// Frames per second of the encoded audio, in Hz.
    pub sample_rate_hz: u32,
    pub channels: u32,
    /// Frames after the encoder's delay and padding are cut off; one frame is one sample of every channel.
    pub frames: u64,
    /// `frames / sample_rate_hz`, in seconds.
    pub duration_s: f64,
    /// BLAKE3 of the encoded bytes, 64 hexadecimal digits.
    pub blake3: String,
    /// True where the track is shorter than one window and was padded with silence to fill it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub padded: bool,
}

/// The model that gave the scores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    pub name: String,
    pub version: String,
    /// SHA-256 of the model file, 64 hexadecimal digits.
    pub sha256: String,
    /// The arithmetic the scores were computed in: `float32`, ….
    pub precision: String,
}

/// One label with its mean score over all windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Label {
    pub label: String,
    pub score: f32,
}

/// The scores of one window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Window {
    /// Start of the window in seconds from the start of the track.
    pub start_s: f64,
    /// End of the window in seconds from the start of the track.
    pub end_s: f64,
    /// One score per label of the model, in the manifest's order.
    pub scores: Vec<f32>,
}

/// Where the time went, in milliseconds of wall time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// From being read to being started on.
    pub queue: f64,
    /// Decoding and resampling.
    pub decode: f64,
    pub features: f64,
    /// The model; the sum over windows, which may have been computed side by side.
    pub infer: f64,
    /// From being read to being finished.
    pub total: f64,
}

//! Blocks: what travels between stages that run in different processes.
//!
//! A track becomes one block or more, in order, on one partition of `audio.pcm` or `audio.features`. The value is in
//! safetensors' format, so `safetensors.numpy.load(value)` reads it; the headers say of which track it is and what the
//! next stage needs to know. The track's last block says how it ended.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors, View, tensor::TensorView};
use serde::{Deserialize, Serialize};

use crate::{
    manifest::{AudioSpec, FeatureSpec, WindowSpec},
    prediction::{Audio, Source, Timing},
};

/// The `content-type` header of a block.
pub const CONTENT_TYPE: &str = "application/safetensors";

/// Names of a block's headers. All values are UTF-8 text.
pub mod header {
    /// `tonearm.pcm/1` or `tonearm.features/1`.
    pub const SCHEMA: &str = "tonearm.schema";
    /// The block's number within its track, decimal, from 0.
    pub const INDEX: &str = "tonearm.block.index";
    /// `true` or `false`: whether it is the track's last.
    pub const LAST: &str = "tonearm.block.last";
    /// JSON: a [`BlockTrack`](super::BlockTrack).
    pub const TRACK: &str = "tonearm.track";
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// `pcm: f32 [samples]`: mono at the model's rate, −1..=1.
    Pcm,
    /// `features: f32 [windows × frames × bands]` and `start_frame: i64 [windows]`, the first frame of each window.
    Features,
}

impl BlockKind {
    /// The value of the header [`header::SCHEMA`].
    pub fn schema(self) -> &'static str {
        match self {
            Self::Pcm => "tonearm.pcm/1",
            Self::Features => "tonearm.features/1",
        }
    }
}

/// The track a block is of, and how its values were made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockTrack {
    /// The `id` its prediction will have.
    pub id: String,
    /// The record it was read from.
    pub source: Source,
    pub front_end: FrontEnd,
    /// Only in the last block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<TrackEnd>,
}

/// The part of a model's manifest that the values depend on. The next stage's model must have the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontEnd {
    pub audio: AudioSpec,
    /// Only for features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<FeatureSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowSpec>,
}

/// How a track ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackEnd {
    /// All of it is in its blocks.
    Whole { audio: Audio, timing_ms: Timing },
    /// It was rejected on the way: the blocks before this one are of no use.
    Rejected,
}

/// Why a record is not a block, or not one that this process can use.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("header {name} is missing")]
    MissingHeader { name: &'static str },
    #[error("header {name} is {found:?}, {allowed}")]
    WrongHeader { name: &'static str, found: String, allowed: String },
    #[error("the value is not in safetensors' format: {0}")]
    NotSafetensors(#[from] safetensors::SafeTensorError),
    #[error("tensor {name} is {found}, this model needs {needed}")]
    WrongTensor { name: &'static str, found: String, needed: String },
}

/// What the headers of a block say.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockHead {
    pub index: u64,
    pub track: BlockTrack,
}

impl BlockHead {
    /// The headers, in a fixed order.
    pub fn headers(&self, kind: BlockKind) -> [(&'static str, String); 4] {
        [
            (header::SCHEMA, kind.schema().to_owned()),
            (header::INDEX, self.index.to_string()),
            (header::LAST, self.track.end.is_some().to_string()),
            // Every type in it has a JSON form.
            (header::TRACK, serde_json::to_string(&self.track).unwrap_or_default()),
        ]
    }

    /// Reads the headers of a block of `kind`; `get` finds the text of a header.
    ///
    /// # Errors
    /// A header is missing or wrong.
    pub fn read<'a>(kind: BlockKind, get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, BlockError> {
        let text = |name: &'static str| get(name).ok_or(BlockError::MissingHeader { name });
        let wrong = |name: &'static str, found: &str, allowed: String| BlockError::WrongHeader {
            name,
            found: found.to_owned(),
            allowed,
        };
        let schema = text(header::SCHEMA)?;
        if schema != kind.schema() {
            return Err(wrong(header::SCHEMA, schema, format!("{:?} is wanted", kind.schema())));
        }
        let index = text(header::INDEX)?;
        let index = index.parse().map_err(|_| wrong(header::INDEX, index, "a number from 0 is wanted".to_owned()))?;
        let track = text(header::TRACK)?;
        let track: BlockTrack = serde_json::from_str(track)
            .map_err(|e| wrong(header::TRACK, track, format!("which does not read: {e}")))?;
        if !matches!(track.source, Source::Record { .. }) {
            return Err(wrong(header::TRACK, &track.id, "which is not of a record".to_owned()));
        }
        let last = text(header::LAST)?;
        if last != track.end.is_some().to_string() {
            return Err(wrong(header::LAST, last, format!("and {} says otherwise", header::TRACK)));
        }
        Ok(Self { index, track })
    }
}

/// The value of a block of PCM.
pub fn write_pcm(samples: &[f32]) -> Vec<u8> {
    write([("pcm", Tensor { dtype: Dtype::F32, shape: vec![samples.len()], bytes: le_bytes(samples) })])
}

/// The samples of a block of PCM.
///
/// # Errors
/// The value is not one.
pub fn read_pcm(value: &[u8]) -> Result<Vec<f32>, BlockError> {
    let tensors = SafeTensors::deserialize(value)?;
    let pcm = tensor(&tensors, "pcm", Dtype::F32, |shape| shape.len() == 1, || "f32 [samples]".to_owned())?;
    Ok(floats(pcm.data()))
}

/// The value of a block of features: `windows: [n × frames × bands]`, row by row.
pub fn write_features(windows: &[f32], start_frames: &[u64], frames: usize, bands: usize) -> Vec<u8> {
    let starts = start_frames.iter().flat_map(|start| (*start as i64).to_le_bytes()).collect();
    let shape = vec![start_frames.len(), frames, bands];
    write([
        ("features", Tensor { dtype: Dtype::F32, shape, bytes: le_bytes(windows) }),
        ("start_frame", Tensor { dtype: Dtype::I64, shape: vec![start_frames.len()], bytes: starts }),
    ])
}

/// The windows of a block of features, each with its first frame: `[frames × bands]`, row by row.
///
/// # Errors
/// The value is not one, or its windows have another shape.
pub fn read_features(value: &[u8], frames: usize, bands: usize) -> Result<Vec<(u64, Vec<f32>)>, BlockError> {
    let tensors = SafeTensors::deserialize(value)?;
    let needed = || format!("f32 [windows × {frames} × {bands}]");
    let right = |shape: &[usize]| matches!(shape, [_, f, b] if (*f, *b) == (frames, bands));
    let features = tensor(&tensors, "features", Dtype::F32, right, needed)?;
    let count = features.shape().first().copied().unwrap_or(0);
    let starts = tensor(&tensors, "start_frame", Dtype::I64, |shape| shape == [count], || format!("i64 [{count}]"))?;
    let (starts, _) = starts.data().as_chunks::<8>();
    let starts = starts.iter().map(|bytes| i64::from_le_bytes(*bytes).unsigned_abs());
    let windows = features.data().chunks_exact((frames * bands * size_of::<f32>()).max(1)).map(floats);
    Ok(starts.zip(windows).collect())
}

fn tensor<'a>(
    tensors: &SafeTensors<'a>,
    name: &'static str,
    dtype: Dtype,
    right: impl Fn(&[usize]) -> bool,
    needed: impl Fn() -> String,
) -> Result<TensorView<'a>, BlockError> {
    let found = tensors.tensor(name)?;
    if found.dtype() == dtype && right(found.shape()) {
        return Ok(found);
    }
    let found = format!("{:?} {:?}", found.dtype(), found.shape()).to_lowercase();
    Err(BlockError::WrongTensor { name, found, needed: needed() })
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<4>();
    values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A tensor to be written.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.bytes.as_slice().into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn write<const N: usize>(tensors: [(&'static str, Tensor); N]) -> Vec<u8> {
    // It fails only where shape and bytes differ, or a header is longer than 100 MB.
    safetensors::serialize(BTreeMap::from(tensors), None).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pcm_survives_to_the_bit() {
        let samples = [0.0, -1.0, f32::MIN_POSITIVE, 0.1];
        assert_eq!(read_pcm(&write_pcm(&samples)).unwrap(), samples);
        assert!(read_pcm(&write_pcm(&[])).unwrap().is_empty());
    }

    #[test]
    fn features_survive_to_the_bit() {
        let values: Vec<f32> = (0..12).map(|n| n as f32 / 7.0).collect();
        let value = write_features(&values, &[0, 187], 3, 2);
        let windows = read_features(&value, 3, 2).unwrap();
        assert_eq!(windows, [(0, values[..6].to_vec()), (187, values[6..].to_vec())]);
        assert!(read_features(&write_features(&[], &[], 3, 2), 3, 2).unwrap().is_empty());
    }

    #[test]
    fn a_value_of_another_shape_is_refused_with_both_shapes() {
        let error = read_features(&write_features(&[0.0; 6], &[0], 3, 2), 2, 3).unwrap_err().to_string();
        assert_eq!(error, "tensor features is f32 [1, 3, 2], this model needs f32 [windows × 2 × 3]");
        assert!(read_pcm(b"not a tensor").is_err());
        assert!(read_pcm(&write_features(&[0.0; 6], &[0], 3, 2)).is_err());
    }

    #[test]
    fn headers_are_read_as_they_were_written() {
        let manifest = crate::manifest::AudioSpec {
            sample_rate_hz: 16_000,
            channels: crate::manifest::Channels::MonoMean,
            resampler: crate::manifest::ResamplerKind::SoxrHq,
        };
        let source = Source::Record { topic: "audio".to_owned(), partition: 3, offset: 1187, timestamp_ms: Some(1) };
        let front_end = FrontEnd { audio: manifest, features: None, windows: None };
        let track = BlockTrack { id: "audio-3-1187".to_owned(), source, front_end, end: Some(TrackEnd::Rejected) };
        let head = BlockHead { index: 7, track };
        let headers = BTreeMap::from(head.headers(BlockKind::Pcm));
        let get = |name: &str| headers.get(name).map(String::as_str);
        assert_eq!(BlockHead::read(BlockKind::Pcm, get).unwrap(), head);
        let error = BlockHead::read(BlockKind::Features, get).unwrap_err().to_string();
        assert_eq!(error, "header tonearm.schema is \"tonearm.pcm/1\", \"tonearm.features/1\" is wanted");
        for missing in [header::SCHEMA, header::INDEX, header::LAST, header::TRACK] {
            let get = |name: &str| get(name).filter(|_| name != missing);
            let error = BlockHead::read(BlockKind::Pcm, get).unwrap_err().to_string();
            assert_eq!(error, format!("header {missing} is missing"));
        }
    }
}

//! Reads a TensorFlow checkpoint (the V2 "tensor bundle") without TensorFlow.
//!
//! `.index` is an SSTable in LevelDB's format that maps a variable's name to a protobuf `BundleEntryProto`
//! (tensorflow/core/protobuf/tensor_bundle.proto); `.data-00000-of-00001` holds the tensors, raw and little-endian.

use std::collections::BTreeMap;

use prost::Message;

use crate::sstable::{self, SstableError};

/// `DT_FLOAT` of tensorflow/core/framework/types.proto.
const DT_FLOAT: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct BundleEntry {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(int32, tag = "3")]
    shard_id: i32,
    #[prost(int64, tag = "4")]
    offset: i64,
    #[prost(int64, tag = "5")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, tag = "1")]
    size: i64,
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the checkpoint's index is damaged: {0}")]
    Index(#[from] SstableError),
    #[error("the checkpoint's entry for {name:?} is damaged: {source}")]
    Entry { name: String, source: prost::DecodeError },
    #[error("the checkpoint has no variable {name:?}")]
    Missing { name: String },
    #[error("variable {name:?} is stored as type {dtype} in shard {shard_id}; only float32 (1) in shard 0 is read")]
    Kind { name: String, dtype: i32, shard_id: i32 },
    #[error(
        "variable {name:?} of shape {shape:?} should lie at bytes {offset}..+{size} of a data file of {data_len} bytes"
    )]
    Range { name: String, shape: Vec<i64>, offset: i64, size: i64, data_len: usize },
}

/// A variable: `values` in row-major order of `shape`.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    pub shape: Vec<i64>,
    pub values: Vec<f32>,
}

/// A checkpoint in memory.
pub struct Checkpoint {
    entries: BTreeMap<String, BundleEntry>,
    data: Vec<u8>,
}

impl Checkpoint {
    /// Reads the index; the tensors are read when asked for.
    ///
    /// # Errors
    /// The index is not an SSTable of bundle entries.
    pub fn parse(index: &[u8], data: Vec<u8>) -> Result<Self, CheckpointError> {
        let mut entries = BTreeMap::new();
        for (key, value) in sstable::entries(index)? {
            // The empty key holds the bundle's header.
            if key.is_empty() {
                continue;
            }
            let name = String::from_utf8_lossy(&key).into_owned();
            let entry = BundleEntry::decode(value.as_slice())
                .map_err(|source| CheckpointError::Entry { name: name.clone(), source })?;
            entries.insert(name, entry);
        }
        Ok(Self { entries, data })
    }

    /// The names of all variables, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Reads one variable.
    ///
    /// # Errors
    /// There is none of that name, it is not float32, or its bytes do not lie in the data file.
    pub fn variable(&self, name: &str) -> Result<Variable, CheckpointError> {
        let entry = self.entries.get(name).ok_or_else(|| CheckpointError::Missing { name: name.to_owned() })?;
        let &BundleEntry { dtype, shard_id, offset, size, .. } = entry;
        if dtype != DT_FLOAT || shard_id != 0 {
            return Err(CheckpointError::Kind { name: name.to_owned(), dtype, shard_id });
        }
        let shape: Vec<i64> = entry.shape.iter().flat_map(|shape| &shape.dim).map(|dim| dim.size).collect();
        let wanted = shape.iter().try_fold(4i64, |bytes, dim| bytes.checked_mul(*dim));
        let bytes = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(size).ok())
            .filter(|_| wanted == Some(size))
            .and_then(|(offset, size)| self.data.get(offset..offset.checked_add(size)?));
        let Some(bytes) = bytes else {
            let data_len = self.data.len();
            return Err(CheckpointError::Range { name: name.to_owned(), shape, offset, size, data_len });
        };
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Variable { shape, values })
    }
}

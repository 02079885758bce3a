//! What is computed, as pure functions over buffers: encoded bytes → PCM → windows of features → scores.
//!
//! Every stage streams: it takes a piece, gives what it can, and keeps only what the next piece needs.
//! No Kafka, no clock, no threads here.

pub mod decode;
pub mod features;
pub mod infer;
mod mel;
mod power_spectra;
pub mod resample;
pub mod spectrogram;
pub mod windows;

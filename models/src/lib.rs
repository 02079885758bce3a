//! The model repository on disk, and the importer that fills it with musicnn's models.
//!
//! Layout: `<name>/<version>/{model.toml, model.pt}`.

pub mod checkpoint;
pub mod import;
mod network;
pub mod repository;
mod sstable;
mod trial;

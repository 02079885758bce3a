//! What the tracks of a process go through: stages, model, limits. Loaded once, shared by all workers.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use tonearm_schemas::{
    block::FrontEnd,
    manifest::{FeatureSpec, Manifest},
    reject::Stage,
};
use tonearm_stages::infer::Model;

use crate::{job::BLOCK_VALUES, stages::Stages};

/// How a prediction is written.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// How many labels, best first; `None`: all.
    pub labels: Option<NonZeroUsize>,
    /// Whether it carries the scores of every window.
    pub windows: bool,
}

/// What a record may be at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_record_bytes: usize,
    pub max_duration: Duration,
}

/// The stages of this process, with a warm model.
pub struct Catalogue {
    stages: Stages,
    /// `None` if this process does not infer.
    pub(crate) model: Option<Arc<dyn Model>>,
    pub(crate) manifest: Manifest,
    pub(crate) output: Output,
    pub(crate) limits: Limits,
}

impl Catalogue {
    /// `model` is needed if `stages` end with infer.
    pub fn new(
        stages: Stages,
        model: Option<Arc<dyn Model>>,
        manifest: Manifest,
        output: Output,
        limits: Limits,
    ) -> Self {
        Self { stages, model, manifest, output, limits }
    }

    pub fn stages(&self) -> Stages {
        self.stages
    }

    /// What of the manifest the values behind `stage` depend on.
    pub fn front_end(&self, stage: Stage) -> FrontEnd {
        let Manifest { audio, features, windows, .. } = &self.manifest;
        let behind_features = stage != Stage::Decode;
        FrontEnd {
            audio: audio.clone(),
            features: behind_features.then(|| features.clone()),
            windows: behind_features.then(|| windows.clone()),
        }
    }

    /// What the values depend on that the first of these stages takes.
    pub fn front_end_before(&self) -> FrontEnd {
        self.front_end(if self.stages.first() == Stage::Infer { Stage::Features } else { Stage::Decode })
    }

    /// Frames and bands of a window.
    pub fn window_shape(&self) -> [usize; 2] {
        let FeatureSpec::LogMel(mel) = &self.manifest.features;
        [self.manifest.windows.frames, mel.bands]
    }

    /// Everything the blocks of a track depend on besides its bytes: two processes that agree in it make the same
    /// blocks.
    pub fn fingerprint(&self) -> String {
        let front_end = serde_json::json!(self.front_end(Stage::Features));
        let Limits { max_record_bytes, max_duration } = self.limits;
        let limits = format!("{max_record_bytes} {} {BLOCK_VALUES}", max_duration.as_millis());
        let text = format!("{} {front_end} {limits}", env!("CARGO_PKG_VERSION"));
        blake3::hash(text.as_bytes()).to_hex()[..8].to_owned()
    }
}

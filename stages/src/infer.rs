//! Windows of features → scores, by a model behind a small trait.

use std::{
    fs,
    io::{self, Cursor},
    path::{Path, PathBuf},
    str::FromStr,
};

use sha2::{Digest, Sha256};
use tch::{CModule, Device, IndexOp, Kind, TchError, Tensor};
use tonearm_schemas::manifest::{FeatureSpec, Manifest, OutputKind};

/// A loaded model. Shared by all workers: `forward` may run on many threads at once.
pub trait Model: Send + Sync {
    /// Scores of one window: `[frames × bands]`, row by row → one score per label, 0..=1.
    ///
    /// The scores of a window depend on nothing but the window.
    ///
    /// # Errors
    /// The model failed on this window, or gave a score that is not a finite number.
    fn forward(&self, window: &[f32]) -> Result<Vec<f32>, ForwardError>;

    /// The arithmetic in use, as a prediction names it.
    fn precision(&self) -> Precision;
}

/// The arithmetic of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Float32,
}

impl Precision {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "float32" => Ok(Self::Float32),
            _ => Err(format!("precision {text:?} is not one of auto, float32")),
        }
    }
}

/// Why a model was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} has SHA-256 {found}, its manifest says {expected}", path.display())]
    Hash { path: PathBuf, found: String, expected: String },
    #[error("{} is not a TorchScript model: {}", path.display(), first_line(source))]
    NotTorchScript { path: PathBuf, source: TchError },
    #[error("{} fails on a window of {frames} frames × {bands} bands, as its manifest says: {}", path.display(), first_line(source))]
    Input { path: PathBuf, frames: usize, bands: usize, source: TchError },
    #[error("{} gives scores of shape {found:?}, its manifest's {labels} labels need [1, {labels}]", path.display())]
    Output { path: PathBuf, found: Vec<i64>, labels: usize },
}

/// Why a window has no scores.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("{}", first_line(.0))]
    Torch(#[from] TchError),
    #[error("the score of label {label} is {score}")]
    NotFinite { label: usize, score: f32 },
    #[error("the model panicked: {0}")]
    Panic(String),
}

/// libtorch's messages carry a C++ stack trace; the first line says what is wrong.
fn first_line(error: &TchError) -> String {
    let text = error.to_string();
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("libtorch gave no reason").to_owned()
}

/// A TorchScript model on the CPU.
pub struct TorchScript {
    module: CModule,
    input: [i64; 3],
    logits: bool,
}

impl TorchScript {
    /// Loads the model `manifest` describes from `file`, and runs it once on a window of zeros.
    ///
    /// # Errors
    /// The file's hash, input shape or number of scores is not the manifest's; both values are in the message.
    pub fn load(file: &Path, manifest: &Manifest, precision: Precision) -> Result<Self, LoadError> {
        let Precision::Float32 = precision;
        let path = file.to_owned();
        let bytes = fs::read(file).map_err(|source| LoadError::Unreadable { path: path.clone(), source })?;
        let found = format!("{:x}", Sha256::digest(&bytes));
        if found != manifest.sha256 {
            return Err(LoadError::Hash { path, found, expected: manifest.sha256.clone() });
        }

        // Windows are spread over workers, so one forward pass uses one thread. The profiling executor rewrites the
        // graph after its first runs, which would let early and late windows differ in their last bits.
        tch::set_num_threads(1);
        tch::jit::set_profiling_mode(false);
        let not_torch_script = |source| LoadError::NotTorchScript { path: path.clone(), source };
        let mut module = CModule::load_data(&mut Cursor::new(bytes)).map_err(not_torch_script)?;
        module.f_set_eval().map_err(not_torch_script)?;

        let FeatureSpec::LogMel(mel) = &manifest.features;
        let (frames, bands) = (manifest.windows.frames, mel.bands);
        let model = Self {
            module,
            input: [1, frames as i64, bands as i64],
            logits: manifest.output.kind == OutputKind::Logits,
        };
        let scores = model.run(&vec![0.0; frames * bands]).map_err(|source| LoadError::Input {
            path: path.clone(),
            frames,
            bands,
            source,
        })?;
        let labels = manifest.output.labels.len();
        if scores.size() != [1, labels as i64] {
            return Err(LoadError::Output { path, found: scores.size(), labels });
        }
        Ok(model)
    }

    fn run(&self, window: &[f32]) -> Result<Tensor, TchError> {
        tch::no_grad(|| {
            let input = Tensor::f_from_slice(window)?.f_reshape(self.input)?;
            let output = self.module.forward_ts(&[input])?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            if self.logits { output.f_sigmoid() } else { Ok(output) }
        })
    }
}

impl Model for TorchScript {
    fn forward(&self, window: &[f32]) -> Result<Vec<f32>, ForwardError> {
        let scores = Vec::<f32>::try_from(self.run(window)?.i(0))?;
        match scores.iter().enumerate().find(|(_, score)| !score.is_finite()) {
            Some((label, &score)) => Err(ForwardError::NotFinite { label, score }),
            None => Ok(scores),
        }
    }

    fn precision(&self) -> Precision {
        Precision::Float32
    }
}

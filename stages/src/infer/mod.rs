//! Windows of features → scores, by a model behind a small trait.
//!
//! A model is a TorchScript file. Its graph is read (`archive`, `script`, `lower`), rewritten by general passes
//! (`passes`) and run by own code (`plan`, `convolution`, `fourier`, `winograd`, `kernels`). A model with an operation
//! that is not known runs as it is, by libtorch.

mod archive;
mod arguments;
mod compiled;
mod constant;
mod convolution;
mod element;
mod epilogue;
mod fourier;
mod graph;
mod inverse;
mod kernels;
mod level;
mod linear;
mod lower;
mod panel;
mod passes;
mod pickle;
mod plan;
mod script;
#[cfg(test)]
mod tests;
mod torchscript;
mod view;
mod winograd;

use std::{
    fmt,
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
    rc::Rc,
    str::FromStr,
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use tch::TchError;
use tonearm_schemas::manifest::{MAX_DIFFERENCE, Manifest};

use self::{compiled::Compiled, kernels::Simd, torchscript::TorchScript};

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

    /// What runs the model, for an operator: `compiled`, or `torchscript` and why.
    fn engine(&self) -> &str;
}

/// The arithmetic of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Float32,
    /// Products of bfloat16 summed in float32, in the convolutions; the rest in float32.
    Bfloat16,
}

impl Precision {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The arithmetic a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// bfloat16 if the CPU multiplies it natively and the manifest says that the model
    /// [keeps its scores](Manifest::keeps_scores_in_bfloat16); else float32.
    Auto,
    Only(Precision),
}

impl FromStr for PrecisionChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "float32" => Ok(Self::Only(Precision::Float32)),
            "bfloat16" => Ok(Self::Only(Precision::Bfloat16)),
            _ => Err(format!("precision {text:?} is not one of auto, float32, bfloat16")),
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
    #[error("{} was changed while it was read", path.display())]
    Changed { path: PathBuf },
    #[error("{} is not a TorchScript model: {}", path.display(), first_line(source))]
    NotTorchScript { path: PathBuf, source: TchError },
    #[error("{} fails on a window of {frames} frames × {bands} bands, as its manifest says: {}", path.display(), first_line(source))]
    Input { path: PathBuf, frames: usize, bands: usize, source: TchError },
    #[error("{} gives scores of shape {found:?}, its manifest's {labels} labels need [1, {labels}]", path.display())]
    Output { path: PathBuf, found: Vec<i64>, labels: usize },
    #[error(
        "precision bfloat16 needs a CPU with AVX-512 BF16 (avx512f and avx512_bf16), which this one has not; float32 runs everywhere"
    )]
    NoBfloat16,
    #[error("{} cannot run in bfloat16: {reason}; float32 runs every model", path.display())]
    NotCompiled { path: PathBuf, reason: String },
}

/// Why a window has no scores.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("{}", first_line(.0))]
    Torch(#[from] TchError),
    #[error("the window has {found} values instead of {expected}")]
    Length { found: usize, expected: usize },
    #[error("value {index} of the window is {value}")]
    WindowNotFinite { index: usize, value: f32 },
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

/// Scores of the compiled model in float32 and of libtorch differ by rounding: 1e-6 (measured). The tenth of what is
/// promised.
const SAME: f32 = 1e-4;

/// Scores, all of them finite.
fn checked(scores: Vec<f32>) -> Result<Vec<f32>, ForwardError> {
    match scores.iter().enumerate().find(|(_, score)| !score.is_finite()) {
        Some((label, &score)) => Err(ForwardError::NotFinite { label, score }),
        None => Ok(scores),
    }
}

/// Loads the model `manifest` describes from `file`, and runs it once.
///
/// At no time does memory hold more than twice the file: the file itself is read in pieces, and libtorch's weights are
/// gone before those of the compiled model are packed.
///
/// # Errors
/// The file's hash, input shape or number of scores is not the manifest's; both values are in the message. Or the CPU
/// or the model lacks the arithmetic asked for.
pub fn load(file: &Path, manifest: &Manifest, choice: PrecisionChoice) -> Result<Box<dyn Model>, LoadError> {
    let path = file.to_owned();
    let unreadable = |source| LoadError::Unreadable { path: path.clone(), source };
    let file = Rc::new(File::open(file).map_err(unreadable)?);
    let before = state(&file).map_err(unreadable)?;
    let found = sha256(&file).map_err(unreadable)?;
    if found != manifest.sha256 {
        return Err(LoadError::Hash { path, found, expected: manifest.sha256.clone() });
    }
    let mut plain = Some(TorchScript::load(&path, &file, manifest)?);
    let native = Simd::avx512_bf16();
    let precision = match choice {
        PrecisionChoice::Only(Precision::Bfloat16) if native.is_none() => return Err(LoadError::NoBfloat16),
        PrecisionChoice::Only(precision) => precision,
        PrecisionChoice::Auto if native.is_some() && manifest.keeps_scores_in_bfloat16() => Precision::Bfloat16,
        PrecisionChoice::Auto => Precision::Float32,
    };
    let simd = if precision == Precision::Bfloat16 { native } else { Simd::float32() };
    let compiled = simd.ok_or_else(|| "the CPU has neither AVX-512 nor AVX2".to_owned()).and_then(|simd| {
        let graph = compiled::graph(&file, manifest)?;
        let window = noise(manifest.window_len());
        let expected = plain.take().map(|plain| plain.forward(&window));
        let model = Compiled::new(&graph, manifest, simd, precision)?;
        let (Some(Ok(expected)), Ok(found)) = (expected, model.forward(&window)) else {
            return Err("it fails on a window of noise".to_owned());
        };
        let off = difference(&found, &expected);
        let allowed = if precision == Precision::Bfloat16 { MAX_DIFFERENCE } else { SAME };
        if off <= allowed { Ok(model) } else { Err(format!("compiled, its scores are off by {off}")) }
    });
    let model: Box<dyn Model> = match (compiled, choice, plain) {
        (Ok(compiled), ..) => Box::new(compiled),
        (Err(reason), PrecisionChoice::Only(Precision::Bfloat16), _) => {
            return Err(LoadError::NotCompiled { path, reason });
        }
        (Err(reason), _, Some(plain)) => Box::new(plain.because(&reason)),
        (Err(reason), _, None) => Box::new(TorchScript::load(&path, &file, manifest)?.because(&reason)),
    };
    if state(&file).map_err(unreadable)? != before {
        return Err(LoadError::Changed { path });
    }
    Ok(model)
}

/// What is another if a file is written to.
fn state(file: &File) -> io::Result<(u64, SystemTime)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified()?))
}

fn sha256(file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut BufReader::with_capacity(1 << 18, file), &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// A window of values as a spectrogram has them, in no order.
fn noise(length: usize) -> Vec<f32> {
    (0..length).map(|i| (i * 7919 % 1009) as f32 / 336.0).collect()
}

/// The largest difference of two scores.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

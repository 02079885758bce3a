//! A model whose graph was read, rewritten and planned, run by own code.

use std::{cell::RefCell, fs::File, rc::Rc};

use thread_local::ThreadLocal;
use tonearm_schemas::manifest::{FeatureSpec, Manifest, OutputKind};

use super::{
    ForwardError, Model, Precision,
    archive::Archive,
    checked,
    epilogue::sigmoid,
    graph::Graph,
    kernels::Simd,
    lower, passes,
    plan::{Plan, Scratch},
};

pub struct Compiled {
    plan: Plan,
    precision: Precision,
    window_len: usize,
    logits: bool,
    /// One per thread: no window allocates, and each stays in the caches of its core.
    scratch: ThreadLocal<RefCell<Scratch>>,
}

/// What the model in the TorchScript archive `file` computes. Its weights stay there.
///
/// # Errors
/// What is not known, in words.
pub fn graph(file: &Rc<File>, manifest: &Manifest) -> Result<Graph, String> {
    let FeatureSpec::LogMel(mel) = &manifest.features;
    let graph = passes::optimise(&lower::lower(&Archive::read(file)?, [manifest.windows.frames, mel.bands])?)?;
    let scores = graph.shape(graph.output);
    if scores != [1, manifest.output.labels.len()] {
        return Err(format!("its scores have the shape {scores:?}"));
    }
    Ok(graph)
}

impl Compiled {
    /// Reads the weights of `graph` and makes it ready to run.
    ///
    /// # Errors
    /// What there is no step for, in words; or the weights cannot be read.
    pub fn new(graph: &Graph, manifest: &Manifest, simd: Simd, precision: Precision) -> Result<Self, String> {
        Ok(Self {
            plan: Plan::new(graph, simd, precision)?,
            precision,
            window_len: manifest.window_len(),
            logits: manifest.output.kind == OutputKind::Logits,
            scratch: ThreadLocal::new(),
        })
    }
}

impl Model for Compiled {
    fn forward(&self, window: &[f32]) -> Result<Vec<f32>, ForwardError> {
        if window.len() != self.window_len {
            return Err(ForwardError::Length { found: window.len(), expected: self.window_len });
        }
        // A maximum may hide what is not a number.
        if let Some((index, &value)) = window.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(ForwardError::WindowNotFinite { index, value });
        }
        let scratch = self.scratch.get_or(|| RefCell::new(self.plan.scratch()));
        let mut scores = self.plan.run(window, &mut scratch.borrow_mut());
        if self.logits {
            scores.iter_mut().for_each(|score| *score = sigmoid(*score));
        }
        checked(scores)
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn engine(&self) -> &str {
        "compiled"
    }
}

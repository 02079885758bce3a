//! A model whose graph was read, rewritten and planned, run by own code.

use std::cell::RefCell;

use thread_local::ThreadLocal;
use tonearm_schemas::manifest::{FeatureSpec, Manifest, OutputKind};

use super::{
    ForwardError, Model, Precision,
    archive::Archive,
    checked,
    epilogue::sigmoid,
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

impl Compiled {
    /// Compiles the TorchScript archive `bytes`.
    ///
    /// # Errors
    /// What is not known, in words.
    pub fn new(bytes: &[u8], manifest: &Manifest, simd: Simd, precision: Precision) -> Result<Self, String> {
        let FeatureSpec::LogMel(mel) = &manifest.features;
        let graph = lower::lower(&Archive::read(bytes)?, [manifest.windows.frames, mel.bands])?;
        let plan = Plan::new(&passes::optimise(&graph)?, simd, precision)?;
        if plan.output_shape() != [1, manifest.output.labels.len()] {
            return Err(format!("its scores have the shape {:?}", plan.output_shape()));
        }
        Ok(Self {
            plan,
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

//! A TorchScript model as it is, run by libtorch in float32.

use std::{fs::File, os::fd::AsRawFd, path::Path};

use tch::{CModule, Device, IndexOp, Kind, TchError, Tensor};
use tonearm_schemas::manifest::{FeatureSpec, Manifest, OutputKind};

use super::{ForwardError, LoadError, Model, Precision, checked};

/// A TorchScript model on the CPU.
pub struct TorchScript {
    module: CModule,
    input: [i64; 3],
    logits: bool,
    engine: String,
}

impl TorchScript {
    /// Loads the model `manifest` describes from `file`, which is open and was found at `path`, and runs it once on a
    /// window of zeros.
    pub fn load(path: &Path, file: &File, manifest: &Manifest) -> Result<Self, LoadError> {
        // Windows are spread over workers, so one forward pass uses one thread. The profiling executor rewrites the
        // graph after its first runs, which would let early and late windows differ in their last bits.
        tch::set_num_threads(1);
        tch::jit::set_profiling_mode(false);
        let not_torch_script = |source| LoadError::NotTorchScript { path: path.to_owned(), source };
        // libtorch opens files by name, and reads a tensor at a time of them. This name is that of the open file,
        // whatever lies at its path by now.
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut module = CModule::load(open).map_err(not_torch_script)?;
        module.f_set_eval().map_err(not_torch_script)?;

        let FeatureSpec::LogMel(mel) = &manifest.features;
        let (frames, bands) = (manifest.windows.frames, mel.bands);
        let model = Self {
            module,
            input: [1, frames as i64, bands as i64],
            logits: manifest.output.kind == OutputKind::Logits,
            engine: "torchscript".to_owned(),
        };
        let scores = model.run(&vec![0.0; frames * bands]).map_err(|source| LoadError::Input {
            path: path.to_owned(),
            frames,
            bands,
            source,
        })?;
        let labels = manifest.output.labels.len();
        if scores.size() != [1, labels as i64] {
            return Err(LoadError::Output { path: path.to_owned(), found: scores.size(), labels });
        }
        Ok(model)
    }

    /// The same, with the reason why it is not compiled.
    pub fn because(mut self, reason: &str) -> Self {
        self.engine = format!("torchscript ({reason})");
        self
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
        checked(Vec::<f32>::try_from(self.run(window)?.i(0))?)
    }

    fn precision(&self) -> Precision {
        Precision::Float32
    }

    fn engine(&self) -> &str {
        &self.engine
    }
}

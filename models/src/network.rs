//! musicnn's two networks, as the package defines them (musicnn/models.py), built from a checkpoint's variables.
//!
//! Input: `[windows × 187 frames × 96 bands]` of log-mel. Output: `[windows × labels]`, 0..=1.
//! Layers follow the order of the original, convolution → ReLU → batch-norm, so that each can be compared with it.

use tch::{Device, Kind, Tensor};

use crate::checkpoint::{Checkpoint, CheckpointError};

/// TensorFlow's default for `tf.layers.batch_normalization`.
const BATCH_NORM_EPS: f64 = 1e-3;

/// Which of the two networks a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Musicnn,
    Vgg,
}

/// A network with its weights.
pub enum Network {
    Musicnn(Musicnn),
    Vgg(Vgg),
}

impl Network {
    pub fn build(architecture: Architecture, checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let mut layers = Layers { checkpoint, batch_norms: 0, convolutions: 0 };
        Ok(match architecture {
            Architecture::Musicnn => Self::Musicnn(Musicnn::build(&mut layers)?),
            Architecture::Vgg => Self::Vgg(Vgg::build(&mut layers)?),
        })
    }

    /// `[windows × frames × bands]` → `[windows × labels]`.
    pub fn forward(&self, windows: &Tensor) -> Tensor {
        let logits = match self {
            Self::Musicnn(network) => network.forward(windows),
            Self::Vgg(network) => network.forward(windows),
        };
        logits.sigmoid()
    }
}

/// Hands out layers in the order TensorFlow numbered their variables.
struct Layers<'a> {
    checkpoint: &'a Checkpoint,
    batch_norms: usize,
    convolutions: usize,
}

/// `conv2d`, `conv2d_1`, `conv2d_2`, …
fn numbered(base: &str, number: usize) -> String {
    if number == 0 { base.to_owned() } else { format!("{base}_{number}") }
}

impl Layers<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let variable = self.checkpoint.variable(name)?;
        Ok(Tensor::from_slice(&variable.values).reshape(&variable.shape))
    }

    fn batch_norm(&mut self) -> Result<BatchNorm, CheckpointError> {
        let name = numbered("batch_normalization", self.batch_norms);
        self.batch_norms += 1;
        Ok(BatchNorm {
            gamma: self.tensor(&format!("{name}/gamma"))?,
            beta: self.tensor(&format!("{name}/beta"))?,
            mean: self.tensor(&format!("{name}/moving_mean"))?,
            variance: self.tensor(&format!("{name}/moving_variance"))?,
        })
    }

    fn convolution(&mut self, pad: [i64; 4]) -> Result<Block, CheckpointError> {
        let name = numbered("conv2d", self.convolutions);
        self.convolutions += 1;
        self.named_convolution(&name, pad)
    }

    fn named_convolution(&mut self, name: &str, pad: [i64; 4]) -> Result<Block, CheckpointError> {
        Ok(Block {
            pad,
            // TensorFlow: [height, width, in, out]; torch: [out, in, height, width].
            kernel: self.tensor(&format!("{name}/kernel"))?.permute([3, 2, 0, 1]).contiguous(),
            bias: self.tensor(&format!("{name}/bias"))?,
            norm: self.batch_norm()?,
        })
    }

    fn dense(&self, name: &str) -> Result<Dense, CheckpointError> {
        Ok(Dense {
            kernel: self.tensor(&format!("{name}/kernel"))?.transpose(0, 1).contiguous(),
            bias: self.tensor(&format!("{name}/bias"))?,
        })
    }
}

struct BatchNorm {
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    variance: Tensor,
}

impl BatchNorm {
    /// Normalises dimension 1.
    fn forward(&self, x: &Tensor) -> Tensor {
        x.batch_norm(
            Some(&self.gamma),
            Some(&self.beta),
            Some(&self.mean),
            Some(&self.variance),
            false,
            0.0,
            BATCH_NORM_EPS,
            false,
        )
    }
}

/// Zero padding → convolution → ReLU → batch-norm.
struct Block {
    /// Zeros before and after: `[width, width, height, height]`, where height is time.
    pad: [i64; 4],
    kernel: Tensor,
    bias: Tensor,
    norm: BatchNorm,
}

impl Block {
    /// `[windows × in × time × frequency]` → `[windows × out × time × frequency]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.constant_pad_nd(self.pad).conv2d(&self.kernel, Some(&self.bias), 1, 0, 1, 1).relu();
        self.norm.forward(&x)
    }
}

struct Dense {
    kernel: Tensor,
    bias: Tensor,
}

impl Dense {
    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.kernel, Some(&self.bias))
    }
}

/// The musically motivated CNN: wide filters over timbre and time, three dense-connected layers, pooling over time.
pub struct Musicnn {
    input_norm: BatchNorm,
    front_end: Vec<Block>,
    mid_end: Vec<Block>,
    pooled_norm: BatchNorm,
    dense: Dense,
    dense_norm: BatchNorm,
    output: Dense,
}

impl Musicnn {
    fn build(layers: &mut Layers<'_>) -> Result<Self, CheckpointError> {
        // 7 frames, "same" in time.
        let timbral = [0, 0, 3, 3];
        // TensorFlow's "same" for an even kernel of k frames: (k - 1) / 2 before, k / 2 after.
        let temporal = |frames: i64| [0, 0, (frames - 1) / 2, frames / 2];
        Ok(Self {
            input_norm: layers.batch_norm()?,
            front_end: vec![
                layers.convolution(timbral)?,
                layers.convolution(timbral)?,
                layers.convolution(temporal(128))?,
                layers.convolution(temporal(64))?,
                layers.convolution(temporal(32))?,
            ],
            mid_end: vec![layers.convolution(timbral)?, layers.convolution(timbral)?, layers.convolution(timbral)?],
            pooled_norm: layers.batch_norm()?,
            dense: layers.dense("dense")?,
            dense_norm: layers.batch_norm()?,
            output: layers.dense("dense_1")?,
        })
    }

    fn forward(&self, windows: &Tensor) -> Tensor {
        let x = self.input_norm.forward(&windows.unsqueeze(1));
        // Each branch: [windows × filters × time], the maximum over frequency.
        let branches: Vec<Tensor> = self.front_end.iter().map(|block| block.forward(&x).amax(3, false)).collect();
        let front_end = Tensor::cat(&branches, 1);

        let mut features = vec![front_end.shallow_clone()];
        let mut x = front_end;
        for (i, block) in self.mid_end.iter().enumerate() {
            // A filter spans all channels: as an image, [windows × 1 × time × channels].
            let y = block.forward(&x.transpose(1, 2).unsqueeze(1)).squeeze_dim(3);
            x = if i == 0 { y } else { x + y };
            features.push(x.shallow_clone());
        }

        let features = Tensor::cat(&features, 1);
        let max = features.amax(2, false);
        let mean = features.mean_dim(2, false, Kind::Float);
        // (max, mean) interleaved per channel.
        let pooled = Tensor::stack(&[max, mean], 2).flatten(1, 2);
        let x = self.dense.forward(&self.pooled_norm.forward(&pooled)).relu();
        self.output.forward(&self.dense_norm.forward(&x))
    }
}

/// The VGG-like CNN: five 3 × 3 convolutions with pooling.
pub struct Vgg {
    input_norm: BatchNorm,
    /// A block, and the window and stride of the maximum after it: `[time, frequency]`.
    blocks: Vec<(Block, [i64; 2], [i64; 2])>,
    output: Dense,
}

impl Vgg {
    fn build(layers: &mut Layers<'_>) -> Result<Self, CheckpointError> {
        let input_norm = layers.batch_norm()?;
        let pools = [([4, 1], [2, 2]), ([2, 2], [2, 2]), ([2, 2], [2, 2]), ([2, 2], [2, 2]), ([4, 4], [4, 4])];
        let mut blocks = Vec::new();
        for (i, (window, stride)) in pools.into_iter().enumerate() {
            blocks.push((layers.named_convolution(&format!("{}CNN", i + 1), [1, 1, 1, 1])?, window, stride));
        }
        Ok(Self { input_norm, blocks, output: layers.dense("dense")? })
    }

    fn forward(&self, windows: &Tensor) -> Tensor {
        let mut x = self.input_norm.forward(&windows.unsqueeze(1));
        for (block, window, stride) in &self.blocks {
            x = block.forward(&x).max_pool2d(window, stride, [0, 0], [1, 1], false);
        }
        // TensorFlow flattens [time, frequency, channel].
        self.output.forward(&x.permute([0, 2, 3, 1]).flatten(1, 3))
    }
}

/// An input of zeros, `[1 × frames × bands]`.
pub fn example_input(frames: usize, bands: usize) -> Tensor {
    Tensor::zeros([1, frames as i64, bands as i64], (Kind::Float, Device::Cpu))
}

//! What is done to the sums of a tile before they are stored: bias, ReLU, batch-norm.

use super::{graph::Pointwise, kernels::LANES};

/// Functions of each value, with their numbers for whole groups of channels.
pub struct Epilogue(Vec<Pointwise>);

impl Epilogue {
    pub fn new(then: &[Pointwise], channels: usize) -> Self {
        let filled = |values: &[f32]| {
            let mut values = values.to_vec();
            values.resize(channels.next_multiple_of(LANES), 0.0);
            values
        };
        let fill = |pointwise: &Pointwise| match pointwise {
            Pointwise::Affine { scale, shift } => Pointwise::Affine { scale: filled(scale), shift: filled(shift) },
            other => other.clone(),
        };
        Self(then.iter().map(fill).collect())
    }

    /// Applies the functions to `sums`, `[pixels × lanes]`, whose first channel is `channel`.
    #[inline(always)]
    pub fn apply(&self, sums: &mut [f32], lanes: usize, channel: usize) {
        for pointwise in &self.0 {
            match pointwise {
                Pointwise::Affine { scale, shift } => {
                    let (scale, shift) = (&scale[channel..channel + lanes], &shift[channel..channel + lanes]);
                    for pixel in sums.chunks_exact_mut(lanes) {
                        for ((value, scale), shift) in pixel.iter_mut().zip(scale).zip(shift) {
                            *value = *value * scale + shift;
                        }
                    }
                }
                Pointwise::Relu => sums.iter_mut().for_each(|value| *value = relu(*value)),
                Pointwise::Sigmoid => sums.iter_mut().for_each(|value| *value = sigmoid(*value)),
            }
        }
    }
}

/// What is not a number stays so, as in PyTorch.
#[inline(always)]
pub fn relu(value: f32) -> f32 {
    if value < 0.0 { 0.0 } else { value }
}

#[inline(always)]
pub fn sigmoid(value: f32) -> f32 {
    1.0 / (1.0 + (-value).exp())
}

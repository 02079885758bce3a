//! A linear layer: one pixel's product, in float32 whatever the rest is computed in, as it costs nothing beside it.

use super::{
    constant::Constant,
    epilogue::Epilogue,
    graph::Pointwise,
    kernels::{LANES, Simd, Walk, tile},
    panel::{Aligned, Panel, pack},
    view::View,
};

pub struct Linear {
    weights: Aligned<f32>,
    panels: Vec<Panel>,
    bias: Epilogue,
    simd: Simd,
    from: View,
    to: View,
}

impl Linear {
    /// `weight`: `[out × in]`; `from` and `to`: `[1 × in]` and `[1 × out]`.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn new(weight: &Constant, bias: &[f32], from: &View, to: &View, simd: Simd) -> Result<Self, String> {
        let (inputs, outputs) = (from.shape[1], to.shape[1]);
        let (panels, weights) = pack(weight, [1, inputs], simd, |_, k| k)?;
        let bias = Pointwise::Affine { scale: vec![1.0; outputs], shift: bias.to_vec() };
        let bias = Epilogue::new(&[bias], outputs);
        Ok(Self { weights, panels, bias, simd, from: from.clone(), to: to.clone() })
    }

    pub fn run(&self, values: &mut [f32], sums: &mut [f32]) {
        let (inputs, stride) = self.from.axis(1);
        let x: Vec<f32> = values[self.from.offset..].iter().step_by(stride.max(1)).take(inputs).copied().collect();
        let (outputs, stride) = self.to.axis(1);
        for panel in &self.panels {
            let lanes = panel.groups * LANES;
            let walk = Walk { pixel: 0, run: 0, runs: 1, steps: inputs, w_run: 0 };
            let sums = &mut sums[..lanes];
            tile(self.simd, [1, panel.groups], [&x, &self.weights[panel.weights..]], walk, false, sums);
            self.bias.apply(sums, lanes, panel.channel);
            for (c, &sum) in sums.iter().enumerate().take(outputs - panel.channel) {
                values[self.to.offset + (panel.channel + c) * stride] = sum;
            }
        }
    }
}

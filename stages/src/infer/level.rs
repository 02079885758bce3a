//! Keeps steady sounds exact in bfloat16: an image is its mean over time (rows), which is convolved in float32, plus
//! the rest, which is rounded.
//!
//! In a steady sound every frame is rounded the same way, so errors do not average out over time. Without its mean
//! there is little left to round. A kernel that is as wide as the image has one product with the mean per row, and each
//! value adds those of the rows that lie inside the image.

use super::{
    constant::Constant,
    convolution::Axis,
    kernels::{LANES, Simd, Walk, tile},
    panel::{Aligned, LINE, Panel, at_least, pack},
};

pub struct Level {
    /// The first row of the kernel that lies inside the image, and the first after it that does not, for each value.
    insides: Vec<(usize, usize)>,
    /// `[panel][row][column][channel]`
    weights: Aligned<f32>,
    panels: Vec<Panel>,
    rows: usize,
    columns: usize,
}

impl Level {
    /// `place(row, column)` of a kernel as wide as the image is where its weight lies among those of a channel.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn new(
        weight: &Constant,
        rows: Axis,
        columns: usize,
        simd: Simd,
        place: impl Fn(usize, usize) -> usize,
    ) -> Result<Self, String> {
        let (panels, weights) = pack(weight, [rows.kernel, columns], simd, place)?;
        let insides = (0..rows.out).map(|value| rows.start(value, 0)).map(|start| rows.seen(start, start)).collect();
        Ok(Self { insides, weights, panels, rows: rows.kernel, columns })
    }

    /// What the mean of the image's rows adds to the sums of one panel, `[value][channel]`.
    pub fn sums<'a>(&self, panel: usize, mean: &[f32], work: &'a mut LevelWork, simd: Simd) -> &'a [f32] {
        let LevelWork { products, sums } = work;
        let Panel { groups, weights, .. } = self.panels[panel];
        let lanes = groups * LANES;
        let products = at_least(products, self.rows * lanes);
        let walk = Walk { pixel: 0, run: 0, runs: 1, steps: self.columns, w_run: 0 };
        let kernel = self.weights[weights..].chunks_exact(self.columns * lanes);
        for (products, weights) in products.chunks_exact_mut(lanes).zip(kernel) {
            tile(simd, [1, groups], [mean, weights], walk, false, products);
        }
        let sums = at_least(sums, self.insides.len() * lanes);
        sums.fill(0.0);
        for (sums, &(first, last)) in sums.chunks_exact_mut(lanes).zip(&self.insides) {
            for products in products[first * lanes..last * lanes].chunks_exact(lanes) {
                sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
            }
        }
        sums
    }
}

/// What levels work in.
pub struct LevelWork {
    products: Aligned<f32>,
    sums: Aligned<f32>,
}

impl LevelWork {
    pub fn new() -> Self {
        Self { products: Aligned::new(LINE), sums: Aligned::new(LINE) }
    }
}

//! A 3 × 3 convolution by Winograd's F(2 × 2, 3 × 3): 16 products for 4 sums instead of 36.
//!
//! Shmuel Winograd's minimal filtering, as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015):
//! patches of 4 × 4 and kernels are transformed, multiplied place by place over all channels, and transformed back into 2 × 2
//! sums, whose maximum is taken before anything is stored. Patches are rounded to bfloat16 after their transform.
#![expect(clippy::needless_range_loop, reason = "j is a column of four rows at once")]

use super::{
    convolution::Work,
    element::Element,
    epilogue::Epilogue,
    graph::Convolution,
    kernels::{LANES, Simd, Walk, tile},
    panel::{MOST_PIXELS, Panel, pack, tiles},
    view::View,
};

/// Places of a transformed patch.
const PLACES: usize = 16;
/// Patches whose products are taken together: their transforms stay in the second cache.
const PATCHES: usize = 4 * MOST_PIXELS;

type Lanes = [f32; LANES];

pub struct Winograd<T> {
    /// `[rows × columns × channels]`, channels side by side.
    from: View,
    to: View,
    before: [usize; 2],
    /// Patches per value of the result, or 1 where a patch makes 2 × 2 values, and its values along one axis.
    patches: [usize; 2],
    values: usize,
    /// Of each place, `[place][panel][input][channel]`.
    weights: Vec<Vec<T>>,
    panels: Vec<Panel>,
    channels: usize,
    then: Epilogue,
    simd: Simd,
    /// Where the transformed patches are among all images.
    offset: usize,
}

impl<T: Element> Winograd<T> {
    /// `None` where the convolution has another form than this algorithm is for.
    pub fn new(convolution: &Convolution, from: &View, to: &View, simd: Simd, images: &mut usize) -> Option<Self> {
        let channels = convolution.channels_out();
        let inputs = convolution.weight.shape[1];
        let window = convolution.pool.window;
        let fits = convolution.kernel() == [3, 3]
            && convolution.stride == [1, 1]
            && inputs.is_multiple_of(LANES)
            && from.strides[1] == 1
            && window == convolution.pool.stride
            && (window == [1, 1] || window.iter().all(|n| n.is_multiple_of(2)));
        if !fits {
            return None;
        }
        let weight = |channel: usize, input: usize| {
            let at = (channel * inputs + input) * 9;
            transformed_kernel(&convolution.weight.values[at..at + 9])
        };
        let kernels: Vec<[f32; PLACES]> = (0..channels * inputs).map(|i| weight(i / inputs, i % inputs)).collect();
        let packed = |place: usize| {
            pack(channels, [1, inputs], simd, |channel, _, input| kernels[channel * inputs + input][place])
        };
        let panels = packed(0).0;
        let laid_out = |view: &View| view.permuted(&[2, 3, 1]);
        let winograd = Self {
            from: laid_out(from),
            to: laid_out(to),
            before: convolution.padding.before,
            patches: window.map(|n| (n / 2).max(1)),
            values: if window == [1, 1] { 2 } else { 1 },
            weights: (0..PLACES).map(|place| packed(place).1).collect(),
            panels,
            channels,
            then: Epilogue::new(&convolution.then, channels),
            simd,
            offset: *images,
        };
        let per_block = winograd.rows_in_block() * winograd.patches[0] * winograd.columns();
        *images += PLACES * per_block * inputs;
        Some(winograd)
    }

    /// Patches side by side.
    fn columns(&self) -> usize {
        self.to.shape[1].div_ceil(self.values) * self.patches[1]
    }

    /// Rows of whole values, or of pairs of them, in one block.
    fn rows_in_block(&self) -> usize {
        let rows = self.to.shape[0].div_ceil(self.values);
        (PATCHES / (self.patches[0] * self.columns())).clamp(1, rows.max(1))
    }

    pub fn run(&self, values: &mut [f32], images: &mut [T], work: &mut Work) {
        let columns = self.columns();
        let inputs = self.from.shape[2];
        let out_columns = self.to.shape[1];
        let rows = self.to.shape[0].div_ceil(self.values);
        let in_block = self.rows_in_block();
        for first_row in (0..rows).step_by(in_block) {
            let first_patch_row = first_row * self.patches[0];
            let patches = in_block.min(rows - first_row) * self.patches[0] * columns;
            let image = &mut images[self.offset..][..PLACES * patches * inputs];
            self.simd.vectorised(|| {
                for patch in 0..patches {
                    self.transform(values, image, [first_patch_row + patch / columns, patch % columns], patch, patches);
                }
            });
            let out_rows = (in_block * self.values).min(self.to.shape[0] - first_row * self.values);
            for panel in &self.panels {
                let lanes = panel.groups * LANES;
                let most = self.simd.pixels(panel.groups);
                let [products, sums] = work.buffers([PLACES * most * lanes, out_rows * out_columns * lanes]);
                sums.fill(f32::NEG_INFINITY);
                for (first, count) in tiles(patches, most) {
                    let walk = Walk { pixel: inputs, run: 0, runs: 1, steps: inputs / T::PER_STEP, w_run: 0 };
                    for (place, products) in products.chunks_exact_mut(count * lanes).take(PLACES).enumerate() {
                        let x = &image[(place * patches + first) * inputs..];
                        let w = &self.weights[place][panel.weights..];
                        tile(self.simd, [count, panel.groups], x, w, walk, None, products, false);
                    }
                    self.simd.vectorised(|| {
                        for patch in 0..count {
                            let place = [(first + patch) / columns, (first + patch) % columns];
                            self.gather(
                                &products[patch * lanes..],
                                count * lanes,
                                place,
                                [out_rows, out_columns],
                                lanes,
                                sums,
                            );
                        }
                    });
                }
                self.simd.vectorised(|| {
                    self.then.apply(sums, lanes, panel.channel);
                    self.store(sums, panel, first_row * self.values, values);
                });
            }
        }
    }

    /// Transforms the patch at `place` of the image into place `patch` of `patches`.
    #[inline(always)]
    fn transform(&self, values: &[f32], image: &mut [T], place: [usize; 2], patch: usize, patches: usize) {
        let [rows, columns, inputs] = [self.from.shape[0], self.from.shape[1], self.from.shape[2]];
        let corner = |axis: usize| (2 * place[axis]).wrapping_sub(self.before[axis]);
        for input in (0..inputs).step_by(LANES) {
            let mut patch_values = [[[0.0; LANES]; 4]; 4];
            for (i, row) in patch_values.iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    let (r, c) = (corner(0).wrapping_add(i), corner(1).wrapping_add(j));
                    // Beyond the image there are zeros.
                    if r < rows && c < columns {
                        let at = self.from.offset + r * self.from.strides[0] + c * self.from.strides[1] + input;
                        value.copy_from_slice(&values[at..at + LANES]);
                    }
                }
            }
            let row = |i: usize| {
                let [a, b, c, d] = &patch_values[i];
                transformed([a, b, c, d])
            };
            let rows = [row(0), row(1), row(2), row(3)];
            for j in 0..4 {
                let column = transformed([&rows[0][j], &rows[1][j], &rows[2][j], &rows[3][j]]);
                for (i, value) in column.iter().enumerate() {
                    let at = ((i * 4 + j) * patches + patch) * inputs + input;
                    for (to, &value) in image[at..at + LANES].iter_mut().zip(value) {
                        *to = T::from_f32(value);
                    }
                }
            }
        }
    }

    /// Transforms the products of one patch back, and takes them into the maxima of its value, or stores its 2 × 2 values.
    #[inline(always)]
    fn gather(
        &self,
        products: &[f32],
        step: usize,
        [row, column]: [usize; 2],
        [rows, columns]: [usize; 2],
        lanes: usize,
        sums: &mut [f32],
    ) {
        for group in (0..lanes).step_by(LANES) {
            let product = |place: usize| -> Lanes {
                let mut lanes = [0.0; LANES];
                lanes.copy_from_slice(&products[place * step + group..][..LANES]);
                lanes
            };
            let half = |i: usize| {
                let [a, b, c, d] = [product(4 * i), product(4 * i + 1), product(4 * i + 2), product(4 * i + 3)];
                gathered([&a, &b, &c, &d])
            };
            let halves = [half(0), half(1), half(2), half(3)];
            for j in 0..2 {
                let pair = gathered([&halves[0][j], &halves[1][j], &halves[2][j], &halves[3][j]]);
                for (i, value) in pair.iter().enumerate() {
                    let (r, c) = if self.values == 2 {
                        (2 * row + i, 2 * column + j)
                    } else {
                        (row / self.patches[0], column / self.patches[1])
                    };
                    if r < rows && c < columns {
                        let at = (r * columns + c) * lanes + group;
                        for (sum, &value) in sums[at..at + LANES].iter_mut().zip(value) {
                            *sum = if value > *sum { value } else { *sum };
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn store(&self, sums: &[f32], panel: &Panel, first_row: usize, values: &mut [f32]) {
        let lanes = panel.groups * LANES;
        let channels = lanes.min(self.channels - panel.channel);
        let columns = self.to.shape[1];
        let stride = self.to.strides[2];
        for (pixel, sums) in sums.chunks_exact(lanes).enumerate() {
            let (row, column) = (first_row + pixel / columns, pixel % columns);
            let at = self.to.offset + row * self.to.strides[0] + column * self.to.strides[1] + panel.channel * stride;
            for (c, &sum) in sums[..channels].iter().enumerate() {
                values[at + c * stride] = sum;
            }
        }
    }
}

#[inline(always)]
fn sum(a: &Lanes, b: &Lanes) -> Lanes {
    let mut sum = *a;
    for (sum, b) in sum.iter_mut().zip(b) {
        *sum += b;
    }
    sum
}

#[inline(always)]
fn difference(a: &Lanes, b: &Lanes) -> Lanes {
    let mut difference = *a;
    for (difference, b) in difference.iter_mut().zip(b) {
        *difference -= b;
    }
    difference
}

/// `Bᵀ d`: one axis of a patch.
#[inline(always)]
fn transformed([a, b, c, d]: [&Lanes; 4]) -> [Lanes; 4] {
    [difference(a, c), sum(b, c), difference(c, b), difference(b, d)]
}

/// `Aᵀ m`: one axis of the products.
#[inline(always)]
fn gathered([a, b, c, d]: [&Lanes; 4]) -> [Lanes; 2] {
    [sum(&sum(a, b), c), difference(&difference(b, c), d)]
}

/// `G g Gᵀ`.
fn transformed_kernel(kernel: &[f32]) -> [f32; PLACES] {
    let axis = |[a, b, c]: [f64; 3]| [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c];
    let rows = [0, 1, 2].map(|r| axis([0, 1, 2].map(|c| f64::from(kernel[r * 3 + c]))));
    let mut places = [0.0; PLACES];
    for j in 0..4 {
        for (i, value) in axis([rows[0][j], rows[1][j], rows[2][j]]).into_iter().enumerate() {
            places[i * 4 + j] = value as f32;
        }
    }
    places
}

//! A 3 × 3 convolution by Winograd's F(2 × 2, 3 × 3): 16 products for 4 sums instead of 36.
//!
//! Shmuel Winograd's minimal filtering, as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
//! (2015): patches of 4 × 4 and kernels are transformed, multiplied place by place over all channels, and transformed
//! back into 2 × 2 sums, whose maximum is taken before anything is stored. Patches are rounded to bfloat16 after their
//! transform.
#![expect(clippy::needless_range_loop, reason = "counted loops over constants become registers")]

use super::{
    convolution::{Work, convert},
    element::Element,
    epilogue::Epilogue,
    graph::Convolution,
    kernels::{LANES, Simd, Vectorised, Walk, tile},
    panel::{Aligned, LINE, MOST_PIXELS, Panel, at, panels, tiles, zeros},
    view::View,
};

/// Places of a transformed patch.
const PLACES: usize = 16;
/// Patches whose products are taken together: their transforms stay in the second cache.
const PATCHES: usize = 4 * MOST_PIXELS;

type Lanes = [f32; LANES];

/// Elements from one place to the next, with a cache line between them: at a multiple of 4 KiB all places would share
/// the same few sets of the first cache.
fn step<T>(patches: usize, inputs: usize) -> usize {
    patches * inputs + LINE / size_of::<T>()
}

pub struct Winograd<T> {
    /// `[rows × columns × channels]`, channels side by side.
    from: View,
    to: View,
    before: [usize; 2],
    /// Patches per value of the result, or 1 if a patch makes 2 × 2 values, and its values along one axis.
    patches: [usize; 2],
    values: usize,
    /// Of each place, `[place][panel][input][channel]`.
    weights: Vec<Aligned<T>>,
    panels: Vec<Panel>,
    channels: usize,
    then: Epilogue,
    simd: Simd,
    /// Where the transformed patches are among all images.
    offset: usize,
}

impl<T: Element> Winograd<T> {
    /// `None` if the convolution has another form than this algorithm is for.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn new(
        convolution: &Convolution,
        [from, to]: [&View; 2],
        simd: Simd,
        images: &mut usize,
    ) -> Result<Option<Self>, String> {
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
            return Ok(None);
        }
        // A multiple of `LANES`, so steps end with it.
        let panels = panels(channels, inputs, simd);
        let lanes: usize = panels.iter().map(|panel| panel.groups * LANES).sum();
        let mut weights: Vec<Aligned<T>> = (0..PLACES).map(|_| zeros(lanes * inputs)).collect();
        for panel in &panels {
            let lanes = panel.groups * LANES;
            let rows = convolution.weight.rows(panel.channel..channels.min(panel.channel + lanes))?;
            for (number, kernel) in rows.chunks_exact(9).enumerate() {
                let (channel, input) = (number / inputs, number % inputs);
                for (weights, value) in weights.iter_mut().zip(transformed_kernel(kernel)) {
                    weights[panel.weights + at::<T>(input, channel, lanes)] = T::from_f32(value);
                }
            }
        }
        let laid_out = |view: &View| view.permuted(&[2, 3, 1]);
        let winograd = Self {
            from: laid_out(from),
            to: laid_out(to),
            before: convolution.padding.before,
            patches: window.map(|n| (n / 2).max(1)),
            values: if window == [1, 1] { 2 } else { 1 },
            weights,
            panels,
            channels,
            then: Epilogue::new(&convolution.then, channels),
            simd,
            offset: *images,
        };
        let per_block = winograd.rows_in_block() * winograd.patches[0] * winograd.columns();
        *images += PLACES * step::<T>(per_block, inputs);
        Ok(Some(winograd))
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
            let step = step::<T>(patches, inputs);
            let image = &mut images[self.offset..][..PLACES * step];
            self.simd.vectorised(Transform(self, &*values, &mut *image, first_patch_row, patches));
            let out_rows = (in_block * self.values).min(self.to.shape[0] - first_row * self.values);
            for panel in &self.panels {
                let lanes = panel.groups * LANES;
                let most = self.simd.pixels(panel.groups);
                let [products, sums] = work.buffers([PLACES * most * lanes, out_rows * out_columns * lanes]);
                sums.fill(f32::NEG_INFINITY);
                for (first, count) in tiles(patches, most) {
                    let walk = Walk { pixel: inputs, run: 0, runs: 1, steps: inputs / T::PER_STEP, w_run: 0 };
                    for (place, products) in products.chunks_exact_mut(count * lanes).take(PLACES).enumerate() {
                        let x = &image[place * step + first * inputs..];
                        let w = &self.weights[place][panel.weights..];
                        tile(self.simd, [count, panel.groups], [x, w], walk, false, products);
                    }
                    let size = [out_rows, out_columns];
                    self.simd.vectorised(Gather(self, &*products, [first, count], size, lanes, &mut *sums));
                }
                self.simd.vectorised(Store(self, sums, panel, first_row * self.values, &mut *values));
            }
        }
    }
}

/// Transforms `patches` patches, those of whole rows from `first_row` on, into `[place][patch][input]`.
struct Transform<'a, T>(&'a Winograd<T>, &'a [f32], &'a mut [T], usize, usize);

impl<T: Element> Vectorised for Transform<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, values, image, first_row, patches) = self;
        let [rows, columns, inputs] = *layer.from.shape else { return };
        let [row, column] = [layer.from.strides[0], layer.from.strides[1]];
        let (in_row, step) = (layer.columns(), step::<T>(patches, inputs));
        for patch in 0..patches {
            let place = [first_row + patch / in_row, patch % in_row];
            let top = (2 * place[0]).wrapping_sub(layer.before[0]);
            let left = (2 * place[1]).wrapping_sub(layer.before[1]);
            // Where its 16 pixels start; beyond the image there are zeros.
            let mut pixels = [[usize::MAX; 4]; 4];
            for i in 0..4 {
                for j in 0..4 {
                    let (r, c) = (top.wrapping_add(i), left.wrapping_add(j));
                    if r < rows && c < columns {
                        pixels[i][j] = layer.from.offset + r * row + c * column;
                    }
                }
            }
            for input in (0..inputs).step_by(LANES) {
                let mut d = [[[0.0; LANES]; 4]; 4];
                for i in 0..4 {
                    let [p, q, r, s] = pixels[i].map(|pixel| pixel.saturating_add(input));
                    d[i] = transformed(lanes(values, p), lanes(values, q), lanes(values, r), lanes(values, s));
                }
                for j in 0..4 {
                    let column = transformed(&d[0][j], &d[1][j], &d[2][j], &d[3][j]);
                    for i in 0..4 {
                        convert(&column[i], &mut image[(i * 4 + j) * step + patch * inputs + input..][..LANES]);
                    }
                }
            }
        }
    }
}

/// Transforms the products of `count` patches from `first` on back, `[place][patch][channel]`, and takes them into the
/// maxima of their values, or stores the 2 × 2 values of each.
struct Gather<'a, T>(&'a Winograd<T>, &'a [f32], [usize; 2], [usize; 2], usize, &'a mut [f32]);

impl<T: Element> Vectorised for Gather<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, products, [first, count], [rows, columns], lanes, sums) = self;
        let in_row = layer.columns();
        for patch in 0..count {
            let [row, column] = [(first + patch) / in_row, (first + patch) % in_row];
            for group in (0..lanes).step_by(LANES) {
                let mut half = [[[0.0; LANES]; 2]; 4];
                for i in 0..4 {
                    let mut m = [[0.0; LANES]; 4];
                    for j in 0..4 {
                        let at = ((4 * i + j) * count + patch) * lanes + group;
                        m[j].copy_from_slice(&products[at..at + LANES]);
                    }
                    half[i] = gathered(&m[0], &m[1], &m[2], &m[3]);
                }
                let [a, c] = gathered(&half[0][0], &half[1][0], &half[2][0], &half[3][0]);
                let [b, d] = gathered(&half[0][1], &half[1][1], &half[2][1], &half[3][1]);
                if layer.values == 1 {
                    let at = (row / layer.patches[0] * columns + column / layer.patches[1]) * lanes + group;
                    let sums = &mut sums[at..at + LANES];
                    for k in 0..LANES {
                        sums[k] = larger(sums[k], larger(larger(a[k], b[k]), larger(c[k], d[k])));
                    }
                } else {
                    for (i, j, value) in [(0, 0, &a), (0, 1, &b), (1, 0, &c), (1, 1, &d)] {
                        let (r, c) = (2 * row + i, 2 * column + j);
                        if r < rows && c < columns {
                            let at = (r * columns + c) * lanes + group;
                            sums[at..at + LANES].copy_from_slice(value);
                        }
                    }
                }
            }
        }
    }
}

/// Applies what follows to the sums of whole rows, and writes them.
struct Store<'a, T>(&'a Winograd<T>, &'a mut [f32], &'a Panel, usize, &'a mut [f32]);

impl<T: Element> Vectorised for Store<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, sums, panel, first_row, values) = self;
        let lanes = panel.groups * LANES;
        layer.then.apply(sums, lanes, panel.channel);
        let channels = lanes.min(layer.channels - panel.channel);
        let columns = layer.to.shape[1];
        let stride = layer.to.strides[2];
        for (pixel, sums) in sums.chunks_exact(lanes).enumerate() {
            let (row, column) = (first_row + pixel / columns, pixel % columns);
            let at =
                layer.to.offset + row * layer.to.strides[0] + column * layer.to.strides[1] + panel.channel * stride;
            if stride == 1 {
                values[at..at + channels].copy_from_slice(&sums[..channels]);
            } else {
                for (c, &sum) in sums[..channels].iter().enumerate() {
                    values[at + c * stride] = sum;
                }
            }
        }
    }
}

/// The values from `at` on, or zeros if that is beyond them.
#[inline(always)]
fn lanes(values: &[f32], at: usize) -> &Lanes {
    values.get(at..).and_then(|values| values.first_chunk()).unwrap_or(&[0.0; LANES])
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

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// `Bᵀ d`: one axis of a patch.
#[inline(always)]
fn transformed(a: &Lanes, b: &Lanes, c: &Lanes, d: &Lanes) -> [Lanes; 4] {
    [difference(a, c), sum(b, c), difference(c, b), difference(b, d)]
}

/// `Aᵀ m`: one axis of the products.
#[inline(always)]
fn gathered(a: &Lanes, b: &Lanes, c: &Lanes, d: &Lanes) -> [Lanes; 2] {
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

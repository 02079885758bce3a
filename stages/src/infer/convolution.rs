//! A convolution as one product per tile of pixels, with the maximum over windows and the functions after it on the
//! tile.
//!
//! The image is laid out `[rows × columns × channels]`, with its zeros around it. What a kernel's row sees at a pixel
//! then lies side by side, and neighbouring pixels overlap in place: no patch is ever copied. The sums of a whole
//! pooling window meet in one tile that stays in the first cache, so values before the maximum are never written to
//! memory.

use super::{
    element::Element,
    epilogue::Epilogue,
    fourier::FourierWork,
    graph::Convolution,
    kernels::{LANES, Simd, Vectorised, Walk, tile},
    level::{Level, LevelWork},
    panel::{Aligned, LINE, Panel, TILE_LEN, at_least, pack, tiles},
    view::View,
};

/// Rows or columns.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// Without padding.
    pub length: usize,
    pub before: usize,
    pub after: usize,
    pub kernel: usize,
    pub stride: usize,
    pub window: usize,
    pub pool_stride: usize,
    /// Values after the maximum.
    pub out: usize,
}

impl Axis {
    const SINGLE: Self =
        Self { length: 1, before: 0, after: 0, kernel: 1, stride: 1, window: 1, pool_stride: 1, out: 1 };

    pub fn padded(&self) -> usize {
        self.before + self.length + self.after
    }

    /// Places of the kernel.
    pub fn places(&self) -> usize {
        (self.padded() - self.kernel) / self.stride + 1
    }

    /// The first padded place that a value reads, for place `inner` of its pooling window.
    pub fn start(&self, value: usize, inner: usize) -> usize {
        (value * self.pool_stride + inner) * self.stride
    }

    /// The part of the kernel that sees more than padding, for values whose first places are `first..=last`.
    pub fn seen(&self, first: usize, last: usize) -> (usize, usize) {
        let start = self.before.saturating_sub(last).min(self.kernel);
        (start, (self.before + self.length).saturating_sub(first).clamp(start, self.kernel))
    }
}

/// Where a convolution finds its image and leaves its values.
pub struct Geometry {
    /// Rows and columns of the image as it is laid out.
    pub axes: [Axis; 2],
    /// Elements from one row of the image, and one column, to the next.
    pub steps: [usize; 2],
    /// `[rows × columns × channels]` in both, before any axes are merged.
    from: View,
    to: View,
    /// From one value to the next along each axis.
    to_steps: [usize; 2],
    /// Places of padding before rows and columns, before any axes are merged.
    before: [usize; 2],
    /// Elements from one row and one column of `from` to the next as they are laid out, and those of all.
    row: usize,
    column: usize,
    pub length: usize,
    pub channels: usize,
    /// The axes that rows and columns are in the graph are the other way round.
    turned: bool,
    /// The axes before they were merged, if they were.
    merged: Option<[Axis; 2]>,
}

impl Geometry {
    /// `from` and `to` are `[1 × channels × rows × columns]`.
    pub fn new<T: Element>(convolution: &Convolution, from: &View, to: &View) -> Self {
        let inputs = convolution.weight.shape[1];
        let natural = [0, 1].map(|i| Axis {
            length: from.shape[2 + i],
            before: convolution.padding.before[i],
            after: convolution.padding.after[i],
            kernel: convolution.kernel()[i],
            stride: convolution.stride[i],
            window: convolution.pool.window[i],
            pool_stride: convolution.pool.stride[i],
            out: to.shape[2 + i],
        });
        // A run is rounded up to whole steps, so rows and columns change places if that saves steps or runs.
        let cost = |rows: Axis, columns: Axis| rows.kernel * ((columns.kernel * inputs).div_ceil(T::PER_STEP) + 1);
        let turned = cost(natural[1], natural[0]) < cost(natural[0], natural[1]);
        let order = if turned { [3, 2] } else { [2, 3] };
        let axes = order.map(|axis| natural[axis - 2]);
        let laid_out = |view: &View| view.permuted(&[order[0], order[1], 1]);
        let to = laid_out(to);
        let row = inputs * axes[1].padded();
        let mut geometry = Self {
            axes,
            steps: [row, inputs],
            from: laid_out(from),
            to_steps: [to.strides[0], to.strides[1]],
            to,
            before: axes.map(|axis| axis.before),
            row,
            column: inputs,
            // A last step may read past the end, where its weights are zero.
            length: row * axes[0].padded() + T::PER_STEP,
            channels: convolution.channels_out(),
            turned,
            merged: (axes[1].kernel == axes[1].length && axes[1].padded() == axes[1].length).then_some(axes),
        };
        if geometry.merged.is_some() {
            // A kernel as wide as the image sees whole rows: one long run.
            geometry.axes = [Axis::SINGLE, axes[0]];
            geometry.steps = [geometry.length, row];
            geometry.to_steps = [0, geometry.to_steps[0]];
        }
        geometry
    }

    /// Whether neighbours in a row of the image are neighbours in one channel.
    pub fn one_channel(&self) -> bool {
        self.column == 1 && self.merged.is_none()
    }

    /// Where the image is, `[rows × columns]`, for [one channel](Self::one_channel).
    pub fn image(&self) -> View {
        self.from.permuted(&[0, 1])
    }

    /// Whether bfloat16 keeps steady sounds exact: with many channels errors cancel, with one a level is needed, which
    /// is there for kernels as wide as the image.
    pub fn may_be_rounded(&self) -> bool {
        self.column > 1 || self.merged.is_some_and(|[rows, _]| rows.window == 1)
    }

    /// Where the weight of element `k` of row `run` of the kernel lies among those of a channel.
    pub fn place(&self, convolution: &Convolution, run: usize, k: usize) -> usize {
        let (row, k) = if self.merged.is_some() { (k / self.row, k % self.row) } else { (run, k) };
        let (column, input) = (k / self.column, k % self.column);
        let [r, c] = if self.turned { [column, row] } else { [row, column] };
        let [rows, columns] = convolution.kernel();
        (input * rows + r) * columns + c
    }

    /// What keeps steady sounds exact, if values are rounded.
    fn level<T: Element>(&self, convolution: &Convolution, simd: Simd) -> Result<Option<Level>, String> {
        let rounded = T::PER_STEP > 1;
        let merged = self.merged.filter(|_| rounded && self.column == 1 && self.may_be_rounded());
        let place = |row, k| self.place(convolution, 0, row * self.row + k);
        merged.map(|[rows, _]| Level::new(&convolution.weight, rows, self.row, simd, place)).transpose()
    }
}

/// A convolution made ready for one image size and one kind of number.
pub struct Direct<T> {
    geometry: Geometry,
    /// The axis whose neighbours make up a tile.
    along: usize,
    weights: Aligned<T>,
    panels: Vec<Panel>,
    then: Epilogue,
    simd: Simd,
    /// Where the image is among all images.
    image: usize,
    level: Option<Level>,
}

/// What one convolution after the other works in.
pub struct Work {
    /// Of one tile.
    pub sums: Aligned<f32>,
    /// Of an image's rows.
    mean: Vec<f32>,
    level: LevelWork,
    pub fourier: FourierWork,
    buffers: [Aligned<f32>; 2],
}

impl Work {
    pub fn new() -> Self {
        let mut sums = Aligned::new(LINE);
        sums.resize(TILE_LEN, 0.0);
        Self {
            sums,
            mean: Vec::new(),
            level: LevelWork::new(),
            fourier: FourierWork::new(),
            buffers: [Aligned::new(LINE), Aligned::new(LINE)],
        }
    }

    /// Two buffers of at least these lengths, cut to them, with whatever was in them.
    pub fn buffers(&mut self, lengths: [usize; 2]) -> [&mut [f32]; 2] {
        let mut lengths = lengths.into_iter();
        self.buffers.each_mut().map(|buffer| at_least(buffer, lengths.next().unwrap_or(0)))
    }
}

impl<T: Element> Direct<T> {
    /// The image is the next of `images`.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn new(geometry: Geometry, convolution: &Convolution, simd: Simd, images: &mut usize) -> Result<Self, String> {
        let place = |run, k| geometry.place(convolution, run, k);
        let [rows, columns] = geometry.axes;
        let run = columns.kernel * geometry.steps[1];
        let (panels, weights) = pack(&convolution.weight, [rows.kernel, run], simd, place)?;
        let level = geometry.level::<T>(convolution, simd)?;
        let image = *images;
        *images += geometry.length;
        Ok(Self {
            along: usize::from(columns.out >= rows.out),
            weights,
            panels,
            then: Epilogue::new(&convolution.then, geometry.channels),
            simd,
            image,
            level,
            geometry,
        })
    }

    /// Reads the image from `values` and writes the result there; `images` has zeros where the padding lies.
    pub fn run(&self, values: &mut [f32], images: &mut [T], work: &mut Work) {
        let Work { sums, mean, level: level_work, .. } = work;
        let image = &mut images[self.image..][..self.geometry.length];
        mean.clear();
        match &self.level {
            Some(_) => self.simd.vectorised(LayOutWithoutMean(&self.geometry, values, image, mean)),
            None => self.simd.vectorised(LayOut(&self.geometry, values, image)),
        }
        for (number, panel) in self.panels.iter().enumerate() {
            let level = self.level.as_ref().map(|level| level.sums(number, mean, level_work, self.simd));
            let most = self.simd.pixels(panel.groups);
            let lanes = panel.groups * LANES;
            let along = self.geometry.axes[self.along];
            for other in 0..self.geometry.axes[1 - self.along].out {
                for (first, count) in tiles(along.out, most) {
                    let sums = &mut sums[..count * lanes];
                    self.maxima(panel, image, [other, first, count], sums);
                    if let Some(level) = level {
                        sums.iter_mut().zip(&level[first * lanes..]).for_each(|(sum, level)| *sum += level);
                    }
                    let store =
                        Store(&self.geometry, &self.then, sums, panel, self.along, [other, first], &mut *values);
                    self.simd.vectorised(store);
                }
            }
        }
    }

    /// The sums of `count` values from `first` on, the maximum of each over its window.
    fn maxima(&self, panel: &Panel, image: &[T], [other, first, count]: [usize; 3], sums: &mut [f32]) {
        let [rows, columns] = &self.geometry.axes;
        let (along, across) = (self.geometry.axes[self.along], self.geometry.axes[1 - self.along]);
        let pixel = along.pool_stride * along.stride * self.geometry.steps[self.along];
        for inner in 0..rows.window * columns.window {
            let inner = [inner / columns.window, inner % columns.window];
            let fixed = across.start(other, inner[1 - self.along]);
            let places = [first, first + count - 1].map(|value| {
                let start = along.start(value, inner[self.along]);
                if self.along == 0 { [start, fixed] } else { [fixed, start] }
            });
            let (operands, walk) = self.operands(panel, image, places, pixel);
            tile(self.simd, [count, panel.groups], operands, walk, inner != [0, 0], sums);
        }
    }

    /// What a tile multiplies whose pixels are `pixel` elements apart. `firsts` are the row and column where the kernel
    /// starts for the first of them, `lasts` those for the last.
    #[inline]
    fn operands<'a>(
        &'a self,
        panel: &Panel,
        image: &'a [T],
        [firsts, lasts]: [[usize; 2]; 2],
        pixel: usize,
    ) -> ([&'a [T]; 2], Walk) {
        let Geometry { axes: [rows, columns], steps, .. } = &self.geometry;
        let run = columns.kernel * steps[1];
        let block = T::PER_STEP * panel.groups * LANES;
        let w_run = run.div_ceil(T::PER_STEP) * block;
        // Zeros around the image are passed over.
        let (run_0, run_1) = rows.seen(firsts[0], lasts[0]);
        let (k_0, k_1) = columns.seen(firsts[1], lasts[1]);
        let step_0 = k_0 * steps[1] / T::PER_STEP;
        let step_1 = (k_1 * steps[1]).min(run).div_ceil(T::PER_STEP);
        let walk = Walk { pixel, run: steps[0], runs: run_1 - run_0, steps: step_1 - step_0, w_run };
        let x = (firsts[0] + run_0) * steps[0] + firsts[1] * steps[1] + step_0 * T::PER_STEP;
        let w = panel.weights + run_0 * w_run + step_0 * block;
        // Beyond the image where nothing is seen.
        ([image.get(x..).unwrap_or_default(), self.weights.get(w..).unwrap_or_default()], walk)
    }
}

/// Reads the image into its place.
struct LayOut<'a, T>(&'a Geometry, &'a [f32], &'a mut [T]);

impl<T: Element> Vectorised for LayOut<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, values, image) = self;
        let [rows, columns, channels] = *layer.from.shape else { return };
        let strides = &layer.from.strides;
        for r in 0..rows {
            let to = (layer.before[0] + r) * layer.row + layer.before[1] * layer.column;
            let row = &mut image[to..][..columns * channels];
            let from = layer.from.offset + r * strides[0];
            if channels == 1 && strides[1] == 1 {
                convert(&values[from..][..columns], row);
            } else if channels == 1 {
                for (to, &from) in row.iter_mut().zip(values[from..].iter().step_by(strides[1])) {
                    *to = T::from_f32(from);
                }
            } else if strides[2] == 1 {
                for (q, pixel) in row.chunks_exact_mut(channels).enumerate() {
                    convert(&values[from + q * strides[1]..][..channels], pixel);
                }
            } else {
                for (q, pixel) in row.chunks_exact_mut(channels).enumerate() {
                    for (to, from) in pixel.iter_mut().zip(values[from + q * strides[1]..].iter().step_by(strides[2])) {
                        *to = T::from_f32(*from);
                    }
                }
            }
        }
    }
}

/// Reads an image of one channel into its place less the mean of its rows, which goes to `mean`.
struct LayOutWithoutMean<'a, T>(&'a Geometry, &'a [f32], &'a mut [T], &'a mut Vec<f32>);

impl<T: Element> Vectorised for LayOutWithoutMean<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, values, image, mean) = self;
        let (rows, columns) = (layer.from.shape[0], layer.from.shape[1]);
        let strides = &layer.from.strides;
        mean.resize(columns, 0.0);
        for r in 0..rows {
            let row = values[layer.from.offset + r * strides[0]..].iter().step_by(strides[1]);
            mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value);
        }
        mean.iter_mut().for_each(|mean| *mean /= rows as f32);
        for r in 0..rows {
            let row = values[layer.from.offset + r * strides[0]..].iter().step_by(strides[1]);
            let to = &mut image[(layer.before[0] + r) * layer.row..][..columns];
            to.iter_mut().zip(row.zip(&*mean)).for_each(|(to, (value, mean))| *to = T::from_f32(value - mean));
        }
    }
}

/// Applies what follows to the sums of a tile, and writes them: those of the values from `first` on along an axis, at
/// `other` of the other.
pub struct Store<'a>(
    pub &'a Geometry,
    pub &'a Epilogue,
    pub &'a mut [f32],
    pub &'a Panel,
    pub usize,
    pub [usize; 2],
    pub &'a mut [f32],
);

impl Vectorised for Store<'_> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, then, sums, panel, along, [other, first], values) = self;
        let lanes = panel.groups * LANES;
        then.apply(sums, lanes, panel.channel);
        let channels = lanes.min(layer.channels - panel.channel);
        let (value_stride, other_stride) = (layer.to_steps[along], layer.to_steps[1 - along]);
        let stride = layer.to.strides[2];
        for (m, pixel) in sums.chunks_exact(lanes).enumerate() {
            let at = layer.to.offset + (first + m) * value_stride + other * other_stride + panel.channel * stride;
            if stride == 1 {
                values[at..at + channels].copy_from_slice(&pixel[..channels]);
            } else {
                for (c, &value) in pixel[..channels].iter().enumerate() {
                    values[at + c * stride] = value;
                }
            }
        }
    }
}

#[inline(always)]
pub fn convert<T: Element>(from: &[f32], to: &mut [T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = T::from_f32(from);
    }
}

//! A convolution as one product per tile of pixels, with the maximum over windows and the functions after it on the tile.
//!
//! The image is laid out `[rows × columns × channels]`, with its zeros around it. What a kernel's row sees at a pixel then lies
//! side by side, and neighbouring pixels overlap in place: no patch is ever copied. The sums of a whole pooling window meet
//! in one tile that stays in the first cache, so values before the maximum are never written to memory.

use super::{
    element::Element,
    epilogue::Epilogue,
    graph::Convolution,
    kernels::{LANES, Larger, Product, Simd, Vectorised, Walk, Window, tile},
    level::{Level, Steady},
    panel::{Aligned, LINE, MOST_PIXELS, Panel, Rounding, TILE_LEN, at_least, pack, tiles},
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
    fn seen(&self, first: usize, last: usize) -> (usize, usize) {
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
    /// The axes before they were merged, where they were.
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
        // A run is rounded up to whole steps, so rows and columns change places where that saves steps or runs.
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

    /// The axis of time as the image is laid out.
    pub fn time(&self) -> usize {
        usize::from(self.turned)
    }

    /// Of a kernel's weights: carried where a row of the kernel goes along time, as sounds change slowly.
    pub fn rounding(&self) -> Rounding {
        if self.one_channel() && self.turned { Rounding::Carried } else { Rounding::Nearest }
    }

    /// The same with zeros after it, so that one axis has `padded` places; for [one channel](Self::one_channel).
    pub fn extended<T: Element>(mut self, axis: usize, padded: usize) -> Self {
        self.axes[axis].after += padded - self.axes[axis].padded();
        self.row = self.axes[1].padded();
        self.length = self.row * self.axes[0].padded() + T::PER_STEP;
        self.steps[0] = self.row;
        self
    }

    /// The weight of element `k` of row `run` of the kernel.
    pub fn weight(&self, convolution: &Convolution, channel: usize, run: usize, k: usize) -> f32 {
        let (row, k) = if self.merged.is_some() { (k / self.row, k % self.row) } else { (run, k) };
        let (column, input) = (k / self.column, k % self.column);
        let [r, c] = if self.turned { [column, row] } else { [row, column] };
        let [rows, columns] = convolution.kernel();
        convolution.weight.values[((channel * self.column + input) * rows + r) * columns + c]
    }

    /// Reads the image into its place, less its mean over time where that is added as a level; the mean goes to `means`.
    pub fn lay_out<T: Element>(
        &self,
        level: Option<&Level>,
        values: &[f32],
        image: &mut [T],
        means: &mut Vec<f32>,
        simd: Simd,
    ) {
        match level {
            Some(level) => simd.vectorised(LayOutWithoutMean(self, level, values, image, means)),
            None => simd.vectorised(LayOut(self, values, image)),
        }
    }

    /// What keeps steady sounds exact, where values are rounded.
    pub fn level<T: Element>(&self, convolution: &Convolution, simd: Simd) -> Option<Level> {
        let rounded = T::PER_STEP > 1;
        if !rounded || self.column > 1 {
            return None;
        }
        let Some(axes) = self.merged else {
            let weight = |channel, row, k| self.weight(convolution, channel, row, k);
            return Level::new(self.time(), self.axes, self.channels, simd, weight);
        };
        let weight = |channel, row, k| self.weight(convolution, channel, 0, row * self.row + k);
        Level::new(0, axes, self.channels, simd, weight).map(Level::over_whole_rows)
    }
}

/// A convolution made ready for one image size and one kind of number.
pub struct Direct<T> {
    geometry: Geometry,
    /// The axis whose neighbours make up a tile.
    along: usize,
    kernel: Kernel<T>,
    then: Epilogue,
    simd: Simd,
    /// Where the image is among all images.
    image: usize,
    level: Option<Level>,
}

/// The weights of a convolution, and the axes of the image they go over.
pub struct Kernel<T> {
    pub axes: [Axis; 2],
    /// Elements from one row of the image, and one column, to the next.
    pub steps: [usize; 2],
    weights: Aligned<T>,
    pub panels: Vec<Panel>,
}

impl<T: Element> Kernel<T> {
    /// `weight(channel, row, element)`.
    pub fn new(
        axes: [Axis; 2],
        steps: [usize; 2],
        channels: usize,
        rounding: Rounding,
        simd: Simd,
        weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Self {
        let (panels, weights) = pack(channels, [axes[0].kernel, axes[1].kernel * steps[1]], rounding, simd, weight);
        Self { axes, steps, weights, panels }
    }

    /// The product of a tile whose pixels are `pixel` elements apart. `firsts` are the row and column where the kernel starts for
    /// the first of them and the first place of their window, `lasts` those for the last.
    #[inline]
    pub fn product<'a>(
        &'a self,
        panel: &Panel,
        image: &'a [T],
        [firsts, lasts]: [[usize; 2]; 2],
        pixel: usize,
    ) -> Product<'a, T> {
        let [rows, columns] = &self.axes;
        let run = columns.kernel * self.steps[1];
        let block = T::PER_STEP * panel.groups * LANES;
        let w_run = run.div_ceil(T::PER_STEP) * block;
        // Zeros around the image are passed over.
        let (run_0, run_1) = rows.seen(firsts[0], lasts[0]);
        let (k_0, k_1) = columns.seen(firsts[1], lasts[1]);
        let step_0 = k_0 * self.steps[1] / T::PER_STEP;
        let step_1 = (k_1 * self.steps[1]).min(run).div_ceil(T::PER_STEP);
        let walk = Walk { pixel, run: self.steps[0], runs: run_1 - run_0, steps: step_1 - step_0, w_run };
        let x = (firsts[0] + run_0) * self.steps[0] + firsts[1] * self.steps[1] + step_0 * T::PER_STEP;
        let w = panel.weights + run_0 * w_run + step_0 * block;
        // Beyond the image where nothing is seen.
        let (x, w) = (image.get(x..).unwrap_or_default(), self.weights.get(w..).unwrap_or_default());
        Product::single(x, w, walk)
    }
}

/// What one convolution after the other works in.
pub struct Work {
    /// Of one tile.
    pub sums: Aligned<f32>,
    /// Of the image: one per column, or per row, with zeros where its padding lies.
    pub means: Vec<f32>,
    /// What the mean of the image adds to the sums.
    pub level: Aligned<f32>,
    /// A whole image before it is split.
    pub image: Vec<f32>,
    /// Parts of a whole image, while it is split.
    pub parts: [Aligned<f32>; 2],
    buffers: [Aligned<f32>; 2],
}

impl Work {
    /// Two buffers of at least these lengths, cut to them, with whatever was in them.
    pub fn buffers(&mut self, lengths: [usize; 2]) -> [&mut [f32]; 2] {
        let mut lengths = lengths.into_iter();
        self.buffers.each_mut().map(|buffer| at_least(buffer, lengths.next().unwrap_or(0)))
    }

    pub fn new() -> Self {
        let mut sums = Aligned::new(LINE);
        sums.resize(TILE_LEN, 0.0);
        Self {
            sums,
            means: Vec::new(),
            level: Aligned::new(LINE),
            image: Vec::new(),
            parts: [Aligned::new(LINE), Aligned::new(LINE)],
            buffers: [Aligned::new(LINE), Aligned::new(LINE)],
        }
    }
}

impl<T: Element> Direct<T> {
    /// The image is the next of `images`.
    pub fn new(geometry: Geometry, convolution: &Convolution, simd: Simd, images: &mut usize) -> Self {
        let weight = |channel, run, k| geometry.weight(convolution, channel, run, k);
        let kernel = Kernel::new(geometry.axes, geometry.steps, geometry.channels, geometry.rounding(), simd, weight);
        let level = geometry.level::<T>(convolution, simd);
        let image = *images;
        *images += geometry.length;
        // A tile takes the mean of one row.
        let one_row = level.as_ref().is_some_and(|level| level.time() == 1);
        Self {
            along: usize::from(one_row || geometry.axes[1].out >= geometry.axes[0].out),
            kernel,
            then: Epilogue::new(&convolution.then, geometry.channels),
            simd,
            image,
            level,
            geometry,
        }
    }

    /// Reads the image from `values` and writes the result there; `images` has zeros where the padding lies.
    pub fn run(&self, values: &mut [f32], images: &mut [T], work: &mut Work) {
        let Work { sums, means, level, .. } = work;
        let image = &mut images[self.image..][..self.geometry.length];
        self.geometry.lay_out(self.level.as_ref(), values, image, means, self.simd);
        let (means, level) = (means.as_slice(), level);
        for (number, panel) in self.kernel.panels.iter().enumerate() {
            let level = self.level.as_ref().map(|it| it.prepare(number, means, level, self.simd));
            let most = self.simd.pixels(panel.groups);
            let lanes = panel.groups * LANES;
            let along = self.geometry.axes[self.along];
            for other in 0..self.geometry.axes[1 - self.along].out {
                for (first, count) in tiles(along.out, most) {
                    let sums = &mut sums[..count * lanes];
                    self.maxima(panel, image, level, [other, first, count], sums);
                    let place = [other, first, 1];
                    self.simd.vectorised(Store(
                        &self.geometry,
                        &self.then,
                        sums,
                        panel,
                        self.along,
                        place,
                        &mut *values,
                    ));
                }
            }
        }
    }

    /// The sums of `count` values from `first` on, the maximum of each over its window.
    fn maxima(
        &self,
        panel: &Panel,
        image: &[T],
        level: Option<Steady<'_>>,
        [other, first, count]: [usize; 3],
        sums: &mut [f32],
    ) {
        let lanes = panel.groups * LANES;
        let (mut offsets, mut offsets_of) = ([0; MOST_PIXELS], None);
        let [rows, columns] = &self.geometry.axes;
        let (along, across) = (self.geometry.axes[self.along], self.geometry.axes[1 - self.along]);
        let pixel = along.pool_stride * along.stride * self.geometry.steps[self.along];
        for inner in 0..rows.window * columns.window {
            let inner = [inner / columns.window, inner % columns.window];
            let fixed = across.start(other, inner[1 - self.along]);
            let [firsts, lasts] = [first, first + count - 1].map(|value| {
                let start = along.start(value, inner[self.along]);
                if self.along == 0 { [start, fixed] } else { [fixed, start] }
            });
            let mut product = self.kernel.product(panel, image, [firsts, lasts], pixel);
            product.larger = if inner == [0, 0] { Larger::Never } else { Larger::Always };
            if let Some(steady) = level {
                if offsets_of != Some(inner[self.along]) {
                    offsets_of = Some(inner[self.along]);
                    for (m, offset) in offsets[..count].iter_mut().enumerate() {
                        let place = (first + m) * along.pool_stride + inner[self.along];
                        *offset = steady.level.offset(self.along, place, lanes);
                    }
                }
                let place = other * across.pool_stride + inner[1 - self.along];
                product.base = Some(steady.base(1 - self.along, [place, 0], lanes, &offsets));
            }
            tile(self.simd, [count, panel.groups], &[product], Window::SINGLE, sums);
        }
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

/// Lays out an image of one channel less its mean over time, which goes to `means`.
struct LayOutWithoutMean<'a, T>(&'a Geometry, &'a Level, &'a [f32], &'a mut [T], &'a mut Vec<f32>);

impl<T: Element> Vectorised for LayOutWithoutMean<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, level, values, image, means) = self;
        // Where rows are frames, the mean of every column; else that of every row.
        let time = level.time_of_image();
        let band = 1 - time;
        let (frames, bands) = (layer.from.shape[time], layer.from.shape[band]);
        let (from_frame, from_band) = (layer.from.strides[time], layer.from.strides[band]);
        let steps = [layer.row, layer.column];
        let (to_frame, to_band) = (steps[time], steps[band]);
        let frame = |t: usize| values[layer.from.offset + t * from_frame..].iter().step_by(from_band);

        means.clear();
        means.resize(layer.merged.unwrap_or(layer.axes)[band].padded(), 0.0);
        let means = &mut means[layer.before[band]..][..bands];
        for t in 0..frames {
            let at = layer.from.offset + t * from_frame;
            if from_band == 1 {
                means.iter_mut().zip(&values[at..at + bands]).for_each(|(mean, value)| *mean += value);
            } else {
                means.iter_mut().zip(frame(t)).for_each(|(mean, value)| *mean += value);
            }
        }
        means.iter_mut().for_each(|mean| *mean /= frames as f32);
        let first = layer.before[0] * layer.row + layer.before[1] * layer.column;
        for t in 0..frames {
            let (at, to) = (layer.from.offset + t * from_frame, first + t * to_frame);
            if from_band == 1 && to_band == 1 {
                let values = values[at..at + bands].iter().zip(&*means);
                image[to..to + bands].iter_mut().zip(values).for_each(|(to, (v, mean))| *to = T::from_f32(v - mean));
            } else if from_band == 1 {
                let image = image[to..].iter_mut().step_by(to_band);
                let values = values[at..at + bands].iter().zip(&*means);
                image.zip(values).for_each(|(to, (v, mean))| *to = T::from_f32(v - mean));
            } else {
                let image = image[to..].iter_mut().step_by(to_band);
                image.zip(frame(t).zip(&*means)).for_each(|(to, (v, mean))| *to = T::from_f32(v - mean));
            }
        }
    }
}

/// Applies what follows to the sums of a tile, and writes them: those of every `every`-th value from `first` on along an axis, at
/// `other` of the other.
pub struct Store<'a>(
    pub &'a Geometry,
    pub &'a Epilogue,
    pub &'a mut [f32],
    pub &'a Panel,
    pub usize,
    pub [usize; 3],
    pub &'a mut [f32],
);

impl Vectorised for Store<'_> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, then, sums, panel, along, [other, first, every], values) = self;
        let lanes = panel.groups * LANES;
        then.apply(sums, lanes, panel.channel);
        let channels = lanes.min(layer.channels - panel.channel);
        let (value_stride, other_stride) = (layer.to_steps[along], layer.to_steps[1 - along]);
        let stride = layer.to.strides[2];
        for (m, pixel) in sums.chunks_exact(lanes).enumerate() {
            let at =
                layer.to.offset + (first + m * every) * value_stride + other * other_stride + panel.channel * stride;
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

//! A convolution as one product per tile of pixels, with the maximum over windows and the functions after it on the tile.
//!
//! The image is laid out `[rows × columns × channels]`, with its zeros around it. What a kernel's row sees at a pixel then lies
//! side by side, and neighbouring pixels overlap in place: no patch is ever copied. The sums of a whole pooling window meet
//! in one tile that stays in the first cache, so values before the maximum are never written to memory.

use super::{
    element::Element,
    epilogue::Epilogue,
    graph::Convolution,
    kernels::{Base, LANES, Simd, Vectorised, Walk, tile},
    level::Level,
    panel::{MOST_PIXELS, Panel, TILE_LEN, pack, tiles},
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
    window: usize,
    pool_stride: usize,
    /// Values after the maximum.
    out: usize,
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
    fn start(&self, value: usize, inner: usize) -> usize {
        (value * self.pool_stride + inner) * self.stride
    }

    /// The part of the kernel that sees more than padding, for values whose first places are `first..=last`.
    fn seen(&self, first: usize, last: usize) -> (usize, usize) {
        let start = self.before.saturating_sub(last).min(self.kernel);
        (start, (self.before + self.length).saturating_sub(first).clamp(start, self.kernel))
    }
}

/// A convolution made ready for one image size and one kind of number.
pub struct Direct<T> {
    /// Rows and columns of the image as it is laid out.
    axes: [Axis; 2],
    /// The axis whose neighbours make up a tile.
    along: usize,
    /// Elements from one row of the image, and one column, to the next.
    steps: [usize; 2],
    /// Elements a kernel's row sees, and the steps that take.
    run: usize,
    run_steps: usize,
    weights: Vec<T>,
    panels: Vec<Panel>,
    channels: usize,
    then: Epilogue,
    simd: Simd,
    /// `[rows × columns × channels]` in both, before any axes are merged.
    from: View,
    to: View,
    /// From one value to the next along each axis.
    to_steps: [usize; 2],
    image: ImageLayout,
    level: Option<Level>,
}

/// What one convolution after the other works in.
#[derive(Default)]
pub struct Work {
    /// Of one tile.
    pub sums: Vec<f32>,
    /// Of the image: one per column, or per row, with zeros where its padding lies.
    means: Vec<f32>,
    /// What the mean of the image adds to the sums.
    level: Vec<f32>,
    buffers: [Vec<f32>; 2],
}

impl Work {
    /// Two buffers of at least these lengths, cut to them, with whatever was in them.
    pub fn buffers(&mut self, lengths: [usize; 2]) -> [&mut [f32]; 2] {
        let mut lengths = lengths.into_iter();
        self.buffers.each_mut().map(|buffer| {
            let length = lengths.next().unwrap_or(0);
            buffer.resize(buffer.len().max(length), 0.0);
            &mut buffer[..length]
        })
    }

    pub fn new() -> Self {
        Self { sums: vec![0.0; TILE_LEN], ..Self::default() }
    }
}

/// How an image is laid out with its zeros.
#[derive(Clone, Copy, Debug)]
struct ImageLayout {
    offset: usize,
    before: [usize; 2],
    row: usize,
    column: usize,
    length: usize,
}

impl<T: Element> Direct<T> {
    /// `from` and `to` are `[1 × channels × rows × columns]`; the image is the next of `images`.
    pub fn new(convolution: &Convolution, from: &View, to: &View, simd: Simd, images: &mut usize) -> Self {
        let [_, inputs, ..] = *convolution.weight.shape else { unreachable!("a convolution's weight has four axes") };
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
        let mut axes = order.map(|axis| natural[axis - 2]);
        let laid_out = |view: &View| view.permuted(&[order[0], order[1], 1]);

        let column = inputs;
        let row = column * axes[1].padded();
        let image = ImageLayout {
            offset: *images,
            before: axes.map(|axis| axis.before),
            row,
            column,
            // A last step may read past the end, where its weights are zero.
            length: row * axes[0].padded() + T::PER_STEP,
        };
        *images += image.length;
        let to = laid_out(to);
        let mut steps = [row, column];
        let mut to_steps = [to.strides[0], to.strides[1]];
        let kernel_columns = axes[1].kernel;
        let merged = axes[1].kernel == axes[1].length && axes[1].padded() == axes[1].length;
        if merged {
            // A kernel as wide as the image sees whole rows: one long run.
            axes = [Axis::SINGLE, axes[0]];
            steps = [image.length, row];
            to_steps = [0, to_steps[0]];
        }
        let run = axes[1].kernel * steps[1];
        let run_steps = run.div_ceil(T::PER_STEP);

        let channels = convolution.channels_out();
        let value = |channel: usize, run: usize, k: usize| {
            let (kernel_row, k) = if merged { (k / row, k % row) } else { (run, k) };
            let (kernel_column, input) = (k / inputs, k % inputs);
            let [r, c] = if turned { [kernel_column, kernel_row] } else { [kernel_row, kernel_column] };
            let [rows, columns] = convolution.kernel();
            debug_assert!(kernel_column < kernel_columns);
            convolution.weight.values[((channel * inputs + input) * rows + r) * columns + c]
        };
        let (panels, weights) = pack(channels, [axes[0].kernel, run], simd, value);
        let rounded = T::PER_STEP > 1;
        let level = (rounded && inputs == 1 && !merged)
            .then(|| Level::new(usize::from(turned), axes, channels, simd, value))
            .flatten();
        // A tile takes the mean of one row.
        let one_row = level.as_ref().is_some_and(|level| level.time() == 1);
        Self {
            along: usize::from(one_row || axes[1].out >= axes[0].out),
            axes,
            steps,
            run,
            run_steps,
            weights,
            panels,
            channels,
            then: Epilogue::new(&convolution.then, channels),
            simd,
            from: laid_out(from),
            to,
            to_steps,
            image,
            level,
        }
    }

    /// Reads the image from `values` and writes the result there; `images` has zeros where the padding lies.
    pub fn run(&self, values: &mut [f32], images: &mut [T], work: &mut Work) {
        let Work { sums, means, level, .. } = work;
        let image = &mut images[self.image.offset..][..self.image.length];
        match &self.level {
            Some(_) => self.simd.vectorised(LayOutWithoutMean(self, &*values, &mut *image, &mut *means)),
            None => self.simd.vectorised(LayOut(self, &*values, &mut *image)),
        }
        let (means, level) = (means.as_slice(), level);
        for (number, panel) in self.panels.iter().enumerate() {
            if let Some(prepared) = &self.level {
                level.resize(prepared.len().max(level.len()), 0.0);
                prepared.prepare(number, means, level, self.simd);
            }
            let level = self.level.as_ref().map(|it| Steady { level: it, sums: it.sums(number, level), means });
            let most = self.simd.pixels(panel.groups);
            let lanes = panel.groups * LANES;
            let along = self.axes[self.along];
            for other in 0..self.axes[1 - self.along].out {
                for (first, count) in tiles(along.out, most) {
                    let sums = &mut sums[..count * lanes];
                    self.maxima(panel, image, level, other, first, count, sums);
                    self.simd.vectorised(Store(self, sums, panel, [other, first], &mut *values));
                }
            }
        }
    }

    /// The sums of `count` values from `first` on, the maximum of each over its window.
    #[expect(clippy::too_many_arguments, reason = "a tile is a place in four of them")]
    fn maxima(
        &self,
        panel: &Panel,
        image: &[T],
        level: Option<Steady<'_>>,
        other: usize,
        first: usize,
        count: usize,
        sums: &mut [f32],
    ) {
        let lanes = panel.groups * LANES;
        let (mut offsets, mut offsets_of) = ([0; MOST_PIXELS], None);
        let [rows, columns] = &self.axes;
        let (along, across) = (self.axes[self.along], self.axes[1 - self.along]);
        let block = T::PER_STEP * panel.groups * LANES;
        let w_run = self.run_steps * block;
        for inner in 0..rows.window * columns.window {
            let inner = [inner / columns.window, inner % columns.window];
            let start = along.start(first, inner[self.along]);
            let last = along.start(first + count - 1, inner[self.along]);
            let fixed = across.start(other, inner[1 - self.along]);
            let (starts, lasts) =
                if self.along == 0 { ([start, fixed], [last, fixed]) } else { ([fixed, start], [fixed, last]) };
            let (run_0, run_1) = rows.seen(starts[0], lasts[0]);
            let (k_0, k_1) = columns.seen(starts[1], lasts[1]);
            let step_0 = k_0 * self.steps[1] / T::PER_STEP;
            let step_1 = (k_1 * self.steps[1]).min(self.run).div_ceil(T::PER_STEP);
            let walk = Walk {
                pixel: along.pool_stride * along.stride * self.steps[self.along],
                run: self.steps[0],
                runs: run_1 - run_0,
                steps: step_1 - step_0,
                w_run,
            };
            let x = (starts[0] + run_0) * self.steps[0] + starts[1] * self.steps[1] + step_0 * T::PER_STEP;
            let w = panel.weights + run_0 * w_run + step_0 * block;
            // Beyond the image where nothing is seen.
            let (x, w) = (image.get(x..).unwrap_or_default(), self.weights.get(w..).unwrap_or_default());
            let base = level.map(|Steady { level, sums, means }| {
                let inner_across = inner[1 - self.along];
                if offsets_of != Some(inner[self.along]) {
                    offsets_of = Some(inner[self.along]);
                    for (m, offset) in offsets[..count].iter_mut().enumerate() {
                        let place = (first + m) * along.pool_stride + inner[self.along];
                        *offset = level.offset(self.along, place, lanes);
                    }
                }
                let across = level.offset(1 - self.along, other * across.pool_stride + inner_across, lanes);
                Base { values: &sums[across..], offsets: &offsets, scale: level.scale(starts[0], means) }
            });
            tile(self.simd, [count, panel.groups], x, w, walk, base, sums, inner != [0, 0]);
        }
    }
}

/// Reads the image into its place.
struct LayOut<'a, T>(&'a Direct<T>, &'a [f32], &'a mut [T]);

impl<T: Element> Vectorised for LayOut<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, values, image) = self;
        let [rows, columns, channels] = *layer.from.shape else { return };
        let strides = &layer.from.strides;
        for r in 0..rows {
            let to = (layer.image.before[0] + r) * layer.image.row + layer.image.before[1] * layer.image.column;
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
struct LayOutWithoutMean<'a, T>(&'a Direct<T>, &'a [f32], &'a mut [T], &'a mut Vec<f32>);

impl<T: Element> Vectorised for LayOutWithoutMean<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, values, image, means) = self;
        let Some(level) = &layer.level else { return };
        // Where rows are frames, the mean of every column; else that of every row.
        let time = level.time();
        let band = 1 - time;
        let (frames, bands) = (layer.from.shape[time], layer.from.shape[band]);
        let (from_frame, from_band) = (layer.from.strides[time], layer.from.strides[band]);
        let (to_frame, to_band) = (layer.steps[time], layer.steps[band]);
        let frame = |t: usize| values[layer.from.offset + t * from_frame..].iter().step_by(from_band);

        means.clear();
        means.resize(layer.axes[band].padded(), 0.0);
        let means = &mut means[layer.image.before[band]..][..bands];
        for t in 0..frames {
            let at = layer.from.offset + t * from_frame;
            if from_band == 1 {
                means.iter_mut().zip(&values[at..at + bands]).for_each(|(mean, value)| *mean += value);
            } else {
                means.iter_mut().zip(frame(t)).for_each(|(mean, value)| *mean += value);
            }
        }
        means.iter_mut().for_each(|mean| *mean /= frames as f32);
        let first = layer.image.before[0] * layer.steps[0] + layer.image.before[1] * layer.steps[1];
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

/// Applies what follows to the sums of a tile, and writes them.
struct Store<'a, T>(&'a Direct<T>, &'a mut [f32], &'a Panel, [usize; 2], &'a mut [f32]);

impl<T: Element> Vectorised for Store<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, sums, panel, [other, first], values) = self;
        let lanes = panel.groups * LANES;
        layer.then.apply(sums, lanes, panel.channel);
        let channels = lanes.min(layer.channels - panel.channel);
        let (value_stride, other_stride) = (layer.to_steps[layer.along], layer.to_steps[1 - layer.along]);
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

/// What the mean of an image adds to the sums of one panel.
#[derive(Clone, Copy)]
struct Steady<'a> {
    level: &'a Level,
    sums: &'a [f32],
    means: &'a [f32],
}

#[inline(always)]
pub fn convert<T: Element>(from: &[f32], to: &mut [T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = T::from_f32(from);
    }
}

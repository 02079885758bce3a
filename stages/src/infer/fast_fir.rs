//! A convolution along one axis by fast FIR algorithms: fewer products for a few more sums.
//!
//! Even and odd values of a long filter `h` need the even and odd taps over the even and odd places of `x`, four filters of half
//! the length. Three are enough (Mou and Duhamel, "Short-Length FIR Filters and Their Use in Fast Nonrecursive Filtering",
//! 1991; in this transposed form Winograd's F(2, 2)):
//!
//! ```text
//! m₀ = hₑ · (xₑ − xₒ)    m₁ = (hₑ + hₒ) · xₒ    m₂ = hₒ · (xₑ₊₁ − xₒ)    yₑ = m₀ + m₁    yₒ = m₁ + m₂
//! ```
//!
//! Each of the three may be split again. In float32 this is as exact as the direct sum. In bfloat16, where sums of taps and of
//! places are rounded, scores are up to three times as far off (measured), so each model is tried with and without it.

use super::{
    convolution::{Axis, Geometry, Kernel, Store, Work, convert},
    element::Element,
    epilogue::Epilogue,
    graph::Convolution,
    kernels::{Base, LANES, Simd, Then, Vectorised},
    level::{Level, Steady},
    panel::{MOST_PIXELS, tiles},
};

const LEVELS: usize = PRODUCTS.len();
/// What a product costs besides its steps, in steps (measured).
const PRODUCT_COST: usize = 8;
/// It has to take less than this part of the direct sum's steps: what is split is also rounded more.
const WORTH_IT: f64 = 0.8;

/// Sums of some of the products, which several values need.
const PARTS: usize = 4;

/// One product, by the number of its filter: what is added to it, and what it then is.
struct Product(usize, &'static [usize], Is);

enum Is {
    Part(usize),
    Value(usize),
}

/// The products of one level and of two. Each value is complete as soon as it can be, so that all of it stays in the first cache.
const PRODUCTS: [&[Product]; 2] = [
    &[Product(1, &[], Is::Part(0)), Product(0, &[0], Is::Value(0)), Product(2, &[0], Is::Value(1))],
    &[
        Product(4, &[], Is::Part(0)),
        Product(1, &[0], Is::Part(1)),
        Product(3, &[], Is::Part(2)),
        Product(0, &[1, 2], Is::Value(0)),
        Product(5, &[], Is::Part(3)),
        Product(2, &[1, 3], Is::Value(2)),
        Product(7, &[0], Is::Part(1)),
        Product(6, &[1, 2], Is::Value(1)),
        Product(8, &[1, 3], Is::Value(3)),
    ],
];

/// The axis that is split, and how many times.
pub type Split = (usize, usize);

/// The split that saves most, where one saves enough.
pub fn best_split<T: Element>(geometry: &Geometry) -> Option<Split> {
    let [rows, columns] = geometry.axes;
    let steps = |columns: usize| columns.div_ceil(T::PER_STEP);
    let fits = |axis: &usize| {
        let Axis { stride, window, pool_stride, kernel, .. } = geometry.axes[*axis];
        // With more channels than one, making the images costs what the products save (measured).
        stride == 1 && window == 1 && pool_stride == 1 && kernel > 1 && geometry.one_channel()
    };
    // What part of the direct sum's steps it takes for all values along the axis.
    let part = |&(axis, levels): &Split| {
        let Axis { kernel, out, .. } = geometry.axes[axis];
        let cost = |filter: &Filter| match axis {
            0 => filter.length * steps(columns.kernel) + PRODUCT_COST,
            _ => rows.kernel * steps(filter.length) + PRODUCT_COST,
        };
        let split = filters(levels, kernel).iter().map(cost).sum::<usize>() * out.div_ceil(1 << levels);
        split as f64 / (rows.kernel * steps(columns.kernel) * out) as f64
    };
    let splits = [0, 1].into_iter().filter(fits).flat_map(|axis| (1..=LEVELS).map(move |levels| (axis, levels)));
    splits.min_by(|a, b| part(a).total_cmp(&part(b))).filter(|best| part(best) <= WORTH_IT)
}

pub struct FastFir<T> {
    geometry: Geometry,
    /// The axis that is split.
    axis: usize,
    levels: usize,
    /// Values of one filter along the axis.
    out: usize,
    kernels: Vec<Kernel<T>>,
    then: Epilogue,
    simd: Simd,
    /// Where the image of the first filter is among all images, and elements from one filter's to the next.
    image: usize,
    step: usize,
    level: Option<Level>,
}

/// One of the filters.
struct Filter {
    /// The first and the last place of `x` that its first tap sees, relative to every `2^levels`-th one.
    sees: [usize; 2],
    /// The taps of the whole filter that its first tap is the sum of.
    taps: Vec<usize>,
    length: usize,
}

/// All filters that one with `length` taps is split into.
fn filters(levels: usize, length: usize) -> Vec<Filter> {
    let mut filters = vec![Filter { sees: [0, 0], taps: vec![0], length }];
    for level in 0..levels {
        let split = |filter: Filter| {
            let forms: [([usize; 2], &[usize]); 3] = [([0, 1], &[0]), ([1, 1], &[0, 1]), ([1, 2], &[1])];
            forms.map(|([first, last], taps)| Filter {
                sees: [filter.sees[0] + (first << level), filter.sees[1] + (last << level)],
                taps: filter.taps.iter().flat_map(|&at| taps.iter().map(move |more| at + (more << level))).collect(),
                length: if taps.contains(&0) { filter.length.div_ceil(2) } else { filter.length / 2 },
            })
        };
        filters = filters.into_iter().flat_map(split).collect();
    }
    filters
}

impl<T: Element> FastFir<T> {
    pub fn new(
        geometry: Geometry,
        convolution: &Convolution,
        (axis, levels): Split,
        simd: Simd,
        images: &mut usize,
    ) -> Self {
        let Axis { before, length, kernel, out, .. } = geometry.axes[axis];
        let filters = filters(levels, kernel);
        let out = out.div_ceil(1 << levels);
        let positions = out + kernel.div_ceil(1 << levels) - 1;
        // So long that every level's sums find what they need.
        let geometry = geometry.extended::<T>(axis, ((positions + 1) << levels) - 1);
        let [rows, row] = match axis {
            0 => [positions, geometry.steps[0]],
            _ => [geometry.axes[0].padded(), positions],
        };
        let make = |filter: &Filter| {
            let mut axes = geometry.axes;
            let [first, last] = filter.sees;
            let zeros = before.saturating_sub(last).div_ceil(1 << levels).min(positions);
            let end = (before + length).saturating_sub(first).div_ceil(1 << levels).clamp(zeros, positions);
            axes[axis] = Axis {
                length: end - zeros,
                before: zeros,
                after: positions - end,
                kernel: filter.length,
                out,
                ..geometry.axes[axis]
            };
            let weight = |channel, run, k| {
                let tap = if axis == 0 { run } else { k };
                let taps = filter.taps.iter().map(|more| (tap << levels) + more).filter(|&tap| tap < kernel);
                let place = |tap| if axis == 0 { [tap, k] } else { [run, tap] };
                taps.map(place).map(|[run, k]| geometry.weight(convolution, channel, run, k)).sum()
            };
            Kernel::new(axes, [row, 1], geometry.channels, simd, weight)
        };
        let kernels: Vec<Kernel<T>> = filters.iter().map(make).collect();
        // A last step may read past the end. A cache line between them, so that they do not share the same few sets of the first
        // cache.
        let step = rows * row + T::PER_STEP + 64 / size_of::<T>();
        let image = *images;
        *images += kernels.len() * step;
        let level = geometry.level::<T>(convolution, simd);
        let then = Epilogue::new(&convolution.then, geometry.channels);
        Self { geometry, axis, levels, out, kernels, then, simd, image, step, level }
    }

    /// Reads the image from `values` and writes the result there.
    pub fn run(&self, values: &mut [f32], images: &mut [T], work: &mut Work) {
        let Work { means, level, image: whole, buffers, sums } = work;
        whole.clear();
        whole.resize(self.geometry.length, 0.0);
        self.geometry.lay_out(self.level.as_ref(), values, whole, means, self.simd);
        let images = &mut images[self.image..][..self.kernels.len() * self.step];
        self.simd.vectorised(SplitImage(self, &*whole, &mut *images, &mut *buffers));

        let (means, level) = (means.as_slice(), level);
        let all = self.geometry.axes[self.axis].out;
        let every = 1 << self.levels;
        for (number, panel) in self.kernels[0].panels.iter().enumerate() {
            let level = self.level.as_ref().map(|it| it.prepare(number, means, level, self.simd));
            let lanes = panel.groups * LANES;
            for other in 0..self.geometry.axes[1 - self.axis].out {
                for (first, count) in tiles(self.out, self.simd.pixels(panel.groups)) {
                    let length = (PARTS + every) * count * lanes;
                    sums.resize(sums.len().max(length), 0.0);
                    let sums = &mut sums[..length];
                    self.maxima([number, other, first, count], images, level, sums);
                    for (value, sums) in sums.chunks_exact_mut(count * lanes).skip(PARTS).enumerate() {
                        let first = first * every + value;
                        let sums = &mut sums[..all.saturating_sub(first).div_ceil(every).min(count) * lanes];
                        let place = [other, first, every];
                        let store = Store(&self.geometry, &self.then, sums, panel, self.axis, place, &mut *values);
                        self.simd.vectorised(store);
                    }
                }
            }
        }
    }

    /// The values of `count` places of every filter from `first` on, the maximum of each over its window:
    /// `[part or value][pixel][lanes]`.
    fn maxima(
        &self,
        [number, other, first, count]: [usize; 4],
        images: &[T],
        level: Option<Steady<'_>>,
        sums: &mut [f32],
    ) {
        let across = self.geometry.axes[1 - self.axis];
        let lanes = self.kernels[0].panels[number].groups * LANES;
        let (parts, values) = sums.split_at_mut(PARTS * count * lanes);
        let mut offsets = [[0; MOST_PIXELS]; 1 << LEVELS];
        for (value, offsets) in offsets.iter_mut().enumerate().take(1 << self.levels) {
            for (pixel, offset) in offsets.iter_mut().enumerate().take(count) {
                let place = ((first + pixel) << self.levels) + value;
                *offset = level.map_or(0, |steady| steady.level.offset(self.axis, place, lanes));
            }
        }
        for inner in 0..across.window {
            let fixed = across.start(other, inner);
            let places = [first, first + count - 1].map(|at| if self.axis == 0 { [at, fixed] } else { [fixed, at] });
            let base = level.map(|steady| {
                let across = steady.level.offset(1 - self.axis, other * across.pool_stride + inner, lanes);
                (&steady.sums[across..], steady.level.scale(places[0][0], steady.means))
            });
            for Product(filter, plus, is) in PRODUCTS[self.levels - 1] {
                let mut split = parts.chunks_exact_mut(count * lanes);
                let mut parts: [&mut [f32]; PARTS] = std::array::from_fn(|_| split.next().unwrap_or_default());
                let (to, mut then) = match *is {
                    Is::Part(part) => (std::mem::take(&mut parts[part]), Then::default()),
                    Is::Value(value) => {
                        let base = base.map(|(values, scale)| Base { values, offsets: &offsets[value], scale });
                        let to = &mut values[value * count * lanes..][..count * lanes];
                        (to, Then { base, max: inner > 0, ..Then::default() })
                    }
                };
                for (to, &part) in then.plus.iter_mut().zip(*plus) {
                    *to = Some(&*parts[part]);
                }
                let (kernel, image) = (&self.kernels[*filter], &images[filter * self.step..]);
                let (panel, size) = (&kernel.panels[number], [count, kernel.steps[self.axis]]);
                kernel.tile(panel, image, places, size, then, self.simd, to);
            }
        }
    }
}

/// Makes the images of the filters from the whole one.
struct SplitImage<'a, T>(&'a FastFir<T>, &'a [f32], &'a mut [T], &'a mut [Vec<f32>; 2]);

impl<T: Element> Vectorised for SplitImage<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, whole, images, [from, to]) = self;
        let axes = layer.geometry.axes;
        let [rows, columns] = axes.map(|axis| axis.padded());
        // Rows are taken as they are, or each is split by itself.
        let (lines, width) = if layer.axis == 0 { (1, columns) } else { (rows, 1) };
        let line = rows * columns / lines;
        for number in 0..lines {
            let mut length = line / width;
            from.clear();
            from.extend_from_slice(&whole[number * line..][..line]);
            for _ in 0..layer.levels {
                let half = (length - 1) / 2;
                to.clear();
                for sequence in from.chunks_exact(length * width) {
                    split(sequence, half, width, to);
                }
                length = half;
                std::mem::swap(from, to);
            }
            let at = number * length * width;
            for (sequence, image) in from.chunks_exact(length * width).zip(images.chunks_exact_mut(layer.step)) {
                convert(sequence, &mut image[at..at + sequence.len()]);
            }
        }
    }
}

/// Appends what the three filters see of `x`, each `half` elements of `width` values.
#[inline(always)]
fn split(x: &[f32], half: usize, width: usize, to: &mut Vec<f32>) {
    let even = x.chunks_exact(2 * width).take(half);
    if width == 1 {
        to.extend(even.clone().map(|pair| pair[0] - pair[1]));
        to.extend(even.clone().map(|pair| pair[1]));
        to.extend(even.zip(x[2..].iter().step_by(2)).map(|(pair, next)| next - pair[1]));
        return;
    }
    for pair in even.clone() {
        let (a, b) = pair.split_at(width);
        to.extend(a.iter().zip(b).map(|(a, b)| a - b));
    }
    for pair in even.clone() {
        to.extend_from_slice(&pair[width..]);
    }
    for (pair, next) in even.zip(x[2 * width..].chunks(2 * width)) {
        to.extend(next[..width].iter().zip(&pair[width..]).map(|(next, b)| next - b));
    }
}

//! A convolution of one channel by fast FIR algorithms: fewer products for a few more sums.
//!
//! Even and odd values of a long filter `h` need the even and odd taps over the even and odd places of `x`, four filters of half
//! the length. Three are enough (Mou and Duhamel, "Short-Length FIR Filters and Their Use in Fast Nonrecursive Filtering",
//! 1991; in this transposed form Winograd's F(2, 2)):
//!
//! ```text
//! m₀ = hₑ · (xₑ − xₒ)    m₁ = (hₑ + hₒ) · xₒ    m₂ = hₒ · (xₑ₊₁ − xₒ)    yₑ = m₀ + m₁    yₒ = m₁ + m₂
//! ```
//!
//! Each of the three may be split again, along the same axis or the other. In float32 this is as exact as the direct sum. In
//! bfloat16, where sums of taps and of places are rounded, scores are up to three times as far off (measured), so each model is
//! tried with and without it.

use super::{
    convolution::{Axis, Geometry, Kernel, Store, Work, convert},
    element::Element,
    epilogue::Epilogue,
    graph::Convolution,
    kernels::{LANES, Larger, Product, Simd, Start, Vectorised, Window, tile},
    level::{Level, Steady},
    panel::{Aligned, LINE, MOST_PIXELS, at_least, tiles},
};

/// A fourth would be no faster (measured).
const LEVELS: usize = 3;
/// What a product costs besides its steps, in steps: what its sums take to be stored, and loaded again (measured).
const PRODUCT_COST: usize = 4;
/// It has to take less than this part of the direct sum's steps: what is split is also rounded more.
const WORTH_IT: f64 = 0.8;

/// The axis that is split at each level. Tiles lie along the first.
pub type Split = Vec<usize>;

/// Places along `axis` that one step of the split filters goes on by.
fn every(split: &[usize], axis: usize) -> usize {
    1 << split.iter().filter(|&&at| at == axis).count()
}

/// The split that saves most, where one saves enough.
pub fn best_split<T: Element>(geometry: &Geometry) -> Option<Split> {
    // With more channels than one, making the images costs what the products save (measured).
    if !geometry.one_channel() {
        return None;
    }
    let axes = geometry.axes;
    let steps = |[rows, columns]: [usize; 2]| rows * columns.div_ceil(T::PER_STEP) + PRODUCT_COST;
    let fits = |split: &Split| {
        let [along, across] = [split[0], 1 - split[0]].map(|axis| axes[axis]);
        let taps_enough = [0, 1].iter().all(|&axis| every(split, axis) <= axes[axis].kernel);
        // Of the mean, what is added goes on evenly from place to place only across time.
        let even = split[0] == geometry.time() || across.window == 1;
        let whole = across.stride == 1 && across.out == 1;
        let single = along.stride == 1 && along.window == 1 && along.pool_stride == 1;
        taps_enough && even && single && (whole || !split.contains(&(1 - split[0])))
    };
    // What part of the direct sum's steps it takes for all values.
    let part = |split: &Split| {
        let cost: usize = filters(split, axes.map(|axis| axis.kernel)).iter().map(|filter| steps(filter.lengths)).sum();
        let places = [0, 1].map(|axis| {
            let it = axes[axis];
            let all = it.out * it.window;
            all.div_ceil(every(split, axis)) as f64 / all as f64
        });
        cost as f64 * places[0] * places[1] / steps(axes.map(|axis| axis.kernel)) as f64
    };
    let splits = (1..=LEVELS).flat_map(|levels| {
        [0, 1].into_iter().flat_map(move |along| {
            // Levels along the first axis come first.
            (1..=levels).map(move |first| {
                let mut split = vec![along; first];
                split.resize(levels, 1 - along);
                split
            })
        })
    });
    splits.filter(fits).min_by(|a, b| part(a).total_cmp(&part(b))).filter(|best| part(best) <= WORTH_IT)
}

/// One of the filters.
struct Filter {
    /// Along each axis, the first and the last place of `x` that its first tap sees, relative to every `every`-th one.
    sees: [[usize; 2]; 2],
    /// Along each axis, the taps of the whole filter that its first tap is the sum of.
    taps: [Vec<usize>; 2],
    lengths: [usize; 2],
}

/// All filters that one with `lengths` taps is split into.
fn filters(split: &[usize], lengths: [usize; 2]) -> Vec<Filter> {
    let mut filters = vec![Filter { sees: [[0; 2]; 2], taps: [vec![0], vec![0]], lengths }];
    for (level, &axis) in split.iter().enumerate() {
        let step = every(&split[..level], axis);
        let in_three = |filter: Filter| {
            let forms: [([usize; 2], &[usize]); 3] = [([0, 1], &[0]), ([1, 1], &[0, 1]), ([1, 2], &[1])];
            forms.map(|([first, last], taps)| {
                let Filter { mut sees, taps: mut sums, mut lengths } = Filter { taps: filter.taps.clone(), ..filter };
                sees[axis] = [sees[axis][0] + first * step, sees[axis][1] + last * step];
                sums[axis] = sums[axis].iter().flat_map(|&at| taps.iter().map(move |more| at + more * step)).collect();
                lengths[axis] = if taps.contains(&0) { lengths[axis].div_ceil(2) } else { lengths[axis] / 2 };
                Filter { sees, taps: sums, lengths }
            })
        };
        filters = filters.into_iter().flat_map(in_three).collect();
    }
    filters
}

/// One product: the number of its filter, the sums it is added to, and the slot where both go.
struct Part {
    filter: usize,
    start: Start,
    plus: [Option<usize>; LEVELS - 1],
    to: usize,
}

/// The products that make `to`, the values of a filter after all splits: each is what the lists of `plus` hold at its place, and
/// more. Slots from `free` on are free. What all values of a level have in common is made first.
fn program(filter: usize, plus: &[Vec<usize>], to: &[usize], free: usize, parts: &mut Vec<Part>) {
    if let &[to] = to {
        let mut plus: Vec<usize> = plus.iter().map(|slots| slots[0]).collect();
        let start = match plus.pop() {
            None => Start::Zero,
            Some(slot) if parts.last().is_some_and(|last| last.to == slot) => Start::Last,
            Some(slot) => Start::Slot(slot),
        };
        let plus = std::array::from_fn(|at| plus.get(at).copied());
        parts.push(Part { filter, start, plus, to });
        return;
    }
    let common: Vec<usize> = (free..free + to.len() / 2).collect();
    let free = free + common.len();
    program(3 * filter + 1, &[], &common, free, parts);
    for (odd, third) in [(0, 0), (1, 2)] {
        let half = |slots: &[usize]| -> Vec<usize> { slots.iter().copied().skip(odd).step_by(2).collect() };
        let mut plus: Vec<Vec<usize>> = plus.iter().map(|slots| half(slots)).collect();
        plus.push(common.clone());
        program(3 * filter + third, &plus, &half(to), free, parts);
    }
}

pub struct FastFir<T> {
    geometry: Geometry,
    split: Split,
    /// In the order in which they are taken.
    parts: Vec<Part>,
    /// Values of one filter along each axis, before the maximum.
    places: [usize; 2],
    kernels: Vec<Kernel<T>>,
    then: Epilogue,
    simd: Simd,
    /// Where the image of the first filter is among all images, and elements from one filter's to the next.
    image: usize,
    step: usize,
    level: Option<Level>,
}

impl<T: Element> FastFir<T> {
    pub fn new(
        mut geometry: Geometry,
        convolution: &Convolution,
        split: Split,
        simd: Simd,
        images: &mut usize,
    ) -> Self {
        let whole = geometry.axes;
        let every = [0, 1].map(|axis| every(&split, axis));
        let filters = filters(&split, whole.map(|axis| axis.kernel));
        let places = [0, 1].map(|axis| whole[axis].places().div_ceil(every[axis]));
        let mut sizes = whole.map(|axis| axis.padded());
        for axis in [0, 1].into_iter().filter(|axis| split.contains(axis)) {
            sizes[axis] = places[axis] + whole[axis].kernel.div_ceil(every[axis]) - 1;
            // So long that every level's sums find what they need.
            geometry = geometry.extended::<T>(axis, (sizes[axis] + 1) * every[axis] - 1);
        }
        let make = |filter: &Filter| {
            let axes = [0, 1].map(|axis| {
                let Axis { before, length, .. } = whole[axis];
                if !split.contains(&axis) {
                    return geometry.axes[axis];
                }
                let [first, last] = filter.sees[axis];
                let zeros = before.saturating_sub(last).div_ceil(every[axis]).min(sizes[axis]);
                let end = (before + length).saturating_sub(first).div_ceil(every[axis]).clamp(zeros, sizes[axis]);
                Axis {
                    length: end - zeros,
                    before: zeros,
                    after: sizes[axis] - end,
                    kernel: filter.lengths[axis],
                    ..geometry.axes[axis]
                }
            });
            let weight = |channel, run, k| {
                let taps = |axis: usize, tap: usize| {
                    let taps = filter.taps[axis].iter().map(move |more| tap * every[axis] + more);
                    taps.filter(move |&tap| tap < whole[axis].kernel)
                };
                let weight = |(run, k)| geometry.weight(convolution, channel, run, k);
                taps(0, run).flat_map(|run| taps(1, k).map(move |k| (run, k))).map(weight).sum()
            };
            Kernel::new(axes, [sizes[1], 1], geometry.channels, geometry.rounding(), simd, weight)
        };
        let kernels: Vec<Kernel<T>> = filters.iter().map(make).collect();
        // A last step may read past the end. A cache line between them, so that they do not share the same few sets of the first
        // cache.
        let step = sizes[0] * sizes[1] + T::PER_STEP + LINE / size_of::<T>();
        let image = *images;
        *images += kernels.len() * step;
        let level = geometry.level::<T>(convolution, simd);
        let then = Epilogue::new(&convolution.then, geometry.channels);
        let mut parts = Vec::new();
        let values = 1 << split.len();
        program(0, &[], &(0..values).collect::<Vec<_>>(), values, &mut parts);
        Self { geometry, split, parts, places, kernels, then, simd, image, step, level }
    }

    /// Reads the image from `values` and writes the result there.
    pub fn run(&self, values: &mut [f32], images: &mut [T], work: &mut Work) {
        let Work { means, level, image: whole, parts, sums, .. } = work;
        whole.clear();
        whole.resize(self.geometry.length, 0.0);
        self.geometry.lay_out(self.level.as_ref(), values, whole, means, self.simd);
        let images = &mut images[self.image..][..self.kernels.len() * self.step];
        self.simd.vectorised(SplitImage(self, &*whole, &mut *images, &mut *parts));

        let (means, level) = (means.as_slice(), level);
        let along = self.split[0];
        let every = every(&self.split, along);
        let all = self.geometry.axes[along].out;
        for (number, panel) in self.kernels[0].panels.iter().enumerate() {
            let level = self.level.as_ref().map(|it| it.prepare(number, means, level, self.simd));
            let lanes = panel.groups * LANES;
            for other in 0..self.geometry.axes[1 - along].out {
                for (first, count) in tiles(self.places[along], self.simd.pixels(panel.groups)) {
                    let sums = at_least(sums, (2 << self.split.len()) * count * lanes);
                    self.maxima([number, other, first, count], images, level, sums);
                    for (value, sums) in sums.chunks_exact_mut(count * lanes).take(every).enumerate() {
                        let first = first * every + value;
                        let sums = &mut sums[..all.saturating_sub(first).div_ceil(every).min(count) * lanes];
                        let place = [other, first, every];
                        let store = Store(&self.geometry, &self.then, sums, panel, along, place, &mut *values);
                        self.simd.vectorised(store);
                    }
                }
            }
        }
    }

    /// The values of `count` places of every filter from `first` on, the maximum of each over its window, in the first slots.
    fn maxima(
        &self,
        [number, other, first, count]: [usize; 4],
        images: &[T],
        level: Option<Steady<'_>>,
        sums: &mut [f32],
    ) {
        let along = self.split[0];
        let across = self.geometry.axes[1 - along];
        let [every, every_across] = [along, 1 - along].map(|axis| every(&self.split, axis));
        let kernels = &self.kernels;
        let groups = kernels[0].panels[number].groups;
        let lanes = groups * LANES;
        let mut offsets = [[0; MOST_PIXELS]; 1 << LEVELS];
        for (value, offsets) in offsets.iter_mut().enumerate().take(every) {
            for (pixel, offset) in offsets.iter_mut().enumerate().take(count) {
                let place = (first + pixel) * every + value;
                *offset = level.map_or(0, |steady| steady.level.offset(along, place, lanes));
            }
        }
        let (whole, rest) = (across.window / every_across, across.window % every_across);
        for (from, blocks, valid) in [(0, whole, every_across), (whole, rest.min(1), rest)] {
            let Some(last) = blocks.checked_sub(1) else { continue };
            let place = other * across.pool_stride;
            let start = place * across.stride + from;
            let places = [[first, start], [first + count - 1, start + last * across.stride]];
            let places = places.map(|[at, start]| if along == 0 { [at, start] } else { [start, at] });
            let product = |part: &Part| {
                let (kernel, image) = (&kernels[part.filter], &images[part.filter * self.step..]);
                let mut product = kernel.product(&kernel.panels[number], image, places, kernel.steps[along]);
                (product.start, product.plus, product.to) = (part.start, part.plus, part.to);
                // What lies beyond the window stays in a slot that is not read.
                let (value, inner) = (part.to % every, part.to / every);
                if inner < valid {
                    let places = [place + from * every_across + inner, every_across * last.min(1)];
                    product.base = level.map(|steady| steady.base(1 - along, places, lanes, &offsets[value]));
                    product.larger = if from + inner > 0 { Larger::Always } else { Larger::AfterFirst };
                    product.to = value;
                }
                product
            };
            let products: Vec<Product<'_, T>> = self.parts.iter().map(product).collect();
            let window = Window { places: blocks, step: across.stride * kernels[0].steps[1 - along] };
            tile(self.simd, [count, groups], &products, window, sums);
        }
    }
}

/// Makes the images of the filters from the whole one.
struct SplitImage<'a, T>(&'a FastFir<T>, &'a [f32], &'a mut [T], &'a mut [Aligned<f32>; 2]);

impl<T: Element> Vectorised for SplitImage<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self(layer, whole, images, [from, to]) = self;
        let mut size = layer.geometry.axes.map(|axis| axis.padded());
        let mut length = size[0] * size[1];
        at_least(from, length).copy_from_slice(&whole[..length]);
        for &axis in &layer.split {
            let [rows, columns] = size;
            size[axis] = (size[axis] - 1) / 2;
            let three = 3 * size[0] * size[1];
            let images = from[..length].chunks_exact(rows * columns);
            length = images.len() * three;
            for (image, three) in images.zip(at_least(to, length).chunks_exact_mut(three)) {
                match axis {
                    0 => split_rows(image, columns, three),
                    _ => split_columns(image, columns, three),
                }
            }
            std::mem::swap(from, to);
        }
        for (image, to) in from[..length].chunks_exact(size[0] * size[1]).zip(images.chunks_exact_mut(layer.step)) {
            convert(image, &mut to[..image.len()]);
        }
    }
}

/// What the three filters see of an image's rows.
#[inline(always)]
fn split_rows(image: &[f32], width: usize, three: &mut [f32]) {
    let (first, rest) = three.split_at_mut(three.len() / 3);
    let (second, third) = rest.split_at_mut(rest.len() / 2);
    let evens = image.chunks_exact(width).step_by(2);
    let odds = image[width..].chunks_exact(width).step_by(2);
    let nexts = image[2 * width..].chunks_exact(width).step_by(2);
    for (to, (even, odd)) in first.chunks_exact_mut(width).zip(evens.zip(odds.clone())) {
        to.iter_mut().zip(even.iter().zip(odd)).for_each(|(to, (even, odd))| *to = even - odd);
    }
    for (to, odd) in second.chunks_exact_mut(width).zip(odds.clone()) {
        to.copy_from_slice(odd);
    }
    for (to, (odd, next)) in third.chunks_exact_mut(width).zip(odds.zip(nexts)) {
        to.iter_mut().zip(odd.iter().zip(next)).for_each(|(to, (odd, next))| *to = next - odd);
    }
}

/// What the three filters see of an image's columns.
#[inline(always)]
fn split_columns(image: &[f32], width: usize, three: &mut [f32]) {
    let half = (width - 1) / 2;
    let (first, rest) = three.split_at_mut(three.len() / 3);
    let (second, third) = rest.split_at_mut(rest.len() / 2);
    let three = first.chunks_exact_mut(half).zip(second.chunks_exact_mut(half)).zip(third.chunks_exact_mut(half));
    for (row, ((first, second), third)) in image.chunks_exact(width).zip(three) {
        let pairs = row[..2 * half].chunks_exact(2).zip(row[1..2 * half + 1].chunks_exact(2));
        let three = first.iter_mut().zip(second).zip(third);
        for (((first, second), third), (even_odd, odd_next)) in three.zip(pairs) {
            *first = even_odd[0] - even_odd[1];
            *second = even_odd[1];
            *third = odd_next[1] - odd_next[0];
        }
    }
}

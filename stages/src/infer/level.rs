//! Keeps steady sounds exact in bfloat16: an image is its mean over time (rows), which is convolved in float32, plus the
//! rest, which is rounded.
//!
//! In a steady sound every frame is rounded the same way, so errors do not average out over time. Without its mean there is
//! little left to round. With every row of the mean the same, the rows of a kernel become one, their sum.

use super::{
    convolution::Axis,
    kernels::{Base, LANES, Product, Simd, Walk, Window, tile},
    panel::{Aligned, LINE, Panel, Rounding, at_least, pack, tiles},
};

/// The convolution of an image of one channel whose rows are all the same.
pub enum Level {
    /// Time goes along the image's rows: a sum per column of the result and per part of the kernel that lies inside.
    Rows {
        /// The axis of the result that time goes along.
        axis: usize,
        /// For each of its places, which part of the kernel lies inside the image.
        parts: Vec<usize>,
        /// `[part][panel][kernel column][channel]`
        weights: Vec<Aligned<f32>>,
        panels: Vec<Panel>,
        /// Of the result, before the maximum.
        columns: usize,
        kernel: usize,
        stride: usize,
    },
    /// Time goes along the image's columns, and the kernel has one row: `[panel][column of the result][channel]`, times the mean
    /// of a row.
    Columns {
        sums: Aligned<f32>,
        /// Where each panel's start.
        panels: Vec<usize>,
        /// Of the rows.
        stride: usize,
    },
}

/// The parts of a kernel of `kernel` places that lie within `before..before + length`, for each of `out` values.
fn insides(kernel: usize, before: usize, length: usize, stride: usize, out: usize) -> Vec<(usize, usize)> {
    let inside = |value: usize| {
        let first = before.saturating_sub(value * stride).min(kernel);
        (first, (before + length).saturating_sub(value * stride).clamp(first, kernel))
    };
    (0..out).map(inside).collect()
}

impl Level {
    /// `weight(channel, row, column)` of the image as it is laid out; `time` is the axis of time.
    pub fn new(
        time: usize,
        [rows, columns]: [Axis; 2],
        channels: usize,
        simd: Simd,
        weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Option<Self> {
        if time == 0 {
            let insides = insides(rows.kernel, rows.before, rows.length, rows.stride, rows.places());
            let mut different = insides.clone();
            different.sort_unstable();
            different.dedup();
            let sum = |channel: usize, (first, last): (usize, usize), k: usize| {
                (first..last).map(|row| f64::from(weight(channel, row, k))).sum::<f64>() as f32
            };
            let mut panels = Vec::new();
            let mut weights = Vec::new();
            for &inside in &different {
                let packed = pack(channels, [1, columns.kernel], Rounding::Nearest, simd, |channel, _, k| {
                    sum(channel, inside, k)
                });
                panels = packed.0;
                weights.push(packed.1);
            }
            let parts = insides.iter().map(|inside| different.binary_search(inside).unwrap_or_default()).collect();
            let (kernel, stride) = (columns.kernel, columns.stride);
            let columns = columns.places();
            return Some(Self::Rows { axis: 0, parts, weights, panels, columns, kernel, stride });
        }
        if rows.kernel != 1 || rows.before + rows.after > 0 {
            return None;
        }
        let insides = insides(columns.kernel, columns.before, columns.length, columns.stride, columns.places());
        let (panels, weights) =
            pack::<f32>(channels, [1, columns.kernel], Rounding::Nearest, simd, |channel, _, k| weight(channel, 0, k));
        let mut sums = Aligned::new(LINE);
        let mut starts = Vec::new();
        for panel in &panels {
            starts.push(sums.len());
            let lanes = panel.groups * LANES;
            for &(first, last) in &insides {
                let mut sum = vec![0.0; lanes];
                for step in weights[panel.weights..].chunks_exact(lanes).take(last).skip(first) {
                    sum.iter_mut().zip(step).for_each(|(sum, weight)| *sum += weight);
                }
                sums.extend_from_slice(&sum);
            }
        }
        Some(Self::Columns { sums, panels: starts, stride: rows.stride })
    }

    /// The axis of the result that time goes along.
    pub fn time(&self) -> usize {
        match self {
            Self::Rows { axis, .. } => *axis,
            Self::Columns { .. } => 1,
        }
    }

    /// The same for an image whose rows are one long row, each of them all that a kernel's row sees.
    pub fn over_whole_rows(self) -> Self {
        match self {
            Self::Rows { parts, weights, panels, columns, kernel, stride, .. } => {
                Self::Rows { axis: 1, parts, weights, panels, columns, kernel, stride }
            }
            other => other,
        }
    }

    /// The axis of the image that is averaged over.
    pub fn time_of_image(&self) -> usize {
        usize::from(matches!(self, Self::Columns { .. }))
    }

    /// What it adds to the sums of one panel, which may be kept in `sums`.
    pub fn prepare<'a>(&'a self, panel: usize, means: &'a [f32], sums: &'a mut Aligned<f32>, simd: Simd) -> Steady<'a> {
        let sums = match self {
            Self::Rows { weights, panels, columns, kernel, stride, .. } => {
                let Panel { groups, weights: start, .. } = panels[panel];
                let lanes = groups * LANES;
                let sums = at_least(sums, weights.len() * columns * lanes);
                let walk = Walk { pixel: *stride, run: 0, runs: 1, steps: *kernel, w_run: 0 };
                for (part, weights) in weights.iter().enumerate() {
                    for (first, count) in tiles(*columns, simd.pixels(groups)) {
                        let sums = &mut sums[(part * columns + first) * lanes..][..count * lanes];
                        let (x, w) = (&means[first * stride..], &weights[start..]);
                        let product = Product::single(x, w, walk);
                        tile(simd, [count, groups], &[product], Window::SINGLE, sums);
                    }
                }
                sums
            }
            Self::Columns { sums, panels, .. } => &sums[panels[panel]..],
        };
        Steady { level: self, sums, means }
    }

    /// What a place of the result (before the maximum) on `axis` adds to where its sums are.
    #[inline(always)]
    pub fn offset(&self, axis: usize, place: usize, lanes: usize) -> usize {
        match self {
            Self::Rows { axis: time, parts, columns, .. } if axis == *time => parts[place] * columns * lanes,
            Self::Columns { .. } if axis == 0 => 0,
            _ => place * lanes,
        }
    }
}

/// What the mean of an image adds to the sums of one panel.
#[derive(Clone, Copy)]
pub struct Steady<'a> {
    pub level: &'a Level,
    pub sums: &'a [f32],
    pub means: &'a [f32],
}

impl<'a> Steady<'a> {
    /// What is added at every `step`-th place of `across` from `first` on; `offsets` are of the other axis.
    pub fn base(self, across: usize, [first, step]: [usize; 2], lanes: usize, offsets: &'a [usize]) -> Base<'a> {
        let [at, next] = [first, first + step].map(|place| self.level.offset(across, place, lanes));
        let (scales, scale_step): (&[f32], usize) = match self.level {
            Level::Rows { .. } => (&[1.0], 0),
            Level::Columns { stride, .. } => (&self.means[first * stride..], step * stride),
        };
        Base { values: &self.sums[at..], offsets, step: next - at, scales, scale_step }
    }
}

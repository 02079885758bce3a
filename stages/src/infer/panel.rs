//! How channels and pixels are cut into the pieces that one tile multiplies.

use aligned_vec::{AVec, ConstAlign};

use super::{
    element::Element,
    kernels::{LANES, Simd},
};

/// Bytes of a register, and of a line of the cache.
pub const LINE: usize = 64;

/// Values from the start of a line on, so that a register's worth of them is never in two, which would cost a tile of
/// few steps a tenth of its time (measured).
pub type Aligned<T> = AVec<T, ConstAlign<LINE>>;

/// The first `length` values of `buffer`, which grows to that.
pub fn at_least(buffer: &mut Aligned<f32>, length: usize) -> &mut [f32] {
    buffer.resize(buffer.len().max(length), 0.0);
    &mut buffer[..length]
}

/// A group of channels whose weights stay in the first cache.
#[derive(Clone, Copy, Debug)]
pub struct Panel {
    pub channel: usize,
    pub groups: usize,
    /// Where they start.
    pub weights: usize,
}

/// Weights in the order the tiles read them, `[panel][run][step][channel][part of a step]`; zeros where a run or the
/// channels end.
pub fn pack<T: Element>(
    channels: usize,
    [runs, run]: [usize; 2],
    simd: Simd,
    value: impl Fn(usize, usize, usize) -> f32,
) -> (Vec<Panel>, Aligned<T>) {
    let (mut panels, mut weights) = (Vec::new(), Aligned::new(LINE));
    let mut channel = 0;
    while channel < channels {
        let groups = simd.panel((channels - channel).div_ceil(LANES));
        panels.push(Panel { channel, groups, weights: weights.len() });
        for r in 0..runs {
            for step in 0..run.div_ceil(T::PER_STEP) {
                for c in channel..channel + groups * LANES {
                    for k in (0..T::PER_STEP).map(|part| step * T::PER_STEP + part) {
                        let inside = c < channels && k < run;
                        weights.push(if inside { T::from_f32(value(c, r, k)) } else { T::default() });
                    }
                }
            }
        }
        channel += groups * LANES;
    }
    (panels, weights)
}

/// `all` values in tiles of at most `most`, as equal as can be: `(first, count)`.
pub fn tiles(all: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let number = all.div_ceil(most);
    (0..number).map(move |i| {
        let (first, next) = (i * all / number, (i + 1) * all / number);
        (first, next - first)
    })
}

/// The most pixels of a tile.
pub const MOST_PIXELS: usize = 14;
/// The sums of one tile fit: the most pixels × the most groups.
pub const TILE_LEN: usize = MOST_PIXELS * 3 * LANES;

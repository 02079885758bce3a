//! How channels and pixels are cut into the pieces that one tile multiplies.

use aligned_vec::{AVec, ConstAlign};

use super::{
    constant::Constant,
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

/// Neighbours that are packed together: a line of float32, so each is read once.
const TOGETHER: usize = LINE / size_of::<f32>();

/// The panels of `channels` channels that have `length` weights each.
pub fn panels(channels: usize, length: usize, simd: Simd) -> Vec<Panel> {
    let mut panels = Vec::new();
    let mut channel = 0;
    while channel < channels {
        let groups = simd.panel((channels - channel).div_ceil(LANES));
        panels.push(Panel { channel, groups, weights: channel * length });
        channel += groups * LANES;
    }
    panels
}

/// Weights in the order the tiles read them, `[panel][run][step][channel][part of a step]`; zeros where a run or the
/// channels end. `place(run, k)` is where a weight lies among those of its channel.
///
/// # Errors
/// The weights cannot be read.
pub fn pack<T: Element>(
    weight: &Constant,
    [runs, run]: [usize; 2],
    simd: Simd,
    place: impl Fn(usize, usize) -> usize,
) -> Result<(Vec<Panel>, Aligned<T>), String> {
    let (channels, per_channel) = (weight.row_count(), weight.row_len());
    let padded = run.next_multiple_of(T::PER_STEP);
    let panels = panels(channels, runs * padded, simd);
    let mut weights = zeros(panels.iter().map(|panel| panel.groups * LANES * runs * padded).sum());
    for panel in &panels {
        let lanes = panel.groups * LANES;
        let rows = weight.rows(panel.channel..channels.min(panel.channel + lanes))?;
        for r in 0..runs {
            let weights = &mut weights[panel.weights + r * padded * lanes..][..padded * lanes];
            for first in (0..run).step_by(TOGETHER) {
                let mut places = [0; TOGETHER];
                let places = &mut places[..TOGETHER.min(run - first)];
                places.iter_mut().zip(first..).for_each(|(to, k)| *to = place(r, k));
                for (c, channel) in rows.chunks_exact(per_channel.max(1)).enumerate() {
                    for (&place, k) in places.iter().zip(first..) {
                        weights[at::<T>(k, c, lanes)] = T::from_f32(channel[place]);
                    }
                }
            }
        }
    }
    Ok((panels, weights))
}

/// Where weight `k` of channel `c` lies among those of a run.
pub fn at<T: Element>(k: usize, c: usize, lanes: usize) -> usize {
    (k / T::PER_STEP * lanes + c) * T::PER_STEP + k % T::PER_STEP
}

/// Room for weights, no more of it than they take.
pub fn zeros<T: Element>(length: usize) -> Aligned<T> {
    let mut zeros = Aligned::with_capacity(LINE, length);
    zeros.resize(length, T::default());
    zeros
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

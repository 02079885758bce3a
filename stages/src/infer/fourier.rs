//! A convolution of one channel by FFT along its longer axis.
//!
//! Of every row of the image there is one spectrum, of every row of a kernel one; products of both are summed over the
//! rows of the kernel, bin by bin, and what is transformed back is a row of the result: for a kernel of 7 × 38 over 96
//! bands an eighth of the multiplications. Sixteen channels are worked on side by side, and of each row of them the
//! maximum is taken before anything is stored. All in float32.

use std::{f64::consts::TAU, ops::Range, sync::Arc};

use realfft::{RealFftPlanner, RealToComplex, num_complex::Complex};

use super::{
    convolution::{Axis, Geometry, Store},
    epilogue::Epilogue,
    graph::Convolution,
    inverse::{Inverse, Pair, Row, Scratch},
    kernels::{LANES, Lanes, OnLanes, Simd, Vectorised},
    panel::{Aligned, LINE, Panel, at_least},
    view::View,
};

/// Rows whose products are taken together, an even number, and transformed back one by one: they stay in the first
/// cache.
const ROWS: usize = 6;
/// It has to take less than this part of the direct sum's multiplications.
const WORTH_IT: f64 = 0.8;

/// The spectra of an image's rows, `[bin][row][real, imaginary]`; of those that are padding they are zeros.
pub struct Spectra {
    form: Form,
    transform: Arc<dyn RealToComplex<f32>>,
    /// Where they are among all images.
    image: usize,
}

/// What several convolutions may have in common.
#[derive(PartialEq)]
struct Form {
    /// `[rows × values]`
    from: View,
    /// Of a row.
    length: usize,
    /// Rows of padding.
    before: usize,
    after: usize,
}

impl Form {
    fn rows(&self) -> usize {
        self.before + self.from.shape[0] + self.after
    }

    fn bins(&self) -> usize {
        self.length / 2 + 1
    }
}

pub struct Fourier {
    geometry: Geometry,
    /// The axis that is transformed. A row lies along it, whatever it is in the image.
    along: usize,
    /// Where the spectra are among all images.
    spectra: Range<usize>,
    inverse: Inverse,
    /// `[group of channels][bin][row of the kernel][real, imaginary][channel]`
    weights: Aligned<f32>,
    then: Epilogue,
    simd: Simd,
}

/// The axis that is transformed, and the length of the transform.
pub type Choice = [usize; 2];

/// What is best to transform; `None` if none saves enough, or it has several channels.
pub fn best_choice(geometry: &Geometry) -> Option<Choice> {
    if !geometry.one_channel() {
        return None;
    }
    let [rows, columns] = geometry.axes;
    let places = |axis: Axis| axis.out * axis.window;
    let direct = places(rows) * places(columns) * rows.kernel * columns.kernel;
    let cost = |&[along, length]: &Choice| {
        let across = geometry.axes[1 - along];
        places(across) * ((length / 2 + 1) * 4 * across.kernel + Inverse::cost(length))
    };
    let fits = |&[along, _]: &Choice| {
        let across = geometry.axes[1 - along];
        // Each of its values belongs to one window.
        across.out == 1 || across.window <= across.pool_stride
    };
    let choices = [0, 1].into_iter().flat_map(|along| {
        let axis = geometry.axes[along];
        // What is read beyond the end is what is before the start: zeros, too.
        let least = (axis.padded() - axis.before.min(axis.after)).max(axis.padded() + 1 - axis.kernel);
        Inverse::lengths(least).map(move |length| [along, length])
    });
    let best = choices.filter(fits).min_by_key(cost)?;
    (cost(&best) as f64 <= direct as f64 * WORTH_IT).then_some(best)
}

impl Spectra {
    fn new(form: Form, images: &mut usize) -> Self {
        let image = *images;
        *images += 2 * form.bins() * form.rows();
        Self { transform: RealFftPlanner::new().plan_fft_forward(form.length), form, image }
    }

    fn range(&self) -> Range<usize> {
        self.image..self.image + 2 * self.form.bins() * self.form.rows()
    }

    /// Reads the rows from `values`, and writes their spectra to their place in `images`.
    pub fn run(&self, values: &[f32], images: &mut [f32], work: &mut FourierWork) {
        let FourierWork { row, spectrum, scratch, .. } = work;
        let Form { from, length, before, .. } = &self.form;
        let rows = self.form.rows();
        row.resize(*length, 0.0);
        spectrum.resize(self.form.bins(), Complex::default());
        scratch.resize(self.transform.get_scratch_len(), Complex::default());
        let spectra = &mut images[self.range()];
        for number in 0..from.shape[0] {
            let (row_values, rest) = row.split_at_mut(from.shape[1]);
            let values = values[from.offset + number * from.strides[0]..].iter().step_by(from.strides[1]);
            row_values.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
            rest.fill(0.0);
            // Fails only if a length is wrong, and all lengths come from the transform.
            let done = self.transform.process_with_scratch(row, spectrum, scratch);
            debug_assert!(done.is_ok());
            for (bin, value) in spectrum.iter().enumerate() {
                spectra[2 * (bin * rows + before + number)..][..2].copy_from_slice(&[value.re, value.im]);
            }
        }
    }
}

impl Fourier {
    /// Spectra that are not among `spectra` are added to them, with their place in the next of `images`.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn new(
        geometry: Geometry,
        convolution: &Convolution,
        [along, length]: Choice,
        simd: Simd,
        spectra: &mut Vec<Spectra>,
        images: &mut usize,
    ) -> Result<Self, String> {
        let [axis, across] = [along, 1 - along].map(|axis| geometry.axes[axis]);
        let inverse = Inverse::new(length);
        let turns: Vec<f64> = (0..length).map(|n| (TAU * n as f64 / length as f64).cos()).collect();
        let weight = |channel: &[f32], bin: usize, tap: usize, imaginary: bool| {
            let part = |k: usize| {
                let place = if along == 0 { [k, tap] } else { [tap, k] };
                let weight = channel[geometry.place(convolution, place[0], place[1])];
                // Rows are transformed without the padding before them; sin α = cos(α − 90°).
                let place = k + length - axis.before % length;
                let quarter = if imaginary { 3 * length / 4 } else { 0 };
                f64::from(weight) * turns[(bin * place + quarter) % length]
            };
            let twice = if bin == 0 || bin == length / 2 { 1.0 } else { 2.0 };
            ((0..axis.kernel).map(part).sum::<f64>() * twice / length as f64) as f32
        };
        let (channels, per_channel) = (geometry.channels, convolution.weight.row_len());
        let length_of_group = inverse.bins() * across.kernel * 2 * LANES;
        let mut weights = Aligned::with_capacity(LINE, channels.div_ceil(LANES) * length_of_group);
        for group in (0..channels).step_by(LANES) {
            let rows = convolution.weight.rows(group..channels.min(group + LANES))?;
            let row = |lane: usize| rows.get(lane * per_channel..(lane + 1) * per_channel);
            for bin in 0..inverse.bins() {
                for tap in 0..across.kernel {
                    for imaginary in [false, true] {
                        let value = |lane| row(lane).map_or(0.0, |channel| weight(channel, bin, tap, imaginary));
                        (0..LANES).for_each(|lane| weights.push(value(lane)));
                    }
                }
            }
        }
        let from = geometry.image().permuted(&[1 - along, along]);
        let form = Form { from, length, before: across.before, after: across.after };
        let range = match spectra.iter().find(|spectra| spectra.form == form) {
            Some(there) => there.range(),
            None => {
                spectra.push(Spectra::new(form, images));
                spectra[spectra.len() - 1].range()
            }
        };
        let then = Epilogue::new(&convolution.then, geometry.channels);
        Ok(Self { along, spectra: range, inverse, weights, then, simd, geometry })
    }

    /// Reads the spectra from `images` and writes the result to `values`.
    pub fn run(&self, values: &mut [f32], images: &[f32], work: &mut FourierWork) {
        self.simd.on_lanes(Multiply(self, &images[self.spectra.clone()], work, values));
    }
}

/// What convolutions by FFT work in.
pub struct FourierWork {
    row: Vec<f32>,
    spectrum: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
    /// `[row][bin][real, imaginary][channel]`
    products: Aligned<f32>,
    /// One row of the result, the maxima of several, and what the inverse works in.
    signal: Aligned<f32>,
    maxima: Aligned<f32>,
    inverse: Box<Scratch>,
}

impl FourierWork {
    pub fn new() -> Self {
        let empty = || Aligned::new(LINE);
        Self {
            row: Vec::new(),
            spectrum: Vec::new(),
            scratch: Vec::new(),
            products: empty(),
            signal: empty(),
            maxima: empty(),
            inverse: Scratch::new(),
        }
    }
}

/// The first `length` rows of `buffer`, which grows to that.
fn rows(buffer: &mut Aligned<f32>, length: usize) -> &mut [Row] {
    at_least(buffer, length * LANES).as_chunks_mut().0
}

/// Makes all values from the spectra.
struct Multiply<'a>(&'a Fourier, &'a [f32], &'a mut FourierWork, &'a mut [f32]);

impl OnLanes for Multiply<'_> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self(layer, spectra, FourierWork { products, signal, maxima, inverse, .. }, values) = self;
        let (along, across) = (layer.geometry.axes[layer.along], layer.geometry.axes[1 - layer.along]);
        let bins = layer.inverse.bins();
        let products = rows(products, ROWS * bins * 2).as_chunks_mut().0;
        let signal = rows(signal, layer.inverse.length());
        let maxima = rows(maxima, along.out);
        let weights: &[Row] = layer.weights.as_chunks().0;
        let weights = weights.as_chunks().0.chunks_exact(bins * across.kernel);
        let all = across.out * across.window;
        for (group, weights) in weights.enumerate() {
            let panel = Panel { channel: group * LANES, groups: 1, weights: 0 };
            for first in (0..all).step_by(ROWS) {
                // A last one that is not full repeats its last row.
                let mut numbers = [all - 1; ROWS];
                for (number, at) in numbers.iter_mut().zip(first..all) {
                    *number = at;
                }
                let mut starts = [0; ROWS];
                for (start, number) in starts.iter_mut().zip(numbers) {
                    *start = across.start(number / across.window, number % across.window);
                }
                let sizes = [across.padded(), across.kernel];
                if V::REGISTERS > 2 * ROWS + 4 {
                    multiply::<V, ROWS>(spectra, weights, sizes, starts, products);
                } else {
                    let (pairs, _) = starts.as_chunks::<2>();
                    for (&starts, products) in pairs.iter().zip(products.chunks_exact_mut(2 * bins)) {
                        multiply::<V, 2>(spectra, weights, sizes, starts, products);
                    }
                }
                for (number, products) in (first..all).zip(products.chunks_exact(bins)) {
                    layer.inverse.run::<V>(products, signal, (along.places() - 1) * along.stride + 1, inverse);
                    let (value, inner) = (number / across.window, number % across.window);
                    pool::<V>(along, signal, inner > 0, maxima);
                    if inner + 1 == across.window {
                        let maxima = maxima.as_flattened_mut();
                        Store(&layer.geometry, &layer.then, maxima, &panel, layer.along, [value, 0], &mut *values)
                            .run();
                    }
                }
            }
        }
    }
}

/// The products of all bins for the rows that start at `starts`.
#[inline(always)]
fn multiply<V: Lanes, const N: usize>(
    spectra: &[f32],
    weights: &[Pair],
    [rows, kernel]: [usize; 2],
    starts: [usize; N],
    products: &mut [Pair],
) {
    let step = products.len() / N;
    let spectra: &[[f32; 2]] = spectra.as_chunks().0;
    for (bin, (spectra, weights)) in spectra.chunks_exact(rows).zip(weights.chunks_exact(kernel)).enumerate() {
        let mut seen = [&spectra[..0]; N];
        for i in 0..N {
            seen[i] = &spectra[starts[i]..starts[i] + weights.len()];
        }
        let mut sums = [[V::splat(0.0); 2]; N];
        for (tap, [re, im]) in weights.iter().enumerate() {
            let (re, im) = (V::load(re), V::load(im));
            for i in 0..N {
                let [x, y] = seen[i][tap];
                let (x, y) = (V::splat(x), V::splat(y));
                sums[i][0] = sums[i][0].plus_product(x, re).minus_product(y, im);
                sums[i][1] = sums[i][1].plus_product(x, im).plus_product(y, re);
            }
        }
        for i in 0..N {
            let [re, im] = &mut products[i * step + bin];
            sums[i][0].store(re);
            sums[i][1].store(im);
        }
    }
}

/// The maximum of each window along a row, and of what is there if it `goes_on`.
#[inline(always)]
fn pool<V: Lanes>(axis: Axis, signal: &[Row], goes_on: bool, maxima: &mut [Row]) {
    if axis.window == 1 && axis.stride == 1 && axis.pool_stride == 1 {
        for (maximum, value) in maxima.iter_mut().zip(signal) {
            let value = V::load(value);
            if goes_on { V::load(maximum).larger(value) } else { value }.store(maximum);
        }
        return;
    }
    for (value, maximum) in maxima.iter_mut().enumerate() {
        let places = &signal[axis.start(value, 0)..=axis.start(value, axis.window - 1)];
        let mut larger = [if goes_on { V::load(maximum) } else { V::load(&places[0]) }; 4];
        if axis.stride == 1 {
            let (fours, rest) = places.as_chunks::<4>();
            for four in fours {
                for i in 0..4 {
                    larger[i] = larger[i].larger(V::load(&four[i]));
                }
            }
            for place in rest {
                larger[0] = larger[0].larger(V::load(place));
            }
        } else {
            for place in places.iter().step_by(axis.stride) {
                larger[0] = larger[0].larger(V::load(place));
            }
        }
        larger[0].larger(larger[1]).larger(larger[2].larger(larger[3])).store(maximum);
    }
}

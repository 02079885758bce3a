//! The inverse FFT to sixteen real signals side by side.
//!
//! With Y(N − k) the conjugate of Y(k), what the bins k = 1, 5, 9, … add is the conjugate of what k = 3, 7, 11, … add,
//! so a signal is made from those of the even bins, E, and one complex transform of a quarter of its length, C (the
//! split radix of Duhamel and Hollmann, 1984, on real signals), or, with a factor of 3 or 5, of that part:
//!
//! ```text
//! y(n) = E(n mod N/2) + 2 Re(e^{2πi n/N} C(n mod N/4))
//! y(n) = E(n mod N/3) + 2 Re(e^{2πi n/N} C(n mod N/3))
//! y(n) = E(n mod N/5) + 2 Re(e^{2πi n/N} C₁(n mod N/5) + e^{4πi n/N} C₂(n mod N/5))
//! ```
//!
//! The complex transforms are Stockham's: in passes of radix 8 and less, sorted as they go.

#![expect(clippy::needless_range_loop, reason = "counted loops over constants become registers")]

use std::f64::consts::{FRAC_1_SQRT_2, TAU};

use super::kernels::{LANES, Lanes};

/// One value of every signal.
pub type Row = [f32; LANES];
/// Real and imaginary part of a value of every transform.
pub type Pair = [Row; 2];

pub struct Inverse {
    length: usize,
    /// By what values are turned in the shortest signal.
    core: [Turn; 3],
    /// From the shortest signal up.
    joins: Vec<Join>,
}

/// Makes a signal from a shorter one and one or two complex transforms.
struct Join {
    /// 3 or 5; or 4, when every second bin is in the shorter signal, and every fourth in the transform.
    radix: usize,
    /// Of a transform.
    length: usize,
    /// Bins of the whole for one of this signal.
    step: usize,
    /// By what each value of each transform is turned.
    turns: Vec<Vec<Turn>>,
    /// By what more from one part of the signal to the next.
    roots: Vec<Turn>,
    /// By what values are turned between the passes of a transform.
    between: Vec<Turn>,
}

/// Cosine and sine.
type Turn = [f32; 2];

fn turn(part: usize, whole: usize) -> Turn {
    let (sin, cos) = (TAU * (part % whole) as f64 / whole as f64).sin_cos();
    [cos as f32, sin as f32]
}

/// Signals of this length are made at once, of longer ones by joins.
const CORE: usize = 16;
/// The last pass of every complex transform; the first is of radix 8 or less.
const LAST: usize = 8;

impl Inverse {
    /// The lengths it can be made for, of at least `length`: powers of two, and 3 or 5 times them.
    pub fn lengths(length: usize) -> impl Iterator<Item = usize> {
        let smallest = move |odd: usize| odd * length.div_ceil(odd).next_power_of_two().max(CORE);
        let longest = |odd: usize| if odd == 1 { 4 * 8 * LAST } else { odd * 8 * LAST };
        [1, 3, 5].into_iter().filter(move |&odd| smallest(odd) <= longest(odd)).map(smallest)
    }

    /// Additions and multiplications, about.
    pub fn cost(length: usize) -> usize {
        length * length.ilog2() as usize * 3 / 2
    }

    pub fn new(length: usize) -> Self {
        let mut joins = Vec::new();
        let mut join = |radix: usize, whole: usize| {
            let part = whole / radix;
            let numbers = 1..=(radix - 1) / 2;
            let turns = numbers.clone().map(|k| (0..part).map(|m| turn(k * m, whole)).collect()).collect();
            let roots = numbers.map(|k| turn(k, radix)).collect();
            let first = part / LAST;
            let between = (0..LAST).flat_map(|p| (1..first).map(move |j| turn(p * j, part))).collect();
            joins.push(Join { radix, length: part, step: length / whole, turns, roots, between });
        };
        let mut whole = CORE;
        while length.is_multiple_of(2 * whole) {
            whole *= 2;
            join(4, whole);
        }
        if whole < length {
            join(length / whole, length);
        }
        Self { length, core: [1, 2, 3].map(|part| turn(part, CORE)), joins }
    }

    /// The bins it reads, all but the first and the last of them twice what they are.
    pub fn bins(&self) -> usize {
        self.length / 2 + 1
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// Writes the first `needed` values of the signals to `signal`, which is as long as they are.
    #[inline(always)]
    pub fn run<V: Lanes>(&self, bins: &[Pair], signal: &mut [Row], needed: usize, scratch: &mut Scratch) {
        self.core::<V>(bins, signal);
        for join in &self.joins {
            match join.length / LAST {
                1 => join.run::<V, 1>(bins, signal, needed, scratch),
                2 => join.run::<V, 2>(bins, signal, needed, scratch),
                4 => join.run::<V, 4>(bins, signal, needed, scratch),
                _ => join.run::<V, 8>(bins, signal, needed, scratch),
            }
        }
    }

    /// The first 16 values, of every so many bins: three joins whose values stay in registers.
    #[inline(always)]
    fn core<V: Lanes>(&self, bins: &[Pair], signal: &mut [Row]) {
        let step = self.length / CORE;
        let mut y = [V::splat(0.0); CORE];
        let (first, last) = (V::load(&bins[0][0]), V::load(&bins[8 * step][0]));
        (y[0], y[1]) = (first.plus(last), first.minus(last));
        let c = Complex::load(&bins[4 * step]);
        four(&mut y, [0, 1, 2, 3], c);
        let c = transformed([Complex::load(&bins[2 * step]), Complex::load(&bins[6 * step]).conjugate()]);
        four(&mut y, [0, 2, 4, 6], c[0]);
        four(&mut y, [1, 3, 5, 7], c[1].eighth());
        let c = Bins { bins, first: step, step: 4 * step, length: 4 }.load(0, 1);
        let c = transformed::<V, 4>(c);
        four(&mut y, [0, 4, 8, 12], c[0]);
        for m in 1..4 {
            four(&mut y, [m, m + 4, m + 8, m + 12], c[m].turned(&self.core[m - 1]));
        }
        for (y, to) in y.into_iter().zip(signal) {
            y.store(to);
        }
    }
}

/// Joins one value of a transform with two of a signal.
#[inline(always)]
fn four<V: Lanes>(y: &mut [V; CORE], at: [usize; 4], turned: Complex<V>) {
    let (even, odd) = (y[at[0]], y[at[1]]);
    y[at[0]] = even.plus(turned.re);
    y[at[1]] = odd.minus(turned.im);
    y[at[2]] = even.minus(turned.re);
    y[at[3]] = odd.plus(turned.im);
}

/// What is between the passes of two transforms.
#[repr(align(64))]
pub struct Scratch([[Pair; 8 * LAST]; 2]);

impl Scratch {
    pub fn new() -> Box<Self> {
        Box::new(Self([[[[0.0; LANES]; 2]; 8 * LAST]; 2]))
    }
}

#[inline(always)]
fn lanes<V: Lanes>([cos, sin]: &Turn) -> [V; 2] {
    [V::splat(*cos), V::splat(*sin)]
}

#[derive(Clone, Copy)]
struct Complex<V> {
    re: V,
    im: V,
}

impl<V: Lanes> Complex<V> {
    #[inline(always)]
    fn load([re, im]: &Pair) -> Self {
        Self { re: V::load(re), im: V::load(im) }
    }

    #[inline(always)]
    fn store(self, [re, im]: &mut Pair) {
        self.re.store(re);
        self.im.store(im);
    }

    #[inline(always)]
    fn conjugate(self) -> Self {
        Self { re: self.re, im: V::splat(0.0).minus(self.im) }
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        Self { re: self.re.plus(other.re), im: self.im.plus(other.im) }
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Self { re: self.re.minus(other.re), im: self.im.minus(other.im) }
    }

    /// `self + i · other`
    #[inline(always)]
    fn plus_quarter(self, other: Self) -> Self {
        Self { re: self.re.minus(other.im), im: self.im.plus(other.re) }
    }

    /// `self − i · other`
    #[inline(always)]
    fn minus_quarter(self, other: Self) -> Self {
        Self { re: self.re.plus(other.im), im: self.im.minus(other.re) }
    }

    /// Turned by an eighth.
    #[inline(always)]
    fn eighth(self) -> Self {
        let half = V::splat(FRAC_1_SQRT_2 as f32);
        Self { re: self.re.minus(self.im).times(half), im: self.re.plus(self.im).times(half) }
    }

    #[inline(always)]
    fn turned(self, turn: &Turn) -> Self {
        let [cos, sin] = lanes(turn);
        Self { re: self.re.times(cos).minus_product(self.im, sin), im: self.re.times(sin).plus_product(self.im, cos) }
    }
}

#[inline(always)]
fn fourth<V: Lanes>([a, b, c, d]: [Complex<V>; 4]) -> [Complex<V>; 4] {
    let (even, odd, sum, difference) = (a.plus(c), a.minus(c), b.plus(d), b.minus(d));
    [even.plus(sum), odd.plus_quarter(difference), even.minus(sum), odd.minus_quarter(difference)]
}

/// The inverse transform of `R` values, 2, 4 or 8.
#[inline(always)]
fn transformed<V: Lanes, const R: usize>(x: [Complex<V>; R]) -> [Complex<V>; R] {
    let mut y = x;
    if R == 2 {
        (y[0], y[1]) = (x[0].plus(x[1]), x[0].minus(x[1]));
    } else if R == 4 {
        y.copy_from_slice(&fourth([x[0], x[1], x[2], x[3]]));
    } else {
        let even = fourth([x[0], x[2], x[4], x[6]]);
        let [a, b, c, d] = fourth([x[1], x[3], x[5], x[7]]);
        let odd = [a, b.eighth(), c, d.eighth()];
        for j in 0..2 {
            y[j] = even[j].plus(odd[j]);
            y[j + 4] = even[j].minus(odd[j]);
            y[j + 2] = even[j + 2].plus_quarter(odd[j + 2]);
            y[j + 6] = even[j + 2].minus_quarter(odd[j + 2]);
        }
    }
    y
}

/// The bins of a complex transform: `first`, and every `step`-th after it. The second half of them are those of the
/// first, conjugate.
#[derive(Clone, Copy)]
struct Bins<'a> {
    bins: &'a [Pair],
    first: usize,
    step: usize,
    length: usize,
}

impl Bins<'_> {
    /// The bins `p + count · i`.
    #[inline(always)]
    fn load<V: Lanes, const R: usize>(self, p: usize, count: usize) -> [Complex<V>; R] {
        let mut x = [Complex::load(&self.bins[self.first + self.step * p]); R];
        for i in 1..R / 2 {
            x[i] = Complex::load(&self.bins[self.first + self.step * (p + count * i)]);
        }
        for i in R / 2..R {
            x[i] = Complex::load(&self.bins[self.step * (self.length - p - count * i) - self.first]).conjugate();
        }
        x
    }

    /// The first of two passes of their transform, of radix `R`.
    #[inline(always)]
    fn first_pass<V: Lanes, const R: usize>(self, turns: &[Turn], between: &mut [Pair]) {
        let pairs = between.chunks_exact_mut(R).zip(turns.chunks_exact(R - 1));
        for (p, (pairs, turns)) in pairs.enumerate().take(LAST) {
            let y = transformed::<V, R>(self.load(p, LAST));
            y[0].store(&mut pairs[0]);
            for j in 1..R {
                y[j].turned(&turns[j - 1]).store(&mut pairs[j]);
            }
        }
    }

    /// The values `q + R · j` of their transform, which is all of it if it has one pass.
    #[inline(always)]
    fn last_pass<V: Lanes, const R: usize>(self, q: usize, between: &[Pair]) -> [Complex<V>; LAST] {
        if R == 1 {
            return transformed(self.load(0, 1));
        }
        let mut x = [Complex::load(&between[q]); LAST];
        for i in 1..LAST {
            x[i] = Complex::load(&between[q + R * i]);
        }
        transformed(x)
    }
}

impl Join {
    /// With transforms of `R · LAST` values.
    #[inline(always)]
    fn run<V: Lanes, const R: usize>(&self, bins: &[Pair], signal: &mut [Row], needed: usize, scratch: &mut Scratch) {
        let length = R * LAST;
        let [one, two] =
            [1, 2].map(|number| Bins { bins, first: number * self.step, step: self.radix * self.step, length });
        let Scratch([between, between_two]) = scratch;
        if R > 1 {
            one.first_pass::<V, R>(&self.between, between);
            if self.radix == 5 {
                two.first_pass::<V, R>(&self.between, between_two);
            }
        }
        for q in 0..R {
            let one = one.last_pass::<V, R>(q, between);
            match self.radix {
                4 => self.four::<V, R>(q, one, signal, needed),
                3 => self.three::<V, R>(q, one, signal, needed),
                _ => {
                    let two = two.last_pass::<V, R>(q, between_two);
                    self.five::<V, R>(q, [one, two], signal, needed);
                }
            }
        }
    }

    #[inline(always)]
    fn four<V: Lanes, const R: usize>(&self, q: usize, part: [Complex<V>; LAST], signal: &mut [Row], needed: usize) {
        let length = R * LAST;
        let (signal, turns) = (&mut signal[..4 * length], &self.turns[0][..length]);
        for j in 0..LAST {
            let m = q + R * j;
            let Complex { re, im } = part[j].turned(&turns[m]);
            let (even, odd) = (V::load(&signal[m]), V::load(&signal[m + length]));
            even.plus(re).store(&mut signal[m]);
            odd.minus(im).store(&mut signal[m + length]);
            if m + 2 * length < needed {
                even.minus(re).store(&mut signal[m + 2 * length]);
            }
            if m + 3 * length < needed {
                odd.plus(im).store(&mut signal[m + 3 * length]);
            }
        }
    }

    #[inline(always)]
    fn three<V: Lanes, const R: usize>(&self, q: usize, part: [Complex<V>; LAST], signal: &mut [Row], needed: usize) {
        let length = R * LAST;
        let (signal, turns) = (&mut signal[..3 * length], &self.turns[0][..length]);
        let [cos, sin] = lanes(&self.roots[0]);
        for j in 0..LAST {
            let m = q + R * j;
            let Complex { re, im } = part[j].turned(&turns[m]);
            let value = V::load(&signal[m]);
            value.plus(re).store(&mut signal[m]);
            let value = value.plus_product(re, cos);
            if m + length < needed {
                value.minus_product(im, sin).store(&mut signal[m + length]);
            }
            if m + 2 * length < needed {
                value.plus_product(im, sin).store(&mut signal[m + 2 * length]);
            }
        }
    }

    #[inline(always)]
    fn five<V: Lanes, const R: usize>(
        &self,
        q: usize,
        [one, two]: [[Complex<V>; LAST]; 2],
        signal: &mut [Row],
        needed: usize,
    ) {
        let length = R * LAST;
        let signal = &mut signal[..5 * length];
        let (turns, turns_two) = (&self.turns[0][..length], &self.turns[1][..length]);
        let ([cos, sin], [cos_2, sin_2]) = (lanes::<V>(&self.roots[0]), lanes::<V>(&self.roots[1]));
        for j in 0..LAST {
            let m = q + R * j;
            let (one, two) = (one[j].turned(&turns[m]), two[j].turned(&turns_two[m]));
            let value = V::load(&signal[m]);
            value.plus(one.re).plus(two.re).store(&mut signal[m]);
            // The real parts of both turned by one fifth and two, or by two and four.
            let near = value.plus_product(one.re, cos).plus_product(two.re, cos_2);
            let far = value.plus_product(one.re, cos_2).plus_product(two.re, cos);
            let near_im = one.im.times(sin).plus_product(two.im, sin_2);
            let far_im = one.im.times(sin_2).minus_product(two.im, sin);
            near.minus(near_im).store(&mut signal[m + length]);
            if m + 2 * length < needed {
                far.minus(far_im).store(&mut signal[m + 2 * length]);
            }
            if m + 3 * length < needed {
                far.plus(far_im).store(&mut signal[m + 3 * length]);
            }
            if m + 4 * length < needed {
                near.plus(near_im).store(&mut signal[m + 4 * length]);
            }
        }
    }
}

//! The inner product all layers are made of, a tile of pixels × channels at a time.
//!
//! A tile reads its pixels where they lie, so overlapping patches are never copied: for pixel `m` and channel `c`
//!
//! ```text
//! out[m][c] = Σ over runs r, elements k:  x[m · pixel + r · run + k] · w[r · w_run + …k, c…]
//! ```
//!
//! This is the one module with `unsafe`: [`tile`] checks every bound once, and the inner loops rely on it.
#![allow(unsafe_code)]

mod avx2;
mod avx512;

use std::ptr;

use super::element::{Bf16, Element};

/// Channels in one group: the float32 lanes of a 512-bit register.
pub const LANES: usize = 16;

/// Where a tile's operands lie; distances are in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// From one pixel of the tile to the next, in `x`.
    pub pixel: usize,
    /// From one run to the next, in `x`.
    pub run: usize,
    pub runs: usize,
    /// Steps in a run; a step takes [`Element::PER_STEP`] neighbours.
    pub steps: usize,
    /// From one run to the next, in `w`.
    pub w_run: usize,
}

/// Instructions this CPU has: a value is proof of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simd(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// AVX-512F with BF16.
    Avx512Bf16,
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// Slow and obvious: what the others are tested against.
    #[cfg(test)]
    Portable,
}

impl Simd {
    #[cfg(test)]
    pub const PORTABLE: Self = Self(Set::Portable);

    /// The fastest of this CPU for float32; none where libtorch does as well.
    pub fn float32() -> Option<Self> {
        Self::avx512().or_else(Self::avx2)
    }

    /// AVX-512 for float32.
    pub fn avx512() -> Option<Self> {
        is_x86_feature_detected!("avx512f").then_some(Self(Set::Avx512))
    }

    /// AVX-512 for float32 and bfloat16.
    pub fn avx512_bf16() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")).then_some(Self(Set::Avx512Bf16))
    }

    /// AVX2 for float32.
    pub fn avx2() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(Set::Avx2))
    }

    /// Groups of channels in a panel of weights, for `groups` groups in all: what the registers hold best.
    pub fn panel(self, groups: usize) -> usize {
        match self.0 {
            // 3 only to leave no panel of one group behind.
            Set::Avx512Bf16 | Set::Avx512 if groups == 3 => 3,
            Set::Avx512Bf16 | Set::Avx512 => groups.min(2),
            Set::Avx2 => 1,
            #[cfg(test)]
            Set::Portable => 1,
        }
    }

    /// The most pixels in a tile with `groups` groups of channels: sums, weights and a pixel fill the registers.
    pub fn pixels(self, groups: usize) -> usize {
        match self.0 {
            // 32 registers: 28 sums, 2 weights; 27 sums, 3 weights.
            Set::Avx512Bf16 | Set::Avx512 => {
                if groups == 3 {
                    9
                } else {
                    14
                }
            }
            // 16 registers: 12 sums, 2 weights.
            Set::Avx2 => 6,
            #[cfg(test)]
            Set::Portable => 14,
        }
    }

    /// Runs `work`, compiled for these instructions.
    pub fn vectorised(self, work: impl Vectorised) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
        fn avx512(work: impl Vectorised) {
            work.run();
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(work: impl Vectorised) {
            work.run();
        }
        let rest = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        match self.0 {
            // SAFETY: these are made on CPUs with AVX-512F, which implies AVX2 and FMA; the others have just been seen.
            Set::Avx512Bf16 | Set::Avx512 if rest => unsafe { avx512(work) },
            // SAFETY: this is made on CPUs with AVX2 and FMA.
            Set::Avx2 => unsafe { avx2(work) },
            _ => work.run(),
        }
    }
}

/// Loops that the compiler turns into the instructions of a [`Simd`]. `run` and all that it calls must be `#[inline(always)]`: what
/// is compiled by itself, as a closure is, is compiled for any CPU.
pub trait Vectorised {
    fn run(self);
}

/// One form of the inner loop, over the places of a window and the products of each.
pub type Loop<T> = unsafe fn(&[Checked<T>], Window);

/// Where a product starts, what is added to it, and where it goes.
#[derive(Clone, Copy)]
pub struct Product<'a, T> {
    pub x: &'a [T],
    pub w: &'a [T],
    pub walk: Walk,
    pub start: Start,
    /// Slots that are added.
    pub plus: [Option<usize>; 2],
    pub base: Option<Base<'a>>,
    pub larger: Larger,
    /// The slot it goes to.
    pub to: usize,
}

impl<'a, T> Product<'a, T> {
    /// All there is to the only slot.
    pub fn single(x: &'a [T], w: &'a [T], walk: Walk) -> Self {
        Self { x, w, walk, start: Start::Zero, plus: [None; 2], base: None, larger: Larger::Never, to: 0 }
    }
}

#[derive(Clone, Copy, Default)]
pub enum Start {
    #[default]
    Zero,
    /// From the sums of the product before it.
    Last,
    Slot(usize),
}

/// Whether a slot keeps what is larger: what comes or what is there.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Larger {
    #[default]
    Never,
    /// Not at the first place of the window.
    AfterFirst,
    Always,
}

/// What is added to the sums of each pixel: `scales[place · scale_step] · values[offsets[pixel] + place · step..]`.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    pub values: &'a [f32],
    pub offsets: &'a [usize],
    pub step: usize,
    pub scales: &'a [f32],
    pub scale_step: usize,
}

/// The places that a tile's products are taken at, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub places: usize,
    /// From one to the next, in `x`.
    pub step: usize,
}

impl Window {
    pub const SINGLE: Self = Self { places: 1, step: 0 };
}

/// A [`Product`] whose bounds were checked.
#[derive(Clone, Copy)]
pub struct Checked<T> {
    x: *const T,
    w: *const T,
    walk: Walk,
    last: bool,
    /// Null, or what it starts from.
    start: *const f32,
    /// Null, or what is added.
    plus: [*const f32; 2],
    /// Null, or what is added as [`Base`] says.
    base: *const f32,
    offsets: *const usize,
    step: usize,
    scales: *const f32,
    scale_step: usize,
    larger: Larger,
    to: *mut f32,
}

macro_rules! per_pixels {
    ($($name:ident)::+ $(, $groups:literal)?) => {
        [
            $($name)::+::<1 $(, $groups)?>, $($name)::+::<2 $(, $groups)?>, $($name)::+::<3 $(, $groups)?>,
            $($name)::+::<4 $(, $groups)?>, $($name)::+::<5 $(, $groups)?>, $($name)::+::<6 $(, $groups)?>,
            $($name)::+::<7 $(, $groups)?>, $($name)::+::<8 $(, $groups)?>, $($name)::+::<9 $(, $groups)?>,
            $($name)::+::<10 $(, $groups)?>, $($name)::+::<11 $(, $groups)?>, $($name)::+::<12 $(, $groups)?>,
            $($name)::+::<13 $(, $groups)?>, $($name)::+::<14 $(, $groups)?>,
        ]
    };
}

static AVX512_FLOAT32: [[Loop<f32>; 14]; 3] =
    [per_pixels!(avx512::float32, 1), per_pixels!(avx512::float32, 2), per_pixels!(avx512::float32, 3)];
static AVX512_BFLOAT16: [[Loop<Bf16>; 14]; 3] =
    [per_pixels!(avx512::bfloat16, 1), per_pixels!(avx512::bfloat16, 2), per_pixels!(avx512::bfloat16, 3)];
static AVX2_FLOAT32: [Loop<f32>; 14] = per_pixels!(avx2::float32);

/// The loop for `pixels` × `groups`, if these instructions have one for float32.
pub fn float32(simd: Simd, pixels: usize, groups: usize) -> Option<Loop<f32>> {
    match simd.0 {
        Set::Avx512Bf16 | Set::Avx512 => AVX512_FLOAT32.get(groups - 1)?.get(pixels - 1).copied(),
        Set::Avx2 if groups == 1 => AVX2_FLOAT32.get(pixels - 1).copied(),
        _ => None,
    }
}

/// The loop for `pixels` × `groups`, if these instructions have one for bfloat16.
pub fn bfloat16(simd: Simd, pixels: usize, groups: usize) -> Option<Loop<Bf16>> {
    match simd.0 {
        Set::Avx512Bf16 => AVX512_BFLOAT16.get(groups - 1)?.get(pixels - 1).copied(),
        _ => None,
    }
}

/// Takes `products` at every place of `window`. `sums` are slots of `[pixels × groups × LANES]`.
///
/// # Panics
/// A product does not reach as far as its `walk` and the window say, or a slot lies beyond `sums`.
pub fn tile<T: Element>(
    simd: Simd,
    [pixels, groups]: [usize; 2],
    products: &[Product<'_, T>],
    window: Window,
    sums: &mut [f32],
) {
    let length = pixels * groups * LANES;
    assert!(length > 0 && window.places > 0);
    let Some(inner) = T::inner_loop(simd, pixels, groups) else {
        return portable([pixels, groups], products, window, sums);
    };
    let further = window.places - 1;
    let slots = sums.len() / length;
    let sums = sums.as_mut_ptr();
    let slot = |number: usize| {
        assert!(number < slots);
        sums.wrapping_add(number * length)
    };
    let read = |number: Option<usize>| number.map_or(ptr::null(), |number| slot(number).cast_const());
    let check = |product: &Product<'_, T>| {
        let Product { x, w, walk, start, plus, base, larger, to } = *product;
        if walk.runs > 0 && walk.steps > 0 {
            let elements = walk.steps * T::PER_STEP;
            let first = (pixels - 1) * walk.pixel + (walk.runs - 1) * walk.run + elements;
            assert!(x.len() >= first + further * window.step);
            assert!(w.len() >= (walk.runs - 1) * walk.w_run + elements * groups * LANES);
        }
        let (last, start) = match start {
            Start::Zero => (false, None),
            Start::Last => (true, None),
            Start::Slot(number) => (false, Some(number)),
        };
        let mut checked = Checked {
            x: x.as_ptr(),
            w: w.as_ptr(),
            walk,
            last,
            start: read(start),
            plus: plus.map(read),
            base: ptr::null(),
            offsets: ptr::null(),
            step: 0,
            scales: ptr::null(),
            scale_step: 0,
            larger,
            to: slot(to),
        };
        if let Some(Base { values, offsets, step, scales, scale_step }) = base {
            let end = further * step + groups * LANES;
            let inside = |&offset: &usize| values.len().checked_sub(end).is_some_and(|last| offset <= last);
            assert!(offsets.len() >= pixels && offsets[..pixels].iter().all(inside));
            assert!(scales.len() > further * scale_step);
            let (base, offsets, scales) = (values.as_ptr(), offsets.as_ptr(), scales.as_ptr());
            checked = Checked { base, offsets, step, scales, scale_step, ..checked };
        }
        checked
    };
    let run = |products: &[Checked<T>]| {
        // SAFETY: a `Simd` is only made where the CPU has it, and has loops for its own instructions. The bounds were checked
        // above: the last element read of `x` is that of the last place, pixel, run and step, of `w` that of the last run and
        // step; without runs or steps nothing is read. Slots lie within `sums`, which nothing else refers to while it
        // runs, and what a base reads within its slices.
        unsafe { inner(products, window) };
    };
    match products {
        [product] => run(&[check(product)]),
        _ => run(&products.iter().map(check).collect::<Vec<_>>()),
    }
}

fn portable<T: Element>([pixels, groups]: [usize; 2], products: &[Product<'_, T>], window: Window, sums: &mut [f32]) {
    let lanes = groups * LANES;
    let mut last = vec![0.0; pixels * lanes];
    for place in 0..window.places {
        for Product { x, w, walk, start, plus, base, larger, to } in products {
            for (at, last) in last.iter_mut().enumerate() {
                let (m, c) = (at / lanes, at % lanes);
                let slot = |number: usize| sums[number * pixels * lanes + at];
                let mut sum = match *start {
                    Start::Zero => 0.0,
                    Start::Last => *last,
                    Start::Slot(number) => slot(number),
                };
                for run in 0..walk.runs {
                    for k in 0..walk.steps * T::PER_STEP {
                        let x = x[place * window.step + m * walk.pixel + run * walk.run + k].to_f32();
                        let (step, part) = (k / T::PER_STEP, k % T::PER_STEP);
                        sum += x * w[run * walk.w_run + (step * lanes + c) * T::PER_STEP + part].to_f32();
                    }
                }
                sum += plus.iter().flatten().map(|&number| slot(number)).sum::<f32>();
                if let Some(Base { values, offsets, step, scales, scale_step }) = base {
                    sum += scales[place * scale_step] * values[offsets[m] + place * step + c];
                }
                let keeps = *larger == Larger::Always || (*larger == Larger::AfterFirst && place > 0);
                if keeps {
                    sum = sum.max(slot(*to));
                }
                *last = sum;
            }
            sums[to * last.len()..][..last.len()].copy_from_slice(&last);
        }
    }
}

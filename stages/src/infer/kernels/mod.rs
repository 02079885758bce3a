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
mod lanes;

pub use self::lanes::{Lanes, OnLanes};
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

    /// The widest float32 set this CPU has; `None` without AVX2, where libtorch is no slower.
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

/// Loops that the compiler turns into the instructions of a [`Simd`]. `run` and all that it calls must be
/// `#[inline(always)]`: what is compiled by itself, as a closure is, is compiled for any CPU.
pub trait Vectorised {
    fn run(self);
}

/// One form of the inner loop: `x`, `w`, how they are walked, whether what is larger stays, and where the sums go.
pub type Loop<T> = unsafe fn(*const T, *const T, Walk, bool, *mut f32);

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

/// Multiplies `x` by `w` as `walk` says, into `sums`, `[pixels × groups × LANES]`; with `larger`, values there that
/// are larger stay.
///
/// # Panics
/// `x`, `w` or `sums` does not reach that far.
pub fn tile<T: Element>(
    simd: Simd,
    [pixels, groups]: [usize; 2],
    [x, w]: [&[T]; 2],
    walk: Walk,
    larger: bool,
    sums: &mut [f32],
) {
    assert!(pixels > 0 && groups > 0 && sums.len() >= pixels * groups * LANES);
    if walk.runs > 0 && walk.steps > 0 {
        let elements = walk.steps * T::PER_STEP;
        assert!(x.len() >= (pixels - 1) * walk.pixel + (walk.runs - 1) * walk.run + elements);
        assert!(w.len() >= (walk.runs - 1) * walk.w_run + elements * groups * LANES);
    }
    match T::inner_loop(simd, pixels, groups) {
        // SAFETY: a `Simd` is only made if the CPU has it, and has loops for its own instructions. The bounds were
        // checked above: the last element read of `x` is that of the last pixel, run and step, of `w` that of the last
        // run and step; without runs or steps nothing is read. `sums` has a register for each pixel and group.
        Some(inner) => unsafe { inner(x.as_ptr(), w.as_ptr(), walk, larger, sums.as_mut_ptr()) },
        None => portable([pixels, groups], [x, w], walk, larger, sums),
    }
}

fn portable<T: Element>([pixels, groups]: [usize; 2], [x, w]: [&[T]; 2], walk: Walk, larger: bool, sums: &mut [f32]) {
    let lanes = groups * LANES;
    for (at, out) in sums[..pixels * lanes].iter_mut().enumerate() {
        let (m, c) = (at / lanes, at % lanes);
        let mut sum = 0.0;
        for run in 0..walk.runs {
            for k in 0..walk.steps * T::PER_STEP {
                let x = x[m * walk.pixel + run * walk.run + k].to_f32();
                let (step, part) = (k / T::PER_STEP, k % T::PER_STEP);
                sum += x * w[run * walk.w_run + (step * lanes + c) * T::PER_STEP + part].to_f32();
            }
        }
        *out = if larger { sum.max(*out) } else { sum };
    }
}

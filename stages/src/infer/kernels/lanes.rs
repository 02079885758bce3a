//! Sixteen float32 side by side, for algorithms that are more than products.

use std::arch::x86_64::{
    __m256, __m512, _mm256_add_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_mul_ps,
    _mm256_set1_ps, _mm256_storeu_ps, _mm256_sub_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps,
    _mm512_max_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::{LANES, Set, Simd};

/// Values in the registers of one set of instructions. Where there is one, the CPU has them: they are only named by
/// [`Simd::on_lanes`].
pub trait Lanes: Copy {
    /// How many of them there are.
    const REGISTERS: usize;

    fn splat(value: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// `self + a · b`
    fn plus_product(self, a: Self, b: Self) -> Self;
    /// `self − a · b`
    fn minus_product(self, a: Self, b: Self) -> Self;
    fn larger(self, other: Self) -> Self;
}

/// What is done on lanes. `run` and all that it calls must be `#[inline(always)]`: what is compiled by itself, as a
/// closure is, is compiled for any CPU.
pub trait OnLanes {
    fn run<V: Lanes>(self);
}

impl Simd {
    /// Runs `work` with these instructions.
    pub fn on_lanes(self, work: impl OnLanes) {
        #[target_feature(enable = "avx512f")]
        fn avx512(work: impl OnLanes) {
            work.run::<Avx512>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(work: impl OnLanes) {
            work.run::<Avx2>();
        }
        match self.0 {
            // SAFETY: a `Simd` is only made if the CPU has its instructions.
            Set::Avx512Bf16 | Set::Avx512 => unsafe { avx512(work) },
            // SAFETY: as above.
            Set::Avx2 => unsafe { avx2(work) },
            #[cfg(test)]
            Set::Portable => work.run::<Portable>(),
        }
    }
}

#[derive(Clone, Copy)]
struct Avx512(__m512);

// Every `unsafe` here calls what needs AVX-512F, which the CPU has, as the type is private and only `on_lanes` names
// it; loads and stores stay within arrays of the register's size.
impl Lanes for Avx512 {
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    fn minus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fnmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
}

#[derive(Clone, Copy)]
struct Avx2([__m256; 2]);

impl Avx2 {
    const HALF: usize = LANES / 2;
}

// Every `unsafe` here calls what needs AVX2 with FMA, which the CPU has, as the type is private and only `on_lanes`
// names it; loads and stores stay within arrays of two registers' size.
impl Lanes for Avx2 {
    const REGISTERS: usize = 16 / 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self([unsafe { _mm256_set1_ps(value) }; 2])
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: see above.
        Self(unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[Self::HALF..].as_ptr())] })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0[0]);
            _mm256_storeu_ps(to[Self::HALF..].as_mut_ptr(), self.0[1]);
        }
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_add_ps(a, c), _mm256_add_ps(b, d)] })
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_sub_ps(a, c), _mm256_sub_ps(b, d)] })
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_mul_ps(a, c), _mm256_mul_ps(b, d)] })
    }

    #[inline(always)]
    fn plus_product(self, a: Self, b: Self) -> Self {
        let ([x, y], [a, b], [c, d]) = (self.0, a.0, b.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_fmadd_ps(a, c, x), _mm256_fmadd_ps(b, d, y)] })
    }

    #[inline(always)]
    fn minus_product(self, a: Self, b: Self) -> Self {
        let ([x, y], [a, b], [c, d]) = (self.0, a.0, b.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_fnmadd_ps(a, c, x), _mm256_fnmadd_ps(b, d, y)] })
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_max_ps(a, c), _mm256_max_ps(b, d)] })
    }
}

/// Slow and obvious: what the others are tested against.
#[cfg(test)]
#[derive(Clone, Copy)]
struct Portable([f32; LANES]);

#[cfg(test)]
impl Lanes for Portable {
    const REGISTERS: usize = 8;

    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    fn times(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }

    fn plus_product(self, a: Self, b: Self) -> Self {
        self.plus(a.times(b))
    }

    fn minus_product(self, a: Self, b: Self) -> Self {
        self.minus(a.times(b))
    }

    fn larger(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].max(other.0[i])))
    }
}

//! Tiles with AVX-512: 16 channels to a register, the weights of a step loaded once for all pixels of the tile.
#![expect(clippy::needless_range_loop, reason = "counted loops over constants become registers")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_max_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

use super::{LANES, Walk};
use crate::infer::element::Bf16;

/// Stores the sums, or the maxima of them and of what is there.
///
/// # Safety
/// The CPU has AVX-512F, and `to` has `M × N` registers.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const M: usize, const N: usize>(sums: [[__m512; N]; M], larger: bool, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for m in 0..M {
            for n in 0..N {
                let at = to.add((m * N + n) * LANES);
                let sum = if larger { _mm512_max_ps(sums[m][n], _mm512_loadu_ps(at)) } else { sums[m][n] };
                _mm512_storeu_ps(at, sum);
            }
        }
    }
}

/// # Safety
/// The CPU has AVX-512F, and the operands were checked for `M` pixels and `N` groups.
#[target_feature(enable = "avx512f")]
pub unsafe fn float32<const M: usize, const N: usize>(
    x: *const f32,
    w: *const f32,
    walk: Walk,
    larger: bool,
    to: *mut f32,
) {
    // SAFETY: the caller's promise; pointers stay within what was checked.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        for run in 0..walk.runs {
            let mut x = x.add(run * walk.run);
            let mut w = w.add(run * walk.w_run);
            let end = x.add(walk.steps);
            while x != end {
                let mut weights = [_mm512_setzero_ps(); N];
                for n in 0..N {
                    weights[n] = _mm512_loadu_ps(w.add(n * LANES));
                }
                for m in 0..M {
                    let value = _mm512_set1_ps(*x.add(m * walk.pixel));
                    for n in 0..N {
                        sums[m][n] = _mm512_fmadd_ps(weights[n], value, sums[m][n]);
                    }
                }
                x = x.add(1);
                w = w.add(N * LANES);
            }
        }
        finish(sums, larger, to);
    }
}

/// # Safety
/// The CPU has AVX-512F and AVX-512 BF16, and the operands were checked for `M` pixels and `N` groups.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn bfloat16<const M: usize, const N: usize>(
    x: *const Bf16,
    w: *const Bf16,
    walk: Walk,
    larger: bool,
    to: *mut f32,
) {
    // SAFETY: the caller's promise; pointers stay within what was checked. A pair of values may start at any element,
    // so it is read unaligned. `__m512bh` and `__m512i` are both 512 bits without invalid patterns.
    unsafe {
        let pairs = |bits: __m512i| std::mem::transmute::<__m512i, __m512bh>(bits);
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        for run in 0..walk.runs {
            let mut x = x.add(run * walk.run);
            let mut w = w.add(run * walk.w_run);
            let end = x.add(2 * walk.steps);
            while x != end {
                let mut weights = [_mm512_setzero_si512(); N];
                for n in 0..N {
                    weights[n] = _mm512_loadu_si512(w.add(n * 2 * LANES).cast());
                }
                for m in 0..M {
                    let pair = _mm512_set1_epi32(x.add(m * walk.pixel).cast::<i32>().read_unaligned());
                    for n in 0..N {
                        sums[m][n] = _mm512_dpbf16_ps(sums[m][n], pairs(weights[n]), pairs(pair));
                    }
                }
                x = x.add(2);
                w = w.add(2 * N * LANES);
            }
        }
        finish(sums, larger, to);
    }
}

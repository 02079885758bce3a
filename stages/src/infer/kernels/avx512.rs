//! Tiles with AVX-512: 16 channels to a register, the weights of a step loaded once for all pixels of the tile.
#![expect(clippy::needless_range_loop, reason = "counted loops over constants become registers")]

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_max_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

use super::{Checked, LANES, Larger, Window};
use crate::infer::element::Bf16;

/// Sets the sums to what the product starts from.
macro_rules! start {
    ($sums:ident, $product:ident) => {
        if !$product.last {
            $sums = [[_mm512_setzero_ps(); N]; M];
            if !$product.start.is_null() {
                for m in 0..M {
                    for n in 0..N {
                        $sums[m][n] = _mm512_loadu_ps($product.start.add((m * N + n) * LANES));
                    }
                }
            }
        }
    };
}

/// Adds what the product says, and stores the sums. A macro, and one loop for each thing to do, so that they stay in registers.
macro_rules! finish {
    ($sums:ident, $product:ident, $place:ident) => {
        for plus in $product.plus {
            if !plus.is_null() {
                for m in 0..M {
                    for n in 0..N {
                        $sums[m][n] = _mm512_add_ps($sums[m][n], _mm512_loadu_ps(plus.add((m * N + n) * LANES)));
                    }
                }
            }
        }
        if !$product.base.is_null() {
            let scale = _mm512_set1_ps(*$product.scales.add($place * $product.scale_step));
            for m in 0..M {
                let base = $product.base.add(*$product.offsets.add(m) + $place * $product.step);
                for n in 0..N {
                    $sums[m][n] = _mm512_fmadd_ps(_mm512_loadu_ps(base.add(n * LANES)), scale, $sums[m][n]);
                }
            }
        }
        if $product.larger == Larger::Always || ($product.larger == Larger::AfterFirst && $place > 0) {
            for m in 0..M {
                for n in 0..N {
                    let there = _mm512_loadu_ps($product.to.add((m * N + n) * LANES));
                    $sums[m][n] = _mm512_max_ps($sums[m][n], there);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                _mm512_storeu_ps($product.to.add((m * N + n) * LANES), $sums[m][n]);
            }
        }
    };
}

/// # Safety
/// The CPU has AVX-512F, and the products were checked for `M` pixels, `N` groups and this window.
#[target_feature(enable = "avx512f")]
pub unsafe fn float32<const M: usize, const N: usize>(products: &[Checked<f32>], window: Window) {
    // SAFETY: the caller's promise; pointers stay within what was checked.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        for place in 0..window.places {
            for product in products {
                let walk = product.walk;
                start!(sums, product);
                for run in 0..walk.runs {
                    let mut x = product.x.add(place * window.step + run * walk.run);
                    let mut w = product.w.add(run * walk.w_run);
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
                finish!(sums, product, place);
            }
        }
    }
}

/// # Safety
/// The CPU has AVX-512F and AVX-512 BF16, and the products were checked for `M` pixels, `N` groups and this window.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn bfloat16<const M: usize, const N: usize>(products: &[Checked<Bf16>], window: Window) {
    // SAFETY: the caller's promise; pointers stay within what was checked. A pair of values may start at any element, so it is
    // read unaligned. `__m512bh` and `__m512i` are both 512 bits without invalid patterns.
    unsafe {
        let pairs = |bits: __m512i| std::mem::transmute::<__m512i, __m512bh>(bits);
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        for place in 0..window.places {
            for product in products {
                let walk = product.walk;
                start!(sums, product);
                for run in 0..walk.runs {
                    let mut x = product.x.add(place * window.step + run * walk.run);
                    let mut w = product.w.add(run * walk.w_run);
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
                finish!(sums, product, place);
            }
        }
    }
}

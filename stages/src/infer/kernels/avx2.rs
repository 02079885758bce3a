//! Tiles with AVX2 and FMA: two registers of 8 make the 16 channels.
#![expect(clippy::needless_range_loop, reason = "counted loops over constants become registers")]

use std::arch::x86_64::{
    _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

use super::{Checked, LANES, Larger, Window};

const HALF: usize = LANES / 2;

/// # Safety
/// The CPU has AVX2 and FMA, and the products were checked for `M` pixels, one group of channels and this window.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn float32<const M: usize>(products: &[Checked<f32>], window: Window) {
    // SAFETY: the caller's promise; pointers stay within what was checked.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for place in 0..window.places {
            for product in products {
                let walk = product.walk;
                if !product.last {
                    for m in 0..M {
                        for half in 0..2 {
                            sums[m][half] = if product.start.is_null() {
                                _mm256_setzero_ps()
                            } else {
                                _mm256_loadu_ps(product.start.add(m * LANES + half * HALF))
                            };
                        }
                    }
                }
                for run in 0..walk.runs {
                    let mut x = product.x.add(place * window.step + run * walk.run);
                    let mut w = product.w.add(run * walk.w_run);
                    let end = x.add(walk.steps);
                    while x != end {
                        let weights = [_mm256_loadu_ps(w), _mm256_loadu_ps(w.add(HALF))];
                        for m in 0..M {
                            let value = _mm256_broadcast_ss(&*x.add(m * walk.pixel));
                            for half in 0..2 {
                                sums[m][half] = _mm256_fmadd_ps(weights[half], value, sums[m][half]);
                            }
                        }
                        x = x.add(1);
                        w = w.add(LANES);
                    }
                }
                let larger = product.larger == Larger::Always || (product.larger == Larger::AfterFirst && place > 0);
                for m in 0..M {
                    for half in 0..2 {
                        let at = m * LANES + half * HALF;
                        let mut sum = sums[m][half];
                        for plus in product.plus {
                            if !plus.is_null() {
                                sum = _mm256_add_ps(sum, _mm256_loadu_ps(plus.add(at)));
                            }
                        }
                        if !product.base.is_null() {
                            let base = product.base.add(*product.offsets.add(m) + place * product.step + half * HALF);
                            let scale = _mm256_broadcast_ss(&*product.scales.add(place * product.scale_step));
                            sum = _mm256_fmadd_ps(_mm256_loadu_ps(base), scale, sum);
                        }
                        if larger {
                            sum = _mm256_max_ps(sum, _mm256_loadu_ps(product.to.add(at)));
                        }
                        _mm256_storeu_ps(product.to.add(at), sum);
                        sums[m][half] = sum;
                    }
                }
            }
        }
    }
}

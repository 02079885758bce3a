//! Tiles with AVX2 and FMA: two registers of 8 make the 16 channels.
#![expect(clippy::needless_range_loop, reason = "counted loops over constants become registers")]

use std::arch::x86_64::{
    _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

use super::{LANES, Out, Walk};

const HALF: usize = LANES / 2;

/// # Safety
/// The CPU has AVX2 and FMA, `x` and `w` reach as far as [`Walk`] says, and `out` as [`Out`] says, for `M` pixels and one
/// group of channels.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn float32<const M: usize>(x: *const f32, w: *const f32, walk: Walk, out: Out) {
    // SAFETY: the caller's promise; pointers stay within what `Walk` and `Out` say.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for run in 0..walk.runs {
            let mut x = x.add(run * walk.run);
            let mut w = w.add(run * walk.w_run);
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
        for m in 0..M {
            for half in 0..2 {
                let mut sum = sums[m][half];
                for plus in out.plus {
                    if !plus.is_null() {
                        sum = _mm256_add_ps(sum, _mm256_loadu_ps(plus.add(m * LANES + half * HALF)));
                    }
                }
                if !out.base.is_null() {
                    let base = _mm256_loadu_ps(out.base.add(*out.offsets.add(m) + half * HALF));
                    sum = _mm256_fmadd_ps(base, _mm256_broadcast_ss(&out.scale), sum);
                }
                let to = out.sums.add(m * LANES + half * HALF);
                if out.max {
                    sum = _mm256_max_ps(sum, _mm256_loadu_ps(to));
                }
                _mm256_storeu_ps(to, sum);
            }
        }
    }
}

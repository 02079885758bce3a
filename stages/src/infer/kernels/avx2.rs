//! Tiles with AVX2 and FMA: two registers of 8 make the 16 channels.
#![expect(clippy::needless_range_loop, reason = "counted loops over constants become registers")]

use std::arch::x86_64::{
    _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::{LANES, Walk};

const HALF: usize = LANES / 2;

/// # Safety
/// The CPU has AVX2 and FMA, and the operands were checked for `M` pixels and one group of channels.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn float32<const M: usize>(x: *const f32, w: *const f32, walk: Walk, larger: bool, to: *mut f32) {
    // SAFETY: the caller's promise; pointers stay within what was checked.
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
                let at = to.add(m * LANES + half * HALF);
                let sum = if larger { _mm256_max_ps(sums[m][half], _mm256_loadu_ps(at)) } else { sums[m][half] };
                _mm256_storeu_ps(at, sum);
            }
        }
    }
}

//! Operations that one core does per second at best: products and sums of registers, with nothing to wait for.
#![allow(unsafe_code)]

use std::{
    arch::x86_64::{
        __m512, __m512bh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_si512,
    },
    hint::black_box,
    mem::transmute,
};

use tonearm_benches::clock::time;

/// Sums that do not wait for each other: two units with results after 4 cycles keep 8 busy, and with more than 12 the
/// compiler moves registers about.
const SUMS: usize = 12;
const STEPS: usize = 1 << 22;
/// Values in a register.
const LANES: f64 = 16.0;

/// Of float32; 0 where the core has no AVX-512.
pub fn float32_flop() -> f64 {
    if !is_x86_feature_detected!("avx512f") {
        return 0.0;
    }
    // SAFETY: the core has AVX-512F, which is all that the function needs.
    best(|| unsafe { float32() }, 2.0 * LANES)
}

/// Of bfloat16, summed in float32; 0 where the core has no AVX512_BF16.
pub fn bfloat16_flop() -> f64 {
    if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")) {
        return 0.0;
    }
    // SAFETY: the core has AVX-512F and AVX512_BF16, which is all that the function needs.
    best(|| unsafe { bfloat16() }, 4.0 * LANES)
}

fn best(work: impl Fn() -> f32, flop_per_product: f64) -> f64 {
    let once = || time(|| _ = black_box(work())).cpu_s;
    let seconds = (0..5).map(|_| once()).fold(f64::INFINITY, f64::min);
    (SUMS * STEPS) as f64 * flop_per_product / seconds
}

#[target_feature(enable = "avx512f")]
fn float32() -> f32 {
    let factor = _mm512_set1_ps(black_box(1.0));
    let mut sums = [_mm512_set1_ps(0.0); SUMS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    total(&sums)
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn bfloat16() -> f32 {
    // SAFETY: both types are 512 bits of numbers, and any bits are numbers.
    let factor: __m512bh = unsafe { transmute(black_box(_mm512_setzero_si512())) };
    let mut sums = [_mm512_set1_ps(0.0); SUMS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, factor, factor);
        }
    }
    total(&sums)
}

#[target_feature(enable = "avx512f")]
fn total(sums: &[__m512]) -> f32 {
    sums.iter().map(|sum| _mm512_reduce_add_ps(*sum)).sum()
}

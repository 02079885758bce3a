//! The numbers a product is made of: float32, or bfloat16 with float32 sums.

use super::kernels::{self, Simd};

/// A number as the products take it.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// Neighbours that one multiplication takes together.
    const PER_STEP: usize;

    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;
    /// The loop of `simd` for a tile of `pixels` × `groups` of channels.
    fn inner_loop(simd: Simd, pixels: usize, groups: usize) -> Option<kernels::Loop<Self>>;
}

impl Element for f32 {
    const PER_STEP: usize = 1;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn inner_loop(simd: Simd, pixels: usize, groups: usize) -> Option<kernels::Loop<Self>> {
        kernels::float32(simd, pixels, groups)
    }
}

/// bfloat16: the upper half of a float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Element for Bf16 {
    const PER_STEP: usize = 2;

    /// The nearest, ties to even, as AVX-512's VCVTNEPS2BF16. Windows are finite, and what arithmetic makes of
    /// infinities (a quiet NaN) stays what it is; asking for NaN would keep compilers from vectorising.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        Self((rounded >> 16) as u16)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    fn inner_loop(simd: Simd, pixels: usize, groups: usize) -> Option<kernels::Loop<Self>> {
        kernels::bfloat16(simd, pixels, groups)
    }
}

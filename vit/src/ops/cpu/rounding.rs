//! bf16: the upper half of an f32.
use rayon::prelude::*;

use super::math::simd_fn;

/// A number as bf16, to the nearest, ties to even; a NaN stays one.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// Back to f32, exactly.
#[inline(always)]
pub fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

simd_fn! {
    fn round_chunk<'a>(x: &'a [f32], y: &'a mut [u16]) -> () {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = round(x);
        }
    }
}

/// Rounds numbers, on all threads.
pub fn round_all(x: &[f32], y: &mut [u16]) {
    const CHUNK: usize = 32 * 1024;
    let pairs = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    pairs.for_each(|(y, x)| round_chunk(x, y));
}

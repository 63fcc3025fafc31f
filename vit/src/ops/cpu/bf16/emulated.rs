//! The same product in plain Rust: what the units are compared with, and what tests run where there is none.
use std::ops::Range;

use super::super::math::simd_fn;
use super::super::tiles::{Tile, Tiles};
use super::Destination;

/// One task: all tiles of these panels.
///
/// # Safety
/// As [`Destination::put`].
pub(super) unsafe fn multiply(
    lhs: &Tiles,
    rhs: &Tiles,
    left: Range<usize>,
    right: Range<usize>,
    to: Destination,
) {
    for r in right {
        for l in left.clone() {
            let mut sums = [[0f32; 16]; 16];
            panels(lhs.panel(l), rhs.panel(r), &mut sums);
            // SAFETY: the caller's.
            unsafe { to.put(sums.as_flattened(), 16, 16 * l, 16 * r) };
        }
    }
}

simd_fn! {
    fn panels<'a>(left: &'a [Tile], right: &'a [Tile], sums: &'a mut [[f32; 16]; 16]) -> () {
        let even = |word: u32| f32::from_bits(word << 16);
        let odd = |word: u32| f32::from_bits(word & 0xffff_0000);
        for (left, right) in left.iter().zip(right) {
            for (p, words) in right.iter().enumerate() {
                for (sums, left) in sums.iter_mut().zip(left) {
                    let (a0, a1) = (even(left.0[p]), odd(left.0[p]));
                    for (sum, &word) in sums.iter_mut().zip(&words.0) {
                        *sum += a1 * odd(word);
                        *sum += a0 * even(word);
                    }
                }
            }
        }
    }
}

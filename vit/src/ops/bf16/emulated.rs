//! The same product in plain Rust: what the units are compared with, and what tests run where there is none.
use std::ops::Range;

use super::super::math::simd_fn;
use super::pack::{Packed, Tile};
use super::Destination;

/// One task: all tiles of these panels.
///
/// # Safety
/// As [`Destination::put`].
pub(super) unsafe fn multiply(
    lhs: &Packed,
    rhs: &Packed,
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
            for p in 0..16 {
                for r in 0..16 {
                    let (a0, a1) = (even(left[r].0[p]), odd(left[r].0[p]));
                    for c in 0..16 {
                        sums[r][c] += a1 * odd(right[p].0[c]);
                        sums[r][c] += a0 * even(right[p].0[c]);
                    }
                }
            }
        }
    }
}

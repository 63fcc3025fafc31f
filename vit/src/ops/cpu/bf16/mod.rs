//! Matrix products with bf16 operands and f32 sums, on the units that CPUs have for them.
//!
//! Both operands are rounded and cut into tiles first ([`pack`]), or are so already; a [`Unit`] then multiplies tiles: AMX (Intel since
//! Sapphire Rapids), AVX-512-BF16 (AMD since Zen 4, Intel since Cooper Lake) or plain Rust, slow, for tests. All three read
//! the same tiles. The order of summation over k depends on the sizes and the unit alone, never on the threads.
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod emulated;
mod pack;
#[cfg(test)]
mod tests;
mod unit;

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{DataMut, Product, Start, Threads};
use super::rounding::round_all;
use super::scratch::Buffer;
use super::sums::round_into;
use super::tiles::Tiles;
use crate::ops::profile::Profile;
pub use pack::columns;
#[cfg(target_arch = "x86_64")]
use unit::avx512_is_there;
use unit::Kernel;
pub use unit::Unit;

/// The first number of what is written.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
enum Target {
    F32(*mut f32),
    Bf16(*mut u16),
    /// So many tiles in a panel.
    Tiles(*mut u16, usize),
}

impl Target {
    fn f32(self) -> *mut f32 {
        match self {
            Self::F32(data) => data,
            _ => unreachable!("`multiply` gives bf16 to AVX-512-BF16 alone"),
        }
    }
}

/// The part of a destination that one task writes: element (r, c) of the whole is `data[r * stride + c]`, or that number in tiles.
#[derive(Clone, Copy)]
struct Destination<'a> {
    data: Target,
    stride: usize,
    /// Rows and columns of the whole matrix: tiles at its edges stick out.
    rows: usize,
    columns: usize,
    start: Start<'a>,
}

// SAFETY: a `Destination` is shared by the tasks of one product, each of which writes tiles that no other task touches.
unsafe impl Send for Destination<'_> {}
// SAFETY: as above.
unsafe impl Sync for Destination<'_> {}

impl Destination<'_> {
    /// Takes a computed square of `side` x `side` sums, the first of which is that of `row` and `column`; what sticks out
    /// is left away.
    ///
    /// # Safety
    /// `data` points to `rows` rows, `stride` apart, of `columns` numbers, or to that many in tiles, and no other thread reads or
    /// writes this square.
    unsafe fn put(&self, sums: &[f32], side: usize, row: usize, column: usize) {
        let data = self.data.f32();
        let rows = self.rows.saturating_sub(row).min(side);
        let columns = self.columns.saturating_sub(column).min(side);
        for (r, sums) in sums.chunks_exact(side).enumerate().take(rows) {
            // SAFETY: row + r < rows and column + columns <= columns of the whole; see above for the rest.
            let out = unsafe {
                let start = data.add((row + r) * self.stride + column);
                std::slice::from_raw_parts_mut(start, columns)
            };
            for (c, (out, &sum)) in out.iter_mut().zip(sums).enumerate() {
                let start = match self.start {
                    Start::Zero => 0.0,
                    Start::Sum => *out,
                    Start::Row(row) => row[column + c],
                };
                *out = start + sum;
            }
        }
    }
}

/// Panels of both operands in one task: of 16 rows, so that this much of the left operand stays in a core's cache.
const LEFT: usize = 16;
const RIGHT: usize = 8;

/// The product into `dst`, with both operands rounded to bf16 (nearest, ties to even) and sums in f32, which are rounded once if
/// `dst` is bf16. One stride of the left operand is 1; the right one is in tiles already.
pub fn multiply(unit: Unit, product: Product<&Tiles>, dst: DataMut, profile: &Profile) {
    let (m, _, n) = product.shape;
    if m == 0 || n == 0 {
        return;
    }
    product.assert_fits(dst.len());
    let tasks = |to| tasks(unit, product, to, profile);
    if let DataMut::F32(dst) = dst {
        return tasks(Target::F32(dst.as_mut_ptr()));
    }
    assert!(
        product.stride == n && !matches!(product.start, Start::Sum),
        "bf16: a result with gaps, or added to"
    );
    // AMX adds up parts of k in the destination, which must not round them.
    let sums = (unit.0 != Kernel::Avx512).then(|| {
        let mut sums = Buffer::new(m * n);
        tasks(Target::F32(sums.as_mut_ptr()));
        sums
    });
    match (dst, sums) {
        (DataMut::F32(_), _) => unreachable!("it was taken above"),
        (DataMut::Bf16(dst), None) => tasks(Target::Bf16(dst.as_mut_ptr())),
        (DataMut::Bf16(dst), Some(sums)) => round_all(&sums, &mut dst[..m * n]),
        (DataMut::Tiles(dst), sums) => {
            assert!((dst.outer(), dst.depth()) == (m, n), "bf16: another result");
            let steps = dst.steps();
            match sums {
                None => tasks(Target::Tiles(dst.tiles_mut().as_mut_ptr().cast(), steps)),
                Some(sums) => round_into(&sums, dst),
            }
        }
    }
}

/// The same into a destination that is large enough, of at least one row and column.
fn tasks(unit: Unit, product: Product<&Tiles>, data: Target, profile: &Profile) {
    let Product {
        shape: (m, k, n),
        lhs,
        rhs,
        start,
        stride,
        threads,
    } = product;
    let parallel = threads == Threads::All;
    let lhs = &*profile.timed("bf16 tiles", || pack::rows(lhs, m, k, parallel));
    assert!(
        lhs.outer() == m && rhs.outer() == n && rhs.depth() == k,
        "bf16: tiles of another size"
    );
    let to = Destination {
        data,
        stride,
        rows: m,
        columns: n,
        start,
    };
    let tasks = match parallel {
        true => TASKS * rayon::current_num_threads(),
        false => 1,
    };
    let blocks = blocks(lhs.panels(), rhs.panels(), tasks);
    let task = |i: usize| {
        let left = part(lhs.panels(), blocks.0, i % blocks.0);
        let right = part(rhs.panels(), blocks.1, i / blocks.0);
        // SAFETY: `to` describes what the caller has borrowed mutably and found large enough; every tile of the product belongs
        // to exactly one task. A `Unit` is made only where the machine has it.
        unsafe {
            match unit.0 {
                #[cfg(target_arch = "x86_64")]
                Kernel::Amx => amx::multiply(lhs, rhs, left, right, to),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => avx512::multiply(lhs, rhs, left, right, to),
                _ => emulated::multiply(lhs, rhs, left, right, to),
            }
        }
    };
    match parallel {
        true => (0..blocks.0 * blocks.1).into_par_iter().for_each(task),
        false => (0..blocks.0 * blocks.1).for_each(task),
    }
}

/// Tasks for each thread, so that all end at about the same time.
const TASKS: usize = 6;

/// Into how many parts the panels of both operands are cut: as many as LEFT and RIGHT ask for, and more for so many tasks, down
/// to two panels. No sum depends on it.
fn blocks(left: usize, right: usize, tasks: usize) -> (usize, usize) {
    let (mut l, mut r) = (left.div_ceil(LEFT), right.div_ceil(RIGHT));
    let most = (left.div_ceil(2), right.div_ceil(2));
    while l * r < tasks && (l, r) != most {
        // The one whose parts are larger.
        match r == most.1 || (l < most.0 && left * r >= right * l) {
            true => l = (2 * l).min(most.0),
            false => r = (2 * r).min(most.1),
        }
    }
    (l, r)
}

/// Part `i` of `parts` nearly equal ones of `0..len`, all but the last of even length (AMX works on pairs of panels).
fn part(len: usize, parts: usize, i: usize) -> Range<usize> {
    let pairs = len.div_ceil(2);
    let at = |i: usize| (2 * (i * pairs / parts)).min(len);
    at(i)..at(i + 1)
}

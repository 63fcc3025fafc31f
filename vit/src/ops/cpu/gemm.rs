//! Products in f32: a checked door to the `gemm` crate.
use gemm::Parallelism;
use rayon::prelude::*;

use super::matrix::{Mat, Product, Start, Threads};

/// Rows in one task; fixed, so that the bits do not depend on the number of threads.
const ROWS: usize = 128;

/// The product into `dst`. The order of summation over k depends on the sizes alone, never on the number of threads.
pub fn multiply(product: Product<Mat>, dst: &mut [f32]) {
    let Product {
        shape: (m, k, n),
        lhs,
        rhs,
        start,
        stride,
        threads,
    } = product;
    if m == 0 || n == 0 {
        return;
    }
    product.assert_fits(dst.len());
    assert!(
        k == 0 || (lhs.holds(m, k) && rhs.holds(k, n)),
        "product: an operand is too small"
    );
    if let Start::Row(row) = start {
        let fill = |rows: &mut [f32]| {
            rows.chunks_mut(stride)
                .for_each(|to| to[..n].copy_from_slice(row))
        };
        let used = &mut dst[..(m - 1) * stride + n];
        match threads {
            Threads::One => fill(used),
            Threads::All => used.par_chunks_mut(ROWS * stride).for_each(fill),
        }
    }
    let (left, right) = (lhs.data.f32(), rhs.data.f32());
    let accumulate = !matches!(start, Start::Zero);
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    // SAFETY: the asserts above show that every index (r, c) that gemm reads or writes lies inside its slice; `dst` is
    // borrowed mutably, so it overlaps neither operand; all strides are non-negative and fit in isize, as slices do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            left.as_ptr(),
            lhs.cs as isize,
            lhs.rs as isize,
            right.as_ptr(),
            rhs.cs as isize,
            rhs.rs as isize,
            if accumulate { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

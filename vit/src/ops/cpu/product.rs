//! The one matrix product that the fused ops use: a checked door to the `gemm` crate, and to our own kernels for bf16.
use gemm::Parallelism;

use rayon::prelude::*;

use super::super::profile::{region, timed};
use super::super::Precision;
use super::scratch::Buffer;
use super::{bf16, transpose};

/// A read-only matrix in memory: element (r, c) is `data[r * rs + c * cs]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    pub rs: usize,
    pub cs: usize,
    /// The same as a right operand, if there is one made before.
    pub prepared: Option<&'a Prepared>,
}

/// A right operand in the order that a product wants it.
pub enum Prepared {
    /// For bf16.
    Tiles(bf16::Packed),
    /// By rows, for f32.
    Rows(Buffer),
}

impl Prepared {
    /// Of the right operand (k x n); `None` if a product of m rows takes it as it is. Depends on sizes alone.
    pub fn new(
        mat: Mat,
        (m, k, n): (usize, usize, usize),
        precision: Precision,
        threads: Threads,
    ) -> Option<Self> {
        let parallel = threads == Threads::All;
        if precision.kernel().is_some() {
            let tiles = || bf16::Packed::columns(mat, k, n, parallel);
            return Some(Self::Tiles(timed("bf16 tiles", tiles)));
        }
        // What runs along k, gemm brings into its order slowly: 17 % of `x W^T` for ViT-B.
        (parallel && m >= ROWS && mat.rs == 1 && mat.cs > 1 && k > 1)
            .then(|| Self::Rows(transpose::transposed(mat.data, mat.cs, (n, k))))
    }
}

impl<'a> Mat<'a> {
    /// Row-major, `cols` wide.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self {
            data,
            rs: cols,
            cs: 1,
            prepared: None,
        }
    }

    /// The transpose: no data moves.
    pub fn t(self) -> Self {
        Self {
            rs: self.cs,
            cs: self.rs,
            prepared: None,
            ..self
        }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        last(rows, self.rs, cols, self.cs).is_some_and(|last| last < self.data.len())
    }
}

/// The largest index of a matrix with at least one row and column; `None` if it does not fit in usize.
pub fn last(rows: usize, rs: usize, cols: usize, cs: usize) -> Option<usize> {
    let row = (rows - 1).checked_mul(rs)?;
    row.checked_add((cols - 1).checked_mul(cs)?)
}

/// Who works on one product.
#[derive(Clone, Copy, PartialEq)]
pub enum Threads {
    /// The calling thread: for products inside a parallel loop.
    One,
    /// All threads of the rayon pool.
    All,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing: whatever the destination held is gone.
    Zero,
    /// What the destination holds.
    Sum,
    /// This row (n), in every row.
    Row(&'a [f32]),
}

/// Rows in one task; fixed, so that the bits do not depend on the number of threads. From so many on a weight's transpose pays.
pub const ROWS: usize = 128;

/// `dst (m x n, rows `dst_rs` apart) = start + lhs (m x k) . rhs (k x n)`.
///
/// The order of summation over k depends on the sizes alone, never on the number of threads.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    precision: Precision,
    (m, k, n): (usize, usize, usize),
    lhs: Mat,
    rhs: Mat,
    dst: &mut [f32],
    dst_rs: usize,
    start: Start,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    let made = match rhs.prepared {
        Some(_) => None,
        None => Prepared::new(rhs, (m, k, n), precision, threads),
    };
    let prepared = rhs.prepared.or(made.as_ref());
    if let (Some(kernel), Some(Prepared::Tiles(rhs))) = (precision.kernel(), prepared) {
        return bf16::matmul(kernel, (m, k, n), lhs, rhs, dst, dst_rs, start, threads);
    }
    assert!(
        last(m, dst_rs, n, 1).is_some_and(|last| last < dst.len()),
        "matmul: dst too small"
    );
    assert!(n <= dst_rs || m == 1, "matmul: rows of dst overlap");
    assert!(
        k == 0 || (lhs.holds(m, k) && rhs.holds(k, n)),
        "matmul: operand too small"
    );
    if let Start::Row(row) = start {
        let _region = region("bias rows");
        let fill = |rows: &mut [f32]| {
            rows.chunks_mut(dst_rs)
                .for_each(|to| to[..n].copy_from_slice(&row[..n]))
        };
        let used = &mut dst[..(m - 1) * dst_rs + n];
        match threads {
            Threads::One => fill(used),
            Threads::All => used.par_chunks_mut(ROWS * dst_rs).for_each(fill),
        }
    }
    let rhs = match prepared {
        Some(Prepared::Rows(data)) => {
            assert_eq!(data.len(), k * n, "matmul: prepared for another size");
            Mat::rows(data, n)
        }
        _ => rhs,
    };
    assert!(k == 0 || rhs.holds(k, n), "matmul: operand too small");
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
            dst_rs as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.cs as isize,
            lhs.rs as isize,
            rhs.data.as_ptr(),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every size from 1 up to odd ones, offsets that break alignment, transposed operands: equal to the naive product.
    #[test]
    fn equals_the_naive_product() {
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        for (m, k, n) in [
            (1, 1, 1),
            (1, 7, 5),
            (3, 2, 1),
            (5, 3, 7),
            (17, 16, 15),
            (31, 33, 64),
            (65, 129, 47),
        ] {
            for offset in [0, 1, 3] {
                let a: Vec<f32> = (0..m * k + offset).map(value).collect();
                let b: Vec<f32> = (0..k * n + offset).map(|i| value(i + 5)).collect();
                let (a, b) = (&a[offset..], &b[offset..]);
                for transposed in [false, true] {
                    let (lhs, rhs) = if transposed {
                        (Mat::rows(a, m).t(), Mat::rows(b, k).t())
                    } else {
                        (Mat::rows(a, k), Mat::rows(b, n))
                    };
                    let at = |x: Mat, r: usize, c: usize| x.data[r * x.rs + c * x.cs];
                    for threads in [Threads::One, Threads::All] {
                        let dst_rs = n + offset;
                        let bias: Vec<f32> = (0..n).map(|c| c as f32).collect();
                        let mut dst = vec![f32::NAN; m * dst_rs];
                        matmul(
                            Precision::F32,
                            (m, k, n),
                            lhs,
                            rhs,
                            &mut dst,
                            dst_rs,
                            Start::Row(&bias),
                            threads,
                        );
                        matmul(
                            Precision::F32,
                            (m, k, n),
                            lhs,
                            rhs,
                            &mut dst,
                            dst_rs,
                            Start::Sum,
                            threads,
                        );
                        for r in 0..m {
                            for c in 0..n {
                                let once: f32 = (0..k).map(|i| at(lhs, r, i) * at(rhs, i, c)).sum();
                                let want = bias[c] + 2.0 * once;
                                let got = dst[r * dst_rs + c];
                                assert!((got - want).abs() < 1e-4, "{m}x{k}x{n} at {r},{c}");
                            }
                            let gap = &dst[r * dst_rs + n..(r + 1) * dst_rs];
                            assert!(gap.iter().all(|x| x.is_nan()), "wrote beyond the row");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_to_sum_up_is_zero() {
        for threads in [Threads::One, Threads::All] {
            let mut dst = [f32::NAN; 6];
            let (none, shape) = (Mat::rows(&[], 3), (2, 0, 3));
            let zero = Start::Zero;
            matmul(
                Precision::F32,
                shape,
                none.t(),
                none,
                &mut dst,
                3,
                zero,
                threads,
            );
            assert_eq!(dst, [0.0; 6]);
        }
    }

    #[test]
    #[should_panic(expected = "dst too small")]
    fn refuses_a_short_destination() {
        let a = [1.0; 6];
        let mut dst = [0.0; 3];
        let lhs = Mat::rows(&a, 3);
        matmul(
            Precision::F32,
            (2, 3, 2),
            lhs,
            lhs.t(),
            &mut dst,
            2,
            Start::Zero,
            Threads::One,
        );
    }
}

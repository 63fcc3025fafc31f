//! Sums over the rows of a matrix, in an order that the sizes alone decide.
use rayon::prelude::*;

use super::activations::Factors;
use super::bf16::round;
use super::math::simd_fn;

/// Rows in one task; fixed, so that the bits do not depend on the number of threads.
const ROWS: usize = 128;

/// Sums over the rows of a matrix `cols` wide.
pub fn column_sums(data: &[f32], cols: usize) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = data
        .par_chunks(ROWS * cols)
        .map(|rows| {
            let mut sums = vec![0f32; cols];
            add_rows(rows, &mut sums);
            sums
        })
        .collect();
    sum_all(partial, cols)
}

/// Rounds `factor * x` to bf16, with a factor for each row; returns the sums over the rows, of what is not rounded.
pub fn round_and_sum(x: &[f32], cols: usize, factors: Factors, rounded: &mut [u16]) -> Vec<f32> {
    by_rows(x, cols, rounded, |first, x, rounded, sums| {
        let rows = x.chunks_exact(cols).zip(rounded.chunks_exact_mut(cols));
        for (row, (x, rounded)) in rows.enumerate() {
            round_row(x, factors.row(first + row), rounded, sums);
        }
    })
}

/// Rounds `a * b` to bf16; returns the sums over the rows, of what is not rounded.
pub fn round_product_and_sum(a: &[f32], b: &[f32], cols: usize, rounded: &mut [u16]) -> Vec<f32> {
    by_rows(a, cols, rounded, |first, a, rounded, sums| {
        let b = &b[first * cols..][..a.len()];
        round_products(a, b, rounded, sums);
    })
}

/// `f` of the first row's number, some rows, where they go, and their sums.
fn by_rows(
    x: &[f32],
    cols: usize,
    rounded: &mut [u16],
    f: impl Fn(usize, &[f32], &mut [u16], &mut [f32]) + Sync,
) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = x
        .par_chunks(ROWS * cols)
        .zip(rounded.par_chunks_mut(ROWS * cols))
        .enumerate()
        .map(|(chunk, (x, rounded))| {
            let mut sums = vec![0f32; cols];
            f(chunk * ROWS, x, rounded, &mut sums);
            sums
        })
        .collect();
    sum_all(partial, cols)
}

simd_fn! {
    fn round_row<'a>(x: &'a [f32], factor: f32, rounded: &'a mut [u16], sums: &'a mut [f32]) -> () {
        for ((&x, rounded), sum) in x.iter().zip(rounded).zip(sums) {
            let x = factor * x;
            *rounded = round(x);
            *sum += x;
        }
    }
}

simd_fn! {
    fn round_products<'a>(a: &'a [f32], b: &'a [f32], rounded: &'a mut [u16], sums: &'a mut [f32]) -> () {
        let cols = sums.len();
        let operands = a.chunks_exact(cols).zip(b.chunks_exact(cols));
        for ((a, b), rounded) in operands.zip(rounded.chunks_exact_mut(cols)) {
            for (((&a, &b), rounded), sum) in a.iter().zip(b).zip(rounded).zip(sums.iter_mut()) {
                let x = a * b;
                *rounded = round(x);
                *sum += x;
            }
        }
    }
}

/// Sums vectors in their order.
pub fn sum_all(partial: Vec<Vec<f32>>, cols: usize) -> Vec<f32> {
    let mut total = vec![0f32; cols];
    for sums in &partial {
        add_rows(sums, &mut total);
    }
    total
}

simd_fn! {
    /// Adds rows to `sums`, which is as wide as they are.
    pub fn add_rows<'a>(rows: &'a [f32], sums: &'a mut [f32]) -> () {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

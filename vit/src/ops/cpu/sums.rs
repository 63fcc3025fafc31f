//! Sums over the rows of a matrix, in an order that the sizes alone decide.
use rayon::prelude::*;

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

/// Sums vectors in their order.
pub fn sum_all(partial: Vec<Vec<f32>>, cols: usize) -> Vec<f32> {
    let mut total = vec![0f32; cols];
    for sums in &partial {
        add_rows(sums, &mut total);
    }
    total
}

simd_fn! {
    fn add_rows<'a>(rows: &'a [f32], sums: &'a mut [f32]) -> () {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

//! Sums over the rows of a matrix, in an order that the sizes alone decide.
use rayon::prelude::*;

use super::activations::Factors;
use super::math::{fetch, simd_fn};
use super::rounding::round;
use super::tiles::{halves_mut, Tile, Tiles, DEPTH, PANEL};

/// Rows in one task, a multiple of a panel of tiles; fixed, so that the bits do not depend on the number of threads.
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

/// Rounds rows into tiles.
pub fn round_into(x: &[f32], to: &mut Tiles) {
    round_and_sum(x, Factors::NONE, to);
}

/// Rounds `factor * x` into tiles, with a factor for each row; returns the sums over the rows, of what is not rounded.
pub fn round_and_sum(x: &[f32], factors: Factors, to: &mut Tiles) -> Vec<f32> {
    let cols = to.depth();
    by_rows(x, to, |first, x, tiles, sums| {
        let rows = x.chunks_exact(cols);
        let factors: Vec<f32> = (first..first + rows.len())
            .map(|row| factors.row(row))
            .collect();
        round_rows(x, &factors, tiles, sums);
    })
}

/// Rounds `a * b` into tiles, `a` in their order; returns the sums over the rows, of what is not rounded.
pub fn round_product_and_sum(a: &[f32], b: &[f32], to: &mut Tiles) -> Vec<f32> {
    let steps = to.steps();
    by_rows(b, to, |first, b, tiles, sums| {
        let a = &a[first * steps * DEPTH..];
        round_products(a, b, tiles, sums);
    })
}

/// `f` of the first row's number, some rows, their tiles and their sums.
fn by_rows(
    x: &[f32],
    to: &mut Tiles,
    f: impl Fn(usize, &[f32], &mut [Tile], &mut [f32]) + Sync,
) -> Vec<f32> {
    let cols = to.depth();
    let partial: Vec<Vec<f32>> = to
        .par_rows_mut(ROWS)
        .zip(x.par_chunks(ROWS * cols))
        .enumerate()
        .map(|(chunk, (tiles, x))| {
            let mut sums = vec![0f32; cols];
            f(chunk * ROWS, x, tiles, &mut sums);
            sums
        })
        .collect();
    sum_all(partial, cols)
}

simd_fn! {
    /// Rows of a multiple of panels, each times its factor; tiles are written in their order.
    fn round_rows<'a>(x: &'a [f32], factors: &'a [f32], tiles: &'a mut [Tile], sums: &'a mut [f32]) -> () {
        let cols = sums.len();
        let panels = x.chunks(PANEL * cols).zip(factors.chunks(PANEL));
        for ((x, factors), tiles) in panels.zip(tiles.chunks_exact_mut(cols.div_ceil(DEPTH))) {
            for (x, &factor) in x.chunks_exact(cols).zip(factors) {
                for (sum, &x) in sums.iter_mut().zip(x) {
                    *sum += factor * x;
                }
            }
            for (step, tile) in tiles[..cols / DEPTH].iter_mut().enumerate() {
                for ((x, &factor), line) in x.chunks_exact(cols).zip(factors).zip(tile) {
                    let (x, _) = x.as_chunks::<DEPTH>();
                    round_line(&x[step], factor, halves_mut(line));
                }
            }
            if let (Some(tile), false) = (tiles.last_mut(), cols.is_multiple_of(DEPTH)) {
                for ((x, &factor), line) in x.chunks_exact(cols).zip(factors).zip(tile) {
                    let (_, x) = x.as_chunks::<DEPTH>();
                    round_line(x, factor, halves_mut(line));
                }
            }
        }
    }
}

simd_fn! {
    /// The same of products; `a` is in the order of the tiles.
    fn round_products<'a>(a: &'a [f32], b: &'a [f32], tiles: &'a mut [Tile], sums: &'a mut [f32]) -> () {
        let cols = sums.len();
        let steps = cols.div_ceil(DEPTH);
        let (sums, sums_rest) = sums.as_chunks_mut::<DEPTH>();
        let panels = a.chunks(steps * PANEL * DEPTH).zip(b.chunks(PANEL * cols));
        for ((a, b), tiles) in panels.zip(tiles.chunks_exact_mut(steps)) {
            let (a, _) = a.as_chunks::<DEPTH>();
            for (step, (sums, tile)) in sums.iter_mut().zip(&mut *tiles).enumerate() {
                let a = &a[step * PANEL..];
                for ((a, b), line) in a.iter().zip(b.chunks_exact(cols)).zip(tile) {
                    fetch(b[step * DEPTH..].as_ptr().wrapping_add(AHEAD));
                    fetch(b[step * DEPTH..].as_ptr().wrapping_add(AHEAD + 16));
                    let (b, _) = b.as_chunks::<DEPTH>();
                    product_line(a, &b[step], halves_mut(line), sums);
                }
            }
            if let (Some(tile), false) = (tiles.last_mut(), sums_rest.is_empty()) {
                let a = &a[(steps - 1) * PANEL..];
                for ((a, b), line) in a.iter().zip(b.chunks_exact(cols)).zip(tile) {
                    let (_, b) = b.as_chunks::<DEPTH>();
                    product_line(a, b, halves_mut(line), sums_rest);
                }
            }
        }
    }
}

/// By how many numbers a row is fetched ahead.
const AHEAD: usize = 4 * DEPTH;

/// A line at a time, of a length that the compiler knows for all but the last.
#[inline(always)]
fn round_line(x: &[f32], factor: f32, y: &mut [u16]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = round(factor * x);
    }
}

/// As above.
#[inline(always)]
fn product_line(a: &[f32], b: &[f32], y: &mut [u16], sums: &mut [f32]) {
    for (((y, &a), &b), sum) in y.iter_mut().zip(a).zip(b).zip(sums) {
        let x = a * b;
        *y = round(x);
        *sum += x;
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

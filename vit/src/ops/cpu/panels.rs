//! Products in f32 on AVX-512 whose left operand lies by rows: those of linear layers, but for weights' gradients.
//!
//! The left operand is read where it lies, and each of its numbers is multiplied with 64 columns of the right one. Those are brought
//! into panels by the task that needs them, and stay in its core's second cache: the right operand is read once for each part of the
//! rows, whichever way it runs, and nothing of it is written to memory.
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::math::fetch;
use super::matrix::{Mat, Product, Start, Threads};
use super::registers::{mask, store_from, transpose};
use super::scratch::{Line, Lines};

/// Numbers in a register.
const LANES: usize = 16;
/// Rows computed at once, with four registers of columns: 24 sums for 10 loads.
const ROWS: usize = 6;
/// Columns of a panel.
const PANEL: usize = 4 * LANES;
/// Columns of a task at most, and how much of k is summed up at once: at most 512 KiB of the second cache.
const COLUMNS: usize = 2 * PANEL;
const DEPTH: usize = 1024;
/// Tasks for each thread, where there are rows and columns enough.
const TASKS: usize = 3;
/// Rows of a task at least: fewer are not worth the panels.
const LEAST: usize = 48;
/// Multiplications that are not worth waking other threads for.
const SMALL: usize = 48 * 48 * 256;

/// Whether [`multiply`] takes the product. gemm is faster where there is one row or column or k is short, and in the small products
/// inside a parallel loop.
pub fn takes(product: &Product<Mat>) -> bool {
    let (m, k, n) = product.shape;
    let right = product.rhs;
    product.threads == Threads::All
        && m > 1
        && n > 1
        && k >= LANES
        && product.lhs.cs == 1
        && (right.rs == 1 || right.cs == 1)
        && std::arch::is_x86_feature_detected!("avx512f")
}

/// The product, which [`takes`] has found fit, into `dst`. The order of summation over k depends on k alone.
pub fn multiply(product: Product<Mat>, dst: &mut [f32]) {
    let (m, k, n) = product.shape;
    product.assert_fits(dst.len());
    assert!(
        takes(&product) && product.lhs.holds(m, k) && product.rhs.holds(k, n),
        "product: an operand is too small"
    );
    let to = Destination::new(dst);
    let alone = m.saturating_mul(k).saturating_mul(n) < SMALL;
    let columns = n.div_ceil(COLUMNS);
    let rows = match alone {
        true => 1,
        false => row_parts(m, columns, rayon::current_num_threads()),
    };
    let (width, blocks) = (
        n.div_ceil(columns).next_multiple_of(LANES),
        m.div_ceil(ROWS),
    );
    let task = |i: usize| {
        // Whole blocks of rows, whole registers of columns.
        let row = |part: usize| (part * blocks / rows * ROWS).min(m);
        let column = |part: usize| (part * width).min(n);
        let (r, c) = (i / columns, i % columns);
        let part = (row(r)..row(r + 1), column(c)..column(c + 1));
        // SAFETY: the machine has AVX-512F, as `takes` says; the destination holds the product, as asserted, and this part of it
        // belongs to this task alone.
        unsafe { self::task(&product, part, &to) };
    };
    match alone {
        true => (0..columns).for_each(task),
        false => (0..rows * columns).into_par_iter().for_each(task),
    }
}

/// Into how many parts the rows are cut: so that there are tasks enough, and as many for each thread, unless they are many anyway.
fn row_parts(m: usize, columns: usize, threads: usize) -> usize {
    let wish = TASKS * threads;
    let mut parts = wish.div_ceil(columns);
    while !(parts * columns).is_multiple_of(threads) && parts * columns < 2 * wish {
        parts += 1;
    }
    parts.min((m / LEAST).max(1))
}

/// What a product is written to.
struct Destination<'a> {
    data: *mut f32,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it holds the only reference to its numbers, and each task writes a part of its own.
unsafe impl Sync for Destination<'_> {}

impl<'a> Destination<'a> {
    fn new(dst: &'a mut [f32]) -> Self {
        Self {
            data: dst.as_mut_ptr(),
            lifetime: PhantomData,
        }
    }
}

/// How much of k is summed up at once: equal parts, in whole squares.
fn part_of(k: usize) -> usize {
    k.div_ceil(k.div_ceil(DEPTH)).next_multiple_of(LANES)
}

/// These rows and columns of the product.
///
/// # Safety
/// The machine has AVX-512F; the destination has these rows, as far apart as the product says, with these columns, and nothing else
/// uses them.
#[target_feature(enable = "avx512f")]
unsafe fn task(
    product: &Product<Mat>,
    (rows, columns): (Range<usize>, Range<usize>),
    to: &Destination,
) {
    let (_, k, _) = product.shape;
    let (left, right) = (product.lhs.data.f32(), product.rhs);
    let depth = part_of(k);
    let mut panels = Lines::local(depth.min(k) * COLUMNS / LANES);
    for first in (0..k).step_by(depth) {
        let along = first..(first + depth).min(k);
        let size = along.len() * PANEL / LANES;
        for (panel, column) in panels.chunks_mut(size).zip(columns.clone().step_by(PANEL)) {
            let columns = column..(column + PANEL).min(columns.end);
            // SAFETY: the machine's features are this function's.
            unsafe { fill(right, along.clone(), columns, panel) };
        }
        for row in rows.clone().step_by(ROWS) {
            // Where rows end, the last one stands for those that are missing.
            let line = |r: usize| (row + r).min(rows.end - 1) * product.lhs.rs + first;
            let lines: [&[f32]; ROWS] =
                std::array::from_fn(|r| &left[line(r)..line(r) + along.len()]);
            for (panel, column) in panels.chunks(size).zip(columns.clone().step_by(PANEL)) {
                let width = (columns.end - column).min(PANEL);
                let block = Block {
                    start: match first {
                        0 => product.start,
                        _ => Start::Sum,
                    },
                    out: to.data.wrapping_add(row * product.stride + column),
                    stride: product.stride,
                    rows: (rows.end - row).min(ROWS),
                    columns: column..column + width,
                    next: ROWS.wrapping_mul(product.lhs.rs),
                };
                // SAFETY: the caller's; a panel has `width` columns in whole registers, for each of the lines' numbers.
                unsafe {
                    match width.div_ceil(LANES) {
                        1 => block.multiply::<1>(lines, panel),
                        2 => block.multiply::<2>(lines, panel),
                        3 => block.multiply::<3>(lines, panel),
                        _ => block.multiply::<4>(lines, panel),
                    }
                }
            }
        }
    }
}

/// The part of the right operand with these k and columns, one k behind the other, each of them whole registers; what sticks out is 0.
///
/// # Safety
/// The machine has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn fill(right: Mat, along: Range<usize>, columns: Range<usize>, panel: &mut [Line]) {
    let data = right.data.f32();
    let vectors = columns.len().div_ceil(LANES);
    if right.cs == 1 {
        for (k, lines) in along.zip(panel.chunks_exact_mut(vectors)) {
            let row = &data[k * right.rs + columns.start..][..columns.len()];
            for (line, part) in lines.iter_mut().zip(row.chunks(LANES)) {
                fetch(part.as_ptr().wrapping_add(AHEAD.wrapping_mul(right.rs)));
                // SAFETY: the mask leaves away what is beyond the part; a line is 64 bytes.
                unsafe {
                    let x = _mm512_maskz_loadu_ps(mask(part.len()), part.as_ptr());
                    _mm512_storeu_ps(line.0.as_mut_ptr().cast(), x);
                }
            }
        }
        return;
    }
    // Squares of 16 columns, each of which runs along k, are turned.
    for vector in 0..vectors {
        let first = columns.start + vector * LANES;
        let count = (columns.end - first).min(LANES);
        let squares = along.clone().step_by(LANES);
        for (k, lines) in squares.zip(panel.chunks_mut(vectors * LANES)) {
            let deep = (along.end - k).min(LANES);
            let mut square = [_mm512_setzero_si512(); LANES];
            for (c, line) in square.iter_mut().enumerate().take(count) {
                let column = &data[(first + c) * right.cs + k..][..deep];
                fetch(column.as_ptr().wrapping_add(AHEAD * LANES));
                // SAFETY: the mask leaves away what is beyond the column.
                *line = unsafe { _mm512_maskz_loadu_epi32(mask(deep), column.as_ptr().cast()) };
            }
            // SAFETY: the machine's features are this function's.
            let square = unsafe { transpose(square) };
            let lines = lines.iter_mut().skip(vector).step_by(vectors);
            for (line, x) in lines.zip(square).take(deep) {
                // SAFETY: a line is 64 bytes.
                unsafe { _mm512_storeu_si512(line.0.as_mut_ptr().cast(), x) };
            }
        }
    }
}

/// Rows of the right operand by which its lines are fetched, or squares along them.
const AHEAD: usize = 8;

/// A few rows of the result, of the columns of one panel.
struct Block<'a> {
    /// The first number.
    out: *mut f32,
    stride: usize,
    rows: usize,
    columns: Range<usize>,
    start: Start<'a>,
    /// How far behind the lines those of the next rows are, which are fetched meanwhile.
    next: usize,
}

impl Block<'_> {
    /// Adds up, over all of the lines' numbers, each times its part of the panel.
    ///
    /// # Safety
    /// The machine has AVX-512F; the block's numbers may be written, and nothing else uses them; it has at most `ROWS` rows and `V`
    /// registers of columns, and a row to start from has its columns.
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply<const V: usize>(&self, lines: [&[f32]; ROWS], panel: &[Line]) {
        let depth = lines[0].len();
        assert!(lines.iter().all(|line| line.len() == depth));
        let out = |r: usize, v: usize| self.out.wrapping_add(r * self.stride + v * LANES);
        for r in 0..self.rows {
            for v in 0..V {
                fetch(out(r, v));
            }
        }
        let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
        for (k, part) in (0..depth).zip(panel.chunks_exact(V)) {
            // SAFETY: a line is 64 bytes.
            let part: [__m512; V] =
                std::array::from_fn(|v| unsafe { _mm512_loadu_ps(part[v].0.as_ptr().cast()) });
            for (sums, line) in sums.iter_mut().zip(&lines) {
                fetch(line.as_ptr().wrapping_add(self.next).wrapping_add(k));
                let x = _mm512_set1_ps(line[k]);
                for (sum, &part) in sums.iter_mut().zip(&part) {
                    *sum = _mm512_fmadd_ps(x, part, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate().take(self.rows) {
            for (v, &sum) in sums.iter().enumerate() {
                let column = self.columns.start + v * LANES;
                let mask = mask(self.columns.end.saturating_sub(column));
                // SAFETY: the mask leaves away what is beyond the block's columns; the caller's for the rest.
                unsafe { store_from(out(r, v), mask, self.start, column, sum) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(i: usize) -> f32 {
        ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0
    }

    /// Sizes around those of registers, blocks, panels, tasks and parts of k; gaps between rows, starts that break alignment; the right
    /// operand and its transpose.
    #[test]
    fn equals_the_plain_product_bit_for_bit() {
        if !std::arch::is_x86_feature_detected!("avx512f") {
            return;
        }
        let sizes = [
            (2, 16, 2),
            (5, 17, 15),
            (6, 16, 16),
            (7, 31, 17),
            (12, 33, 63),
            (13, 64, 64),
            (50, 31, 65),
            (97, 48, 129),
            (130, 20, 257),
            (100, 256, 192),
            (3, DEPTH, 40),
            (3, DEPTH + 1, 70),
            (8, 2 * DEPTH + 17, 20),
        ];
        for ((m, k, n), (gap, offset)) in sizes
            .into_iter()
            .flat_map(|size| [(0, 0), (3, 1), (1, 5)].map(|gap| (size, gap)))
        {
            for turned in [false, true] {
                let left: Vec<f32> = (0..offset + m * (k + gap)).map(value).collect();
                let (outer, inner) = if turned { (n, k) } else { (k, n) };
                let right: Vec<f32> = (3..3 + offset + outer * (inner + gap)).map(value).collect();
                let lhs = Mat::rows(&left[offset..], k + gap);
                let rhs = Mat::rows(&right[offset..], inner + gap);
                let rhs = if turned { rhs.t() } else { rhs };
                let row: Vec<f32> = (0..n).map(|c| c as f32).collect();
                let at = |x: Mat, r: usize, c: usize| x.data.f32()[r * x.rs + c * x.cs];
                // Each part of k by fused multiplications from zero, then added to what there is.
                let depth = part_of(k);
                let plain = |start: f32, r, c| {
                    (0..k).step_by(depth).fold(start, |all, first| {
                        let part = first..(first + depth).min(k);
                        all + part.fold(0f32, |sum, i| at(lhs, r, i).mul_add(at(rhs, i, c), sum))
                    })
                };
                let product = Product {
                    stride: n + gap,
                    ..Product::new((m, k, n), lhs, rhs)
                };
                let mut dst = vec![f32::NAN; (m - 1) * (n + gap) + n];
                for start in [Start::Zero, Start::Sum, Start::Row(&row)] {
                    let before = dst.clone();
                    multiply(Product { start, ..product }, &mut dst);
                    for (i, &got) in dst.iter().enumerate() {
                        let (r, c) = (i / (n + gap), i % (n + gap));
                        if c >= n {
                            assert!(got.is_nan(), "wrote beyond the row");
                            continue;
                        }
                        let start = match start {
                            Start::Zero => 0.0,
                            Start::Sum => before[i],
                            Start::Row(row) => row[c],
                        };
                        let want = plain(start, r, c);
                        assert_eq!(got.to_bits(), want.to_bits(), "{m}x{k}x{n} at {r},{c}");
                    }
                }
            }
        }
    }

    /// In its row or its column, as often as it is multiplied, and nowhere else.
    #[test]
    fn what_is_no_number_stays_where_it_belongs() {
        if !std::arch::is_x86_feature_detected!("avx512f") {
            return;
        }
        let (m, k, n) = (8, 20, 70);
        for (row, column) in [(7, 69), (0, 0), (5, 64)] {
            let (mut left, mut right) = (vec![1.0; m * k], vec![1.0; k * n]);
            left[row * k + 19] = f32::NAN;
            right[3 * n + column] = f32::INFINITY;
            let mut dst = vec![0.0; m * n];
            let (lhs, rhs) = (Mat::rows(&left, k), Mat::rows(&right, n));
            multiply(Product::new((m, k, n), lhs, rhs), &mut dst);
            for (i, &x) in dst.iter().enumerate() {
                match (i / n == row, i % n == column) {
                    (true, _) => assert!(x.is_nan(), "{i}"),
                    (false, true) => assert_eq!(x, f32::INFINITY, "{i}"),
                    (false, false) => assert_eq!(x, k as f32, "{i}"),
                }
            }
        }
    }

    /// Each thread has as many tasks, or there are so many that one more does not count.
    #[test]
    fn rows_are_cut_for_the_threads() {
        for (m, columns, threads, parts) in [
            (800, 6, 2, 1),
            (800, 9, 2, 2),
            (800, 24, 2, 1),
            (3136, 2, 2, 3),
            (800, 6, 16, 8),
            (10, 2, 8, 1),
            (800, 7, 4, 4),
        ] {
            assert_eq!(
                row_parts(m, columns, threads),
                parts,
                "{m} {columns} {threads}"
            );
        }
    }

    /// Neither threads nor the other rows and columns change a number.
    #[test]
    fn the_order_of_summation_depends_on_k_alone() {
        if !std::arch::is_x86_feature_detected!("avx512f") {
            return;
        }
        let (m, k, n) = (130, DEPTH + 100, 300);
        let left: Vec<f32> = (0..m * k).map(value).collect();
        let right: Vec<f32> = (3..3 + k * n).map(value).collect();
        let product = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let mut dst = vec![0f32; m * n];
            let product = Product::new((m, k, n), Mat::rows(&left, k), Mat::rows(&right, n));
            pool.build()
                .unwrap()
                .install(|| multiply(product, &mut dst));
            dst
        };
        let one = product(1);
        for threads in [2, 3, 7] {
            assert_eq!(product(threads), one, "{threads} threads");
        }
        // Two neighbours of a row of which each has another place in its block and panel.
        for (r, c) in [(0, 0), (5, 298), (128, 17), (77, 128)] {
            let (lhs, rhs) = (Mat::rows(&left[r * k..], k), Mat::rows(&right[c..], n));
            let mut alone = [0f32; 4];
            multiply(Product::new((2, k, 2), lhs, rhs), &mut alone);
            let at = r * n + c;
            assert_eq!(alone, [one[at], one[at + 1], one[at + n], one[at + n + 1]]);
        }
    }
}

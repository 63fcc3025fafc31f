//! The transpose of a matrix in memory of its own.
use rayon::prelude::*;

use super::scratch::Buffer;

/// Side of the squares that are turned.
const SIDE: usize = 16;
/// Columns in one task: whole stretches of a row, so that each look-up of a page serves more than one line.
const COLUMNS: usize = 64;

/// Of `rows` x `columns` numbers, rows `stride` apart.
pub fn transposed(data: &[f32], stride: usize, (rows, columns): (usize, usize)) -> Buffer {
    let mut out = Buffer::new(rows * columns);
    let task = |(i, out): (usize, &mut [f32])| {
        for row in (0..rows).step_by(SIDE) {
            for (j, out) in out.chunks_mut(SIDE * rows).enumerate() {
                let column = i * COLUMNS + j * SIDE;
                let square = Square {
                    rows: (rows - row).min(SIDE),
                    columns: (columns - column).min(SIDE),
                    stride,
                    out_stride: rows,
                };
                square.turn(&data[row * stride + column..], &mut out[row..]);
            }
        }
    };
    if rows > 0 {
        out.par_chunks_mut(COLUMNS * rows)
            .enumerate()
            .for_each(task);
    }
    out
}

/// A square of at most 16 x 16 numbers and how far apart its rows are in both matrices.
struct Square {
    rows: usize,
    columns: usize,
    stride: usize,
    out_stride: usize,
}

impl Square {
    fn turn(&self, from: &[f32], to: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: just looked.
            return unsafe { self.turn_avx512(from, to) };
        }
        self.turn_plain(from, to);
    }

    fn turn_plain(&self, from: &[f32], to: &mut [f32]) {
        for r in 0..self.rows {
            let row = &from[r * self.stride..r * self.stride + self.columns];
            for (c, &x) in row.iter().enumerate() {
                to[c * self.out_stride + r] = x;
            }
        }
    }

    /// # Safety
    /// The machine has AVX-512F.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn turn_avx512(&self, from: &[f32], to: &mut [f32]) {
        use super::bf16::avx512::{mask, store_lanes, transpose};
        use super::math::fetch;
        use std::arch::x86_64::*;
        let mut lines = [_mm512_setzero_si512(); SIDE];
        for (r, line) in lines.iter_mut().enumerate().take(self.rows) {
            let row = &from[r * self.stride..r * self.stride + self.columns];
            // What is turned after this stretch of columns: eight squares later.
            fetch(row.as_ptr().wrapping_add(2 * SIDE * self.stride));
            // SAFETY: the mask leaves away what is beyond the row.
            *line = unsafe { _mm512_maskz_loadu_epi32(mask(row.len()), row.as_ptr().cast()) };
        }
        // SAFETY: the machine's features are this function's.
        let lines = unsafe { transpose(lines) };
        for (c, line) in lines.into_iter().enumerate().take(self.columns) {
            let row = &mut to[c * self.out_stride..c * self.out_stride + self.rows];
            // SAFETY: as above.
            unsafe { store_lanes(row.as_mut_ptr(), mask(row.len()), _mm512_castsi512_ps(line)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Odd sizes, gaps between rows, starts that break alignment; the plain form too.
    #[test]
    fn equals_the_definition() {
        for (rows, columns) in [
            (1, 1),
            (3, 50),
            (16, 16),
            (17, 33),
            (50, 64),
            (130, 200),
            (0, 5),
            (5, 0),
        ] {
            for (gap, offset) in [(0, 0), (3, 1), (0, 5)] {
                let stride = columns + gap;
                let data: Vec<f32> = (0..offset + rows * stride).map(|i| i as f32).collect();
                let data = &data[offset..];
                let want: Vec<f32> = (0..columns)
                    .flat_map(|c| (0..rows).map(move |r| (r, c)))
                    .map(|(r, c)| data[r * stride + c])
                    .collect();
                let got = transposed(data, stride, (rows, columns));
                assert_eq!(&got[..], &want[..], "{rows}x{columns}");
                if rows.max(columns) <= SIDE {
                    let square = Square {
                        rows,
                        columns,
                        stride,
                        out_stride: rows,
                    };
                    let mut got = vec![f32::NAN; rows * columns];
                    square.turn_plain(data, &mut got);
                    assert_eq!(got, want);
                }
            }
        }
    }
}

//! Operands as tiles of bf16.
//!
//! A product sums over k, and the units multiply pairs of neighbours in k, so a pair is one 32-bit word: the even k in its low
//! half. A tile holds 16 rows of the left operand (or 16 columns of the right one) by 32 k in 16 lines of 64 bytes:
//!
//! ```text
//! left:   line r, word p = lhs[r][2p], lhs[r][2p + 1]       right:  line p, word c = rhs[2p][c], rhs[2p + 1][c]
//! ```
//!
//! Tiles of one panel (16 rows or columns) follow one another along k. What sticks out of the matrix is 0.
use rayon::prelude::*;

use super::super::math::simd_fn;
use super::super::matrix::{last, Data, Mat};
use super::super::scratch::{Line, Lines};
#[cfg(target_arch = "x86_64")]
use super::avx512::Load;

/// 16 x 32 numbers.
pub(super) type Tile = [Line; 16];

/// Numbers along k in a tile.
pub(super) const DEPTH: usize = 32;
/// Rows or columns in a panel.
pub(super) const PANEL: usize = 16;
/// Panels in a group.
const GROUP: usize = 4;

/// An operand, rounded and cut into tiles.
pub struct Packed {
    lines: Lines,
    outer: usize,
    depth: usize,
}

impl Packed {
    /// The left operand (m x k).
    pub fn rows(mat: Mat, m: usize, k: usize, parallel: bool) -> Self {
        Self::new(mat.data, (m, mat.rs), (k, mat.cs), false, parallel)
    }

    /// The right operand (k x n).
    pub fn columns(mat: Mat, k: usize, n: usize, parallel: bool) -> Self {
        Self::new(mat.data, (n, mat.cs), (k, mat.rs), true, parallel)
    }

    fn new(
        data: Data,
        outer: (usize, usize),
        inner: (usize, usize),
        right: bool,
        parallel: bool,
    ) -> Self {
        match data {
            Data::F32(data) => Self::of(data, outer, inner, right, parallel),
            Data::Bf16(data) => Self::of(data, outer, inner, right, parallel),
        }
    }

    /// Of element (o, i) at `data[o * outer_stride + i * inner_stride]`, i along k.
    fn of<T: Rounded>(
        data: &[T],
        (outer, outer_stride): (usize, usize),
        (depth, inner_stride): (usize, usize),
        right: bool,
        parallel: bool,
    ) -> Self {
        let (panels, steps) = (outer.div_ceil(PANEL), depth.div_ceil(DEPTH));
        let fits =
            || last(outer, outer_stride, depth, inner_stride).is_some_and(|i| i < data.len());
        assert!(
            outer == 0 || depth == 0 || fits(),
            "bf16: operand too small"
        );
        let rows_run = inner_stride == 1 || depth <= 1;
        assert!(
            rows_run || outer_stride == 1 || outer <= 1,
            "bf16: no stride is 1"
        );
        // An even number of panels, since AMX works on pairs. A last one beyond the matrix is left as it is: nobody keeps
        // its products.
        let length = panels.next_multiple_of(2) * steps * 16;
        let mut lines = match parallel {
            true => Lines::new(length),
            false => Lines::local(length),
        };
        // Of rows across k some panels are cut together: 16 numbers of each row at a time would be a look-up of a page for 64
        // bytes.
        let together = if rows_run { 1 } else { GROUP };
        let group = |(group, lines): (usize, &mut [Line])| {
            let (tiles, _) = lines.as_chunks_mut::<16>();
            for step in 0..steps {
                let k = step * DEPTH;
                for (panel, tiles) in tiles.chunks_exact_mut(steps).enumerate() {
                    let first = (group * together + panel) * PANEL;
                    if first >= outer {
                        break;
                    }
                    let part = Part {
                        data: &data[first * outer_stride + k * inner_stride..],
                        many: (outer - first).min(PANEL),
                        deep: (depth - k).min(DEPTH),
                    };
                    match rows_run {
                        true => part.along_k(outer_stride, right, &mut tiles[step]),
                        false => part.across_k(inner_stride, !right, &mut tiles[step]),
                    }
                }
            }
        };
        if steps > 0 {
            let size = together * steps * 16;
            match parallel {
                true => lines.par_chunks_mut(size).enumerate().for_each(group),
                false => lines.chunks_mut(size).enumerate().for_each(group),
            }
        }
        Self {
            lines,
            outer,
            depth,
        }
    }

    /// Rows of a left operand, columns of a right one.
    pub fn outer(&self) -> usize {
        self.outer
    }

    /// Numbers along k.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Panels that hold any of them.
    pub fn panels(&self) -> usize {
        self.outer.div_ceil(PANEL)
    }

    /// Tiles of a panel.
    pub fn steps(&self) -> usize {
        self.depth.div_ceil(DEPTH)
    }

    /// The tiles of a panel; there is one more panel than [`Packed::panels`] says where that is odd.
    pub fn panel(&self, panel: usize) -> &[Tile] {
        let size = self.steps() * 16;
        self.lines[panel * size..(panel + 1) * size].as_chunks().0
    }
}

/// A number as bf16, to the nearest, ties to even; a NaN stays one.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// Back to f32, exactly.
#[inline(always)]
pub fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

simd_fn! {
    fn round_chunk<'a>(x: &'a [f32], y: &'a mut [u16]) -> () {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = round(x);
        }
    }
}

/// Rounds numbers, on all threads.
pub fn round_all(x: &[f32], y: &mut [u16]) {
    const CHUNK: usize = 32 * 1024;
    let pairs = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    pairs.for_each(|(y, x)| round_chunk(x, y));
}

/// What tiles are cut from.
#[cfg(target_arch = "x86_64")]
pub(super) trait Rounded: Copy + Sync + Load {
    fn bits(self) -> u16;
}

/// What tiles are cut from.
#[cfg(not(target_arch = "x86_64"))]
pub(super) trait Rounded: Copy + Sync {
    fn bits(self) -> u16;
}

impl Rounded for f32 {
    fn bits(self) -> u16 {
        round(self)
    }
}

impl Rounded for u16 {
    fn bits(self) -> u16 {
        self
    }
}

/// What becomes one tile: `many` rows or columns by `deep` numbers along k, the first of which is `data[0]`.
pub(super) struct Part<'a, T> {
    pub data: &'a [T],
    pub many: usize,
    pub deep: usize,
}

impl<T: Rounded> Part<'_, T> {
    /// From rows along k, `stride` apart; lines are rows, or pairs if `transposed`.
    pub fn along_k(&self, stride: usize, transposed: bool, tile: &mut Tile) {
        #[cfg(target_arch = "x86_64")]
        if super::avx512_is_there() {
            // SAFETY: just looked.
            return unsafe { super::avx512::along_k(self, stride, transposed, tile) };
        }
        self.along_k_plain(stride, transposed, tile);
    }

    /// From rows across k, `stride` apart; lines are pairs, or rows if `transposed`.
    pub fn across_k(&self, stride: usize, transposed: bool, tile: &mut Tile) {
        #[cfg(target_arch = "x86_64")]
        if super::avx512_is_there() {
            // SAFETY: just looked.
            return unsafe { super::avx512::across_k(self, stride, transposed, tile) };
        }
        self.across_k_plain(stride, transposed, tile);
    }

    /// Row `r` of at most so many numbers, `None` beyond the last one.
    pub fn row(&self, r: usize, rows: usize, length: usize, stride: usize) -> Option<&[T]> {
        (r < rows).then(|| &self.data[r * stride..r * stride + length])
    }

    pub fn along_k_plain(&self, stride: usize, transposed: bool, tile: &mut Tile) {
        for (r, line) in tile.iter_mut().enumerate() {
            let row = self.row(r, self.many, self.deep, stride).unwrap_or(&[]);
            line.0 = std::array::from_fn(|p| pair(row.get(2 * p), row.get(2 * p + 1)));
        }
        if transposed {
            transpose(tile);
        }
    }

    pub fn across_k_plain(&self, stride: usize, transposed: bool, tile: &mut Tile) {
        for (p, line) in tile.iter_mut().enumerate() {
            let row = |k| self.row(k, self.deep, self.many, stride).unwrap_or(&[]);
            let (even, odd) = (row(2 * p), row(2 * p + 1));
            line.0 = std::array::from_fn(|i| pair(even.get(i), odd.get(i)));
        }
        if transposed {
            transpose(tile);
        }
    }
}

/// Neighbours in k as a word; what is missing is 0.
#[inline(always)]
fn pair<T: Rounded>(even: Option<&T>, odd: Option<&T>) -> u32 {
    let half = |x: Option<&T>| x.map_or(0, |x| u32::from(x.bits()));
    half(even) | half(odd) << 16
}

/// Words of lines become lines of words.
pub(super) fn transpose(tile: &mut Tile) {
    let from = *tile;
    for (c, line) in tile.iter_mut().enumerate() {
        line.0 = from.map(|line| line.0[c]);
    }
}

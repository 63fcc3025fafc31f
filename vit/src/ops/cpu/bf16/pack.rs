//! Operands cut into tiles.
use std::ops::Deref;

use rayon::prelude::*;

use super::super::matrix::{last, Data, Mat};
use super::super::rounding::round;
use super::super::scratch::{Line, Lines};
use super::super::tiles::{halves, Tile, Tiles, DEPTH, PANEL};
#[cfg(target_arch = "x86_64")]
use super::avx512::Load;

/// Panels in a group.
const GROUP: usize = 4;

/// An operand in tiles: somebody's, or cut for this product.
pub enum Cut<'a> {
    Borrowed(&'a Tiles),
    Own(Tiles),
}

impl Deref for Cut<'_> {
    type Target = Tiles;

    fn deref(&self) -> &Tiles {
        match self {
            Self::Borrowed(tiles) => tiles,
            Self::Own(tiles) => tiles,
        }
    }
}

/// The left operand (m x k).
pub fn rows(mat: Mat<'_>, m: usize, k: usize, parallel: bool) -> Cut<'_> {
    let (outer, inner) = ((m, mat.rs), (k, mat.cs));
    let tiles = match mat.data {
        Data::F32(data) => return Cut::Own(cut(data, outer, inner, false, parallel)),
        Data::Bf16(data) => return Cut::Own(cut(data, outer, inner, false, parallel)),
        Data::Tiles(tiles) => tiles,
    };
    if mat.cs == 1 && mat.rs == k && (tiles.outer(), tiles.depth()) == (m, k) {
        return Cut::Borrowed(tiles);
    }
    let turned = mat.rs == 1 && (tiles.depth(), tiles.outer()) == (m, k);
    assert!(turned, "bf16: tiles of another size");
    Cut::Own(across(tiles, false, parallel))
}

/// The right operand (k x n).
pub fn columns(mat: Mat, k: usize, n: usize, parallel: bool) -> Tiles {
    let (outer, inner) = ((n, mat.cs), (k, mat.rs));
    match mat.data {
        Data::F32(data) => cut(data, outer, inner, true, parallel),
        Data::Bf16(data) => cut(data, outer, inner, true, parallel),
        Data::Tiles(tiles) => {
            let as_it_is = mat.cs == 1 && (tiles.outer(), tiles.depth()) == (k, n);
            assert!(as_it_is, "bf16: tiles of another size");
            across(tiles, true, parallel)
        }
    }
}

/// Rows in tiles as an operand whose k runs across them: the right one, or the transpose on the left.
fn across(from: &Tiles, right: bool, parallel: bool) -> Tiles {
    let mut to = Tiles::new(from.depth(), from.outer(), lines(parallel));
    let steps = to.steps();
    // Two panels have their numbers from the same tiles.
    let pair = |(column, panels): (usize, &mut [Tile])| {
        let (low, high) = panels.split_at_mut(steps);
        for (step, to) in low.iter_mut().zip(high).enumerate() {
            let tiles = [2 * step, 2 * step + 1].map(|panel| &from.panel(panel)[column]);
            turn(tiles, right, [to.0, to.1]);
        }
    };
    let (tiles, size) = (to.tiles_mut(), (2 * steps).max(1));
    match parallel {
        true => tiles.par_chunks_mut(size).enumerate().for_each(pair),
        false => tiles.chunks_mut(size).enumerate().for_each(pair),
    }
    to
}

/// The pool's, or inside a parallel loop this thread's own.
fn lines(parallel: bool) -> fn(usize) -> Lines {
    match parallel {
        true => Lines::new,
        false => Lines::local,
    }
}

/// Two tiles of 16 rows each become two tiles of 16 columns each; lines are pairs of rows, or columns if not `right`.
pub(super) fn turn(from: [&Tile; 2], right: bool, to: [&mut Tile; 2]) {
    #[cfg(target_arch = "x86_64")]
    if super::avx512_is_there() {
        // SAFETY: just looked.
        return unsafe { super::avx512::turn(from, right, to) };
    }
    turn_plain(from, right, to);
}

pub(super) fn turn_plain(from: [&Tile; 2], right: bool, to: [&mut Tile; 2]) {
    let rows = from.map(|tile| tile.each_ref().map(halves));
    let rows = rows.as_flattened();
    for (i, tile) in to.into_iter().enumerate() {
        for (p, line) in tile.iter_mut().enumerate() {
            let word = |c: usize| {
                let half = |row: &[u16; DEPTH]| u32::from(row[16 * i + c]);
                half(rows[2 * p]) | half(rows[2 * p + 1]) << 16
            };
            line.0 = std::array::from_fn(word);
        }
        if !right {
            transpose(tile);
        }
    }
}

/// Of element (o, i) at `data[o * outer_stride + i * inner_stride]`, i along k.
fn cut<T: Rounded>(
    data: &[T],
    (outer, outer_stride): (usize, usize),
    (depth, inner_stride): (usize, usize),
    right: bool,
    parallel: bool,
) -> Tiles {
    let steps = depth.div_ceil(DEPTH);
    let fits = || last(outer, outer_stride, depth, inner_stride).is_some_and(|i| i < data.len());
    assert!(
        outer == 0 || depth == 0 || fits(),
        "bf16: operand too small"
    );
    let rows_run = inner_stride == 1 || depth <= 1;
    assert!(
        rows_run || outer_stride == 1 || outer <= 1,
        "bf16: no stride is 1"
    );
    let mut to = Tiles::new(outer, depth, lines(parallel));
    // A last panel beyond the matrix.
    let panels = to.panels();
    to.tiles_mut()[panels * steps..].fill([Line([0; 16]); 16]);
    // Of rows across k some panels are cut together: 16 numbers of each row at a time would be a look-up of a page for 64
    // bytes.
    let together = if rows_run { 1 } else { GROUP };
    let group = |(group, tiles): (usize, &mut [Tile])| {
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
        let (tiles, size) = (to.tiles_mut(), together * steps);
        match parallel {
            true => tiles.par_chunks_mut(size).enumerate().for_each(group),
            false => tiles.chunks_mut(size).enumerate().for_each(group),
        }
    }
    to
}

/// What tiles are cut from.
pub(super) trait Rounded: Copy + Sync + Load {
    fn bits(self) -> u16;
}

/// What registers load; elsewhere there is nothing to it.
#[cfg(not(target_arch = "x86_64"))]
pub(super) trait Load {}
#[cfg(not(target_arch = "x86_64"))]
impl<T> Load for T {}

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

//! Matrices of bf16 in tiles, the order in which products read them.
//!
//! A product sums over k, and the units multiply pairs of neighbours in k, so a pair is one 32-bit word: the even k in its low
//! half. A tile holds 16 rows of the left operand (or 16 columns of the right one) by 32 k in 16 lines of 64 bytes:
//!
//! ```text
//! left:   line r, word p = lhs[r][2p], lhs[r][2p + 1]       right:  line p, word c = rhs[2p][c], rhs[2p + 1][c]
//! ```
//!
//! Tiles of one panel (16 rows or columns) follow one another along k. What sticks out of the matrix is 0.
//!
//! A line of the left operand is thus 32 neighbours of one row: what is computed row by row, or number by number, can be written
//! as such tiles at once, and the next product takes them as they are.
use rayon::prelude::*;

use super::scratch::{Line, Lines};

/// 16 x 32 numbers.
pub type Tile = [Line; 16];

/// Numbers along k in a tile.
pub const DEPTH: usize = 32;
/// Rows or columns in a panel.
pub const PANEL: usize = 16;

/// A matrix, rounded and cut into tiles.
pub struct Tiles {
    lines: Lines,
    outer: usize,
    depth: usize,
}

impl Tiles {
    /// Of a matrix of so many rows (columns of a right operand) and numbers along k, which are to be written.
    ///
    /// Their number of panels is even, since AMX works on pairs.
    pub fn new(outer: usize, depth: usize, lines: impl FnOnce(usize) -> Lines) -> Self {
        let (panels, steps) = (outer.div_ceil(PANEL), depth.div_ceil(DEPTH));
        Self {
            lines: lines(panels.next_multiple_of(2) * steps * 16),
            outer,
            depth,
        }
    }

    /// A left operand whose rows are to be written; what sticks out is 0 already.
    ///
    /// # Safety
    /// Each number is written before it is read.
    pub unsafe fn rows(rows: usize, width: usize, pooled: bool) -> Self {
        let mut tiles = Self::new(rows, width, |length| match pooled {
            true => Lines::new(length),
            // SAFETY: the caller's, and right below for what sticks out.
            false => unsafe { Lines::own(length) },
        });
        let steps = tiles.steps();
        let whole = rows / (2 * PANEL) * 2 * steps;
        let all = tiles.tiles_mut();
        all[whole..].fill([Line([0; 16]); 16]);
        if !width.is_multiple_of(DEPTH) {
            let last = all[..whole].iter_mut().skip(steps - 1).step_by(steps);
            last.for_each(|tile| *tile = [Line([0; 16]); 16]);
        }
        tiles
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

    /// The tiles of a panel; there is one more panel than [`Tiles::panels`] says where that is odd.
    pub fn panel(&self, panel: usize) -> &[Tile] {
        let steps = self.steps();
        &self.tiles()[panel * steps..(panel + 1) * steps]
    }

    /// All of them, panel by panel.
    pub fn tiles(&self) -> &[Tile] {
        self.lines.as_chunks().0
    }

    /// All of them, panel by panel.
    pub fn tiles_mut(&mut self) -> &mut [Tile] {
        self.lines.as_chunks_mut().0
    }

    /// The tiles of so many rows in one task, a multiple of a panel's.
    pub fn par_rows_mut(
        &mut self,
        rows: usize,
    ) -> impl IndexedParallelIterator<Item = &mut [Tile]> + '_ {
        let (steps, panels) = (self.steps(), self.panels());
        self.tiles_mut()[..panels * steps].par_chunks_mut(rows / PANEL * steps)
    }
}

/// Where a left operand's number stands among all those of its tiles; `steps`: tiles of a panel.
#[inline(always)]
pub fn place(row: usize, column: usize, steps: usize) -> usize {
    let line = (row / PANEL * steps + column / DEPTH) * PANEL + row % PANEL;
    line * DEPTH + column % DEPTH
}

/// The numbers of a line.
#[inline(always)]
pub fn halves(line: &Line) -> &[u16; DEPTH] {
    bytemuck::cast_ref(&line.0)
}

/// The numbers of a line.
#[inline(always)]
pub fn halves_mut(line: &mut Line) -> &mut [u16; DEPTH] {
    bytemuck::cast_mut(&mut line.0)
}

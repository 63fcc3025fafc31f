//! Which token is where: windows, shifts and merging as tables of rows.
use candle_core::Result;

use super::config::Size;
use crate::ops::{Rows, Windows};

/// The windows of a block on a grid of tokens.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// From the grid, row by row, to windows.
    pub rows: Rows,
    pub windows: Windows,
}

impl Layout {
    /// Windows of this size on a grid that is first rolled up and left by `shift`, then padded with zeros at the bottom and the
    /// right until windows divide it, as timm does. Padding takes part in attention, as there.
    pub fn new(grid: Size, window: Size, shift: Size) -> Result<Self> {
        let padded = (
            grid.0.next_multiple_of(window.0),
            grid.1.next_multiple_of(window.1),
        );
        let places = window.0 * window.1;
        let (mut from, mut region) = (Vec::new(), Vec::new());
        for top in (0..padded.0).step_by(window.0) {
            for left in (0..padded.1).step_by(window.1) {
                for place in 0..places {
                    let (y, x) = (top + place / window.1, left + place % window.1);
                    from.push(match y < grid.0 && x < grid.1 {
                        true => {
                            let (y, x) = ((y + shift.0) % grid.0, (x + shift.1) % grid.1);
                            (y * grid.1 + x) as u32
                        }
                        false => Rows::NONE,
                    });
                    let of = |at, length, window, shift| region_of(at, length, window, shift);
                    region.push(
                        3 * of(y, padded.0, window.0, shift.0) + of(x, padded.1, window.1, shift.1),
                    );
                }
            }
        }
        let count = from.len() / places;
        let place = (0..from.len()).map(|i| (i % places) as u16).collect();
        Ok(Self {
            windows: Windows::new(places, &vec![places; count], place, region)?,
            rows: Rows::new(grid.0 * grid.1, from)?,
        })
    }
}

/// Of a side that was rolled: what was apart before must not meet in a window.
pub(super) fn region_of(at: usize, length: usize, window: usize, shift: usize) -> u8 {
    match shift {
        0 => 0,
        _ => u8::from(at + window >= length) + u8::from(at + shift >= length),
    }
}

/// For each cell of 2 x 2 tokens its four, columns first as timm has them, one behind the other; zeros beyond an odd side.
pub(crate) fn merging((rows, columns): Size) -> Result<Rows> {
    let mut from = Vec::new();
    for y in (0..rows).step_by(2) {
        for x in (0..columns).step_by(2) {
            for (down, right) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                let (y, x) = (y + down, x + right);
                from.push(match y < rows && x < columns {
                    true => (y * columns + x) as u32,
                    false => Rows::NONE,
                });
            }
        }
    }
    Rows::new(rows * columns, from)
}

/// (T * T): for each pair of places in a window of this size the row of the bias table that stands for their offset,
/// `(y - y' + h - 1) (2 w - 1) + x - x' + w - 1`.
pub(crate) fn offsets((height, width): Size) -> Vec<u32> {
    let places = height * width;
    let of = |a: usize, b: usize| {
        let (down, right) = (a / width + height - 1, a % width + width - 1);
        ((down - b / width) * (2 * width - 1) + right - b % width) as u32
    };
    (0..places * places)
        .map(|pair| of(pair / places, pair % places))
        .collect()
}

/// Rows of the bias table of a window of this size.
pub(crate) fn table_rows((height, width): Size) -> usize {
    (2 * height - 1) * (2 * width - 1)
}

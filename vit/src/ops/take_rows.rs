//! Rows of a sequence in another order: windows out of a grid and back, neighbours side by side, visible tokens alone.
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::storage::slice;
use super::cpu::unwritten::unwritten;
use super::profile::Profile;
use super::{Compute, Form};

/// Which row of a sequence comes where. No row comes twice, so that the gradient is the same by the inverse.
#[derive(Debug, Clone)]
pub struct Rows {
    /// By place: the row that is there, or [`Rows::NONE`].
    from: Arc<Vec<u32>>,
    /// By row: the place where it is, or [`Rows::NONE`].
    to: Arc<Vec<u32>>,
}

impl Rows {
    /// In this place are zeros.
    pub const NONE: u32 = u32::MAX;

    /// Of `rows` rows, those that `from` names by place.
    ///
    /// # Errors
    /// A row beyond `rows`, one that comes twice.
    pub fn new(rows: usize, from: Vec<u32>) -> Result<Self> {
        let mut to = vec![Self::NONE; rows];
        for (place, &row) in from.iter().enumerate() {
            if row == Self::NONE {
                continue;
            }
            match to.get_mut(row as usize) {
                Some(to) if *to == Self::NONE => *to = place as u32,
                Some(_) => candle_core::bail!("take_rows: row {row} comes twice"),
                None => candle_core::bail!("take_rows: row {row} of {rows}"),
            }
        }
        Ok(Self {
            from: Arc::new(from),
            to: Arc::new(to),
        })
    }

    /// Every row back where it came from; zeros where none was taken.
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self {
            from: Arc::clone(&self.to),
            to: Arc::clone(&self.from),
        }
    }

    /// Number of places.
    pub fn places(&self) -> usize {
        self.from.len()
    }

    /// Number of rows to take from.
    pub fn rows(&self) -> usize {
        self.to.len()
    }
}

/// `(B, N, D) -> (B, M, D)`: in place `m` of each image its row `rows[m]`, or zeros.
///
/// # Errors
/// Another number of rows than `rows` is for.
pub fn take_rows(x: &Tensor, rows: &Rows, compute: &Compute) -> Result<Tensor> {
    check(x, rows)?;
    if compute.form(x) != Form::Cpu {
        return plain(x, rows);
    }
    let op = TakeRows {
        rows: rows.clone(),
        compute: compute.clone(),
    };
    x.contiguous()?.apply_op1(op)
}

fn check(x: &Tensor, rows: &Rows) -> Result<()> {
    let (_, count, _) = x.dims3()?;
    if count != rows.rows() {
        candle_core::bail!("take_rows: {count} rows, expected {}", rows.rows());
    }
    Ok(())
}

/// See [`take_rows`](super::take_rows).
///
/// # Errors
/// As there.
pub fn plain(x: &Tensor, rows: &Rows) -> Result<Tensor> {
    check(x, rows)?;
    let (batch, count, width) = x.dims3()?;
    // One row of zeros behind all others.
    let zeros = Tensor::zeros((batch, 1, width), x.dtype(), x.device())?;
    let x = Tensor::cat(&[x, &zeros], 1)?;
    let row = |&row: &u32| row.min(count as u32);
    let from: Vec<u32> = rows.from.iter().map(row).collect();
    x.index_select(&Tensor::from_vec(from, rows.places(), x.device())?, 1)
}

/// Rows per task.
const ROWS: usize = 64;

struct TakeRows {
    rows: Rows,
    compute: Compute,
}

fn forward(x: &[f32], y: &mut [f32], rows: &Rows, width: usize, profile: &Profile) {
    let _region = profile.region("take_rows");
    let (places, count) = (rows.places(), rows.rows());
    y.par_chunks_mut(ROWS * width)
        .enumerate()
        .for_each(|(task, y)| {
            for (i, y) in y.chunks_exact_mut(width).enumerate() {
                let at = task * ROWS + i;
                match rows.from[at % places] {
                    Rows::NONE => y.fill(0.0),
                    row => {
                        let start = (at / places * count + row as usize) * width;
                        y.copy_from_slice(&x[start..start + width]);
                    }
                }
            }
        });
}

impl CustomOp1 for TakeRows {
    fn name(&self) -> &'static str {
        "take_rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, _, width) = layout.shape().dims3()?;
        let shape = Shape::from((batch, self.rows.places(), width));
        // SAFETY: the loop writes all rows.
        let mut y = unsafe { unwritten(shape.elem_count()) };
        if !y.is_empty() {
            let x = slice(x, layout)?;
            forward(x, &mut y, &self.rows, width, &self.compute.profile);
        }
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        take_rows(grad, &self.rows.inverse(), &self.compute).map(Some)
    }
}

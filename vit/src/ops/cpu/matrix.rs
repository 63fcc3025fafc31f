//! Matrices in memory, and what a product of two is made of.

use super::tiles::Tiles;

/// Numbers in memory: f32, or rounded to bf16, or that in tiles of rows (of a whole matrix).
#[derive(Clone, Copy)]
pub enum Data<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
    Tiles(&'a Tiles),
}

/// Where numbers are written.
pub enum DataMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
    Tiles(&'a mut Tiles),
}

impl<'a> Data<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
            Self::Tiles(tiles) => tiles.outer() * tiles.depth(),
        }
    }

    /// Those from `first` on, which tiles do not have.
    pub fn from(self, first: usize) -> Self {
        match self {
            Self::F32(data) => Self::F32(&data[first..]),
            Self::Bf16(data) => Self::Bf16(&data[first..]),
            Self::Tiles(_) => panic!("product: a part of a matrix in tiles"),
        }
    }

    /// As f32. Panics if they are bf16: only products of bf16 take those.
    pub fn f32(self) -> &'a [f32] {
        match self {
            Self::F32(data) => data,
            _ => panic!("product: f32 of numbers that are bf16"),
        }
    }
}

impl DataMut<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
            Self::Tiles(tiles) => tiles.outer() * tiles.depth(),
        }
    }
}

/// A read-only matrix: element (r, c) is `data[r * rs + c * cs]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub data: Data<'a>,
    pub rs: usize,
    pub cs: usize,
}

impl<'a> Mat<'a> {
    /// Row-major, `cols` wide.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self::of(Data::F32(data), cols)
    }

    /// The same of f32 or bf16.
    pub fn of(data: Data<'a>, cols: usize) -> Self {
        Self {
            data,
            rs: cols,
            cs: 1,
        }
    }

    /// The transpose: no data moves.
    pub fn t(self) -> Self {
        Self {
            rs: self.cs,
            cs: self.rs,
            ..self
        }
    }

    /// Whether there are so many rows and columns, at least one of each.
    pub fn holds(&self, rows: usize, cols: usize) -> bool {
        last(rows, self.rs, cols, self.cs).is_some_and(|last| last < self.data.len())
    }
}

/// The largest index of a matrix with at least one row and column; `None` if it does not fit in usize.
pub fn last(rows: usize, rs: usize, cols: usize, cs: usize) -> Option<usize> {
    let row = (rows - 1).checked_mul(rs)?;
    row.checked_add((cols - 1).checked_mul(cs)?)
}

/// `start + lhs (m x k) . rhs (k x n)`; `R` is the right operand in the form that somebody multiplies.
#[derive(Clone, Copy)]
pub struct Product<'a, R> {
    /// m, k, n.
    pub shape: (usize, usize, usize),
    pub lhs: Mat<'a>,
    pub rhs: R,
    pub start: Start<'a>,
    /// How far apart the rows of the result are.
    pub stride: usize,
    pub threads: Threads,
}

impl<'a, R> Product<'a, R> {
    /// From zero, by all threads, with rows one behind the other.
    pub fn new(shape: (usize, usize, usize), lhs: Mat<'a>, rhs: R) -> Self {
        Self {
            shape,
            lhs,
            rhs,
            start: Start::Zero,
            stride: shape.2,
            threads: Threads::All,
        }
    }

    /// The same with its right operand in another form.
    pub fn with<S>(self, rhs: S) -> Product<'a, S> {
        Product {
            rhs,
            shape: self.shape,
            lhs: self.lhs,
            start: self.start,
            stride: self.stride,
            threads: self.threads,
        }
    }

    /// Panics if the result, of at least one row and column, does not fit into so many numbers.
    pub fn assert_fits(&self, length: usize) {
        let (m, _, n) = self.shape;
        assert!(
            n <= self.stride || m == 1,
            "product: rows of the result overlap"
        );
        assert!(
            last(m, self.stride, n, 1).is_some_and(|last| last < length),
            "product: the result is too small"
        );
        if let Start::Row(row) = self.start {
            assert_eq!(row.len(), n, "product: the row to start from");
        }
    }
}

/// Who works on one product.
#[derive(Clone, Copy, PartialEq)]
pub enum Threads {
    /// The calling thread: for products inside a parallel loop.
    One,
    /// All threads of the rayon pool.
    All,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing: whatever the destination held is gone.
    Zero,
    /// What the destination holds.
    Sum,
    /// This row (n), in every row.
    Row(&'a [f32]),
}

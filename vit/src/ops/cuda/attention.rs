//! Multi-head self-attention on packed queries, keys and values.
use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Layout, Result, Shape, Storage, Tensor};

use super::{element_grid, row_grid, Kernel, OPS};

/// What the backward needs of the forward.
pub struct Kept {
    /// Whether there will be a backward.
    wanted: bool,
    /// The heads' queries, keys and values (3, B * H, T, dim), and the probabilities (B * H, T, T).
    tensors: OnceLock<(Tensor, Tensor)>,
}

impl Kept {
    /// Nothing yet.
    pub fn new(qkv: &Tensor) -> Self {
        Self {
            wanted: qkv.track_op(),
            tensors: OnceLock::new(),
        }
    }
}

struct Sizes {
    batch: usize,
    tokens: usize,
    heads: usize,
    dim: usize,
}

impl Sizes {
    fn new(layout: &Layout, heads: usize) -> Result<Self> {
        let (batch, tokens, packed) = layout.shape().dims3()?;
        let dim = packed / 3 / heads;
        Ok(Self {
            batch,
            tokens,
            heads,
            dim,
        })
    }

    /// (B * H, T, ..)
    fn heads(&self, last: usize) -> Shape {
        Shape::from((self.batch * self.heads, self.tokens, last))
    }

    fn width(&self) -> usize {
        self.heads * self.dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    fn numbers(&self, parts: usize) -> [usize; 6] {
        let count = parts * self.batch * self.tokens * self.width();
        [count, parts, self.batch, self.tokens, self.heads, self.dim]
    }
}

/// `(B, T, parts * D) -> (parts, B * H, T, dim)`
fn split<'a>(sizes: &Sizes, numbers: &'a [usize; 6]) -> Kernel<'a> {
    let shape = (
        numbers[1],
        sizes.batch * sizes.heads,
        sizes.tokens,
        sizes.dim,
    );
    Kernel {
        kernels: &OPS,
        name: "split_heads",
        shape: Shape::from(shape),
        grid: element_grid(numbers[0]),
        ints: numbers,
        floats: &[],
    }
}

/// Parts (B * H, T, dim) -> `(B, T, parts * D)`; takes three inputs.
fn merge<'a>(sizes: &Sizes, numbers: &'a [usize; 5]) -> Kernel<'a> {
    Kernel {
        kernels: &OPS,
        name: "merge_heads",
        shape: Shape::from((sizes.batch, sizes.tokens, numbers[1] * sizes.width())),
        grid: element_grid(numbers[0]),
        ints: numbers,
        floats: &[],
    }
}

/// Without the number of images.
fn merge_numbers([count, parts, _, tokens, heads, dim]: [usize; 6]) -> [usize; 5] {
    [count, parts, tokens, heads, dim]
}

/// qkv, whose width the heads divide, to the heads' outputs.
pub fn forward(
    qkv: &CudaStorage,
    layout: &Layout,
    heads: usize,
    kept: &Kept,
) -> Result<(CudaStorage, Shape)> {
    let sizes = Sizes::new(layout, heads)?;
    let (t, dim, all) = (sizes.tokens, sizes.dim, sizes.batch * sizes.heads);
    if all * t == 0 {
        // No number, no kernel: only the shape.
        let nothing = qkv.device().alloc_zeros::<f32>(0)?;
        let nothing = CudaStorage::wrap_cuda_slice(nothing, qkv.device().clone());
        return Ok((nothing, Shape::from((sizes.batch, t, sizes.width()))));
    }
    let numbers = sizes.numbers(3);
    let split = split(&sizes, &numbers);
    let parts = split.run(&[(qkv, layout)])?;
    let part = |i: usize| Layout::contiguous_with_offset(sizes.heads(dim), i * all * t * dim);
    let scores = parts.matmul(
        &parts,
        (all, t, t, dim),
        &part(0),
        &part(1).transpose(1, 2)?,
    )?;
    let square = Layout::contiguous(sizes.heads(t));
    let softmax = Kernel {
        kernels: &OPS,
        name: "softmax",
        shape: sizes.heads(t),
        grid: row_grid(all * t),
        ints: &[all * t, t],
        floats: &[sizes.scale()],
    };
    let p = softmax.run(&[(&scores, &square)])?;
    drop(scores);
    let y = p.matmul(&parts, (all, t, dim, t), &square, &part(2))?;
    let numbers = merge_numbers(sizes.numbers(1));
    let merge = merge(&sizes, &numbers);
    let one = Layout::contiguous(sizes.heads(dim));
    let y = merge.run(&[(&y, &one); 3])?;
    if kept.wanted {
        let tensor = |storage, shape: &Shape| {
            Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
        };
        let tensors = (tensor(parts, &split.shape), tensor(p, &softmax.shape));
        kept.tensors.get_or_init(|| tensors);
    }
    Ok((y, merge.shape))
}

/// The gradient of qkv from that of the outputs.
pub fn backward(qkv: &Tensor, grad: &Tensor, heads: usize, kept: &Kept) -> Result<Tensor> {
    if qkv.elem_count() == 0 {
        return qkv.zeros_like();
    }
    let Some((parts, p)) = kept.tensors.get() else {
        candle_core::bail!("attention: nothing was kept for backward");
    };
    let sizes = Sizes::new(qkv.layout(), heads)?;
    let numbers = sizes.numbers(1);
    let g = split(&sizes, &numbers).of(&[grad])?.squeeze(0)?;
    let (q, k, v) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
    let dv = p.t()?.matmul(&g)?;
    let dp = g.matmul(&v.t()?)?;
    let rows = sizes.batch * sizes.heads * sizes.tokens;
    let softmax = Kernel {
        kernels: &OPS,
        name: "softmax_backward",
        shape: p.shape().clone(),
        grid: row_grid(rows),
        ints: &[rows, sizes.tokens],
        floats: &[sizes.scale()],
    };
    let ds = softmax.of(&[p, &dp])?;
    drop(dp);
    let (dq, dk) = (ds.matmul(&k)?, ds.t()?.matmul(&q)?);
    let numbers = merge_numbers(sizes.numbers(3));
    merge(&sizes, &numbers).of(&[&dq, &dk, &dv])
}

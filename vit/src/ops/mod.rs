//! Differentiable ops of a transformer.
//!
//! Each is a file with its forms side by side: a fused one for f32 on the CPU (one pass, multi-threaded, SIMD, with a backward of
//! its own), one of our kernels for f32 on CUDA devices (feature `cuda`), and a plain one composed of candle's ops for every
//! other device and type ([`plain`]). Tests compare them, and the fused gradients with finite differences. A [`Compute`] says
//! which form runs; what the forms are made of lies in `ops/cpu` and `ops/cuda`.
mod attention;
mod block;
mod bundle;
mod compute;
mod cpu;
// Public for the crate localmim, whose kernels run the same way.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
mod gelu;
mod layer_norm;
mod linear;
mod patch_tokens;
pub mod profile;
mod rope;
mod take_rows;
mod unfold_cells;
mod unshuffle;
mod window_attention;

pub use attention::attention;
pub use block::{block, BlockOptions, BlockWeights, HeldWeights, Pair};
pub use bundle::{backward, backward_seen, Seen};
pub use compute::{Compute, Form, Hold, Precision};
pub use cpu::bf16::Unit;
pub use cpu::limit::limit;
pub use cpu::scratch::release_buffers;
pub use cpu::storage::{cpu_f32, CpuF32};
pub use gelu::gelu;
pub use layer_norm::{layer_norm, layer_norm_gelu};
pub use linear::linear;
pub use patch_tokens::patch_tokens;
pub use rope::{rotate, Rotation};
pub use take_rows::{take_rows, Rows};
pub use unfold_cells::{linear_cells, unfold_cells};
pub use unshuffle::unshuffle;
pub use window_attention::{window_attention, Windows};

/// The same ops composed of candle's own: for GPUs, other types, and to compare the fused ones with.
pub mod plain {
    pub use super::attention::plain as attention;
    pub use super::gelu::plain as gelu;
    pub use super::layer_norm::plain as layer_norm;
    pub use super::linear::plain as linear;
    pub use super::patch_tokens::plain as patch_tokens;
    pub use super::rope::plain as rotate;
    pub use super::take_rows::plain as take_rows;
    pub use super::unfold_cells::plain as unfold_cells;
    pub use super::unshuffle::plain as unshuffle;
    pub use super::window_attention::plain as window_attention;
}

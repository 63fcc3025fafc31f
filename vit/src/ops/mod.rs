//! Differentiable ops of a transformer.
//!
//! Each has a fused form (one pass, multi-threaded, SIMD, with a backward of its own) for f32 on the CPU, one of our own
//! kernels for f32 on CUDA devices (feature `cuda`), and a plain one composed of candle's ops for every other device and type
//! ([`plain`]). Tests compare them, and the fused gradients with finite differences. `VITFREEZE_PLAIN_OPS=1` runs the plain
//! ones everywhere.
mod attention;
mod block;
mod bundle;
mod cells;
mod cpu;
// Public for the crate localmim, whose kernels run the same way.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
mod gelu;
mod layer_norm;
mod linear;
pub mod plain;
mod precision;
pub mod profile;
mod unshuffle;

use std::sync::OnceLock;

use candle_core::{DType, Tensor};

pub use attention::attention;
pub use block::{block, BlockWeights};
pub use bundle::{backward, backward_seen, Seen};
pub use cells::{patch_tokens, unfold_cells};
pub use cpu::held::{hold_weights, HeldWeights};
pub use cpu::math::simd;
pub use cpu::scratch::release_buffers;
pub use cpu::storage::{cpu_f32, CpuF32};
pub use gelu::gelu;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use precision::Precision;
pub use unshuffle::unshuffle;

/// Whether the fused form of an op runs for this tensor: f32 on the CPU, unless `VITFREEZE_PLAIN_OPS=1`.
pub fn is_fused(x: &Tensor) -> bool {
    !is_plain() && x.device().is_cpu() && x.dtype() == DType::F32
}

fn is_plain() -> bool {
    static PLAIN: OnceLock<bool> = OnceLock::new();
    *PLAIN.get_or_init(|| {
        std::env::var_os("VITFREEZE_PLAIN_OPS").is_some_and(|v| !v.is_empty() && v != "0")
    })
}

//! In which type matrix products take their operands.
use super::cpu::bf16;

/// The type of the operands of matrix products: those of a model's blocks, its patch embedding and LocalMIM's decoders.
/// Everything else is f32 either way: weights and their gradients, the residual stream, LayerNorm, softmax, GELU, a classifier's
/// head, losses, and the sums inside a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16 (8 bits of mantissa, nearest, ties to even; denormal numbers may become 0), where the processor has a
    /// unit for it; see [`Precision::unit`]. On a GPU by candle's ops, with results in bf16 too: composed, and not measured.
    Bf16,
}

impl Precision {
    /// What multiplies bf16 on this machine's CPU: `AMX` or `AVX-512-BF16` (or `emulated`, if the environment variable
    /// `VITFREEZE_BF16` asks for it). `None` for f32, and where there is no such unit: [`Precision::Bf16`] then
    /// computes as [`Precision::F32`], to the bit.
    pub fn unit(self) -> Option<&'static str> {
        self.kernel().map(bf16::Kernel::name)
    }

    pub(super) fn kernel(self) -> Option<bf16::Kernel> {
        match self {
            Self::F32 => None,
            Self::Bf16 => bf16::Kernel::detect(),
        }
    }
}

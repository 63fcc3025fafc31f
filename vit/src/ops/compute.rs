//! How a model computes: values, handed to those who compute.
use candle_core::{DType, Device, Result, Tensor};

use super::cpu::bf16::Unit;
use super::cpu::engine::Engine;
use super::profile::Profile;

/// How a model computes: a choice of who runs it, no part of its architecture.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The type of the operands of matrix products.
    pub precision: Precision,
    /// What multiplies bf16 on the CPU, by default [`Unit::best`]. `None`: [`Precision::Bf16`] computes there as
    /// [`Precision::F32`], to the bit.
    pub unit: Option<Unit>,
    /// The plain forms of all ops ([`super::plain`]), to compare the fused ones with.
    pub plain: bool,
    /// Which blocks hold what products need of their weights.
    pub hold: Hold,
    /// Times the ops.
    pub profile: Profile,
}

impl Default for Compute {
    fn default() -> Self {
        Self {
            precision: Precision::F32,
            unit: Unit::best(),
            plain: false,
            hold: Hold::Nothing,
            profile: Profile::default(),
        }
    }
}

/// The type of the operands of matrix products: those of a model's blocks, its patch embedding and LocalMIM's decoders.
/// Everything else is f32 either way: weights and their gradients, the residual stream, LayerNorm, softmax, a classifier's head,
/// losses, and the sums inside a product. GELU is computed in f32; on the CPU a block's hidden layer is rounded before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16 (8 bits of mantissa, nearest, ties to even; denormal numbers may become 0), where the processor has a
    /// unit for it; see [`Compute::bf16_unit`]. On a GPU by candle's ops, with results in bf16 too: composed, and not measured.
    Bf16,
}

/// Which blocks hold the tiles of bf16 that products need of their weights from one pass to the next. It costs up to as much
/// memory again as these weights have. A weight that has changed is noticed. It is about blocks that run as [`super::block`] (GELU,
/// no LayerScale); in f32 there is nothing to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hold {
    /// None: each pass makes what it needs.
    #[default]
    Nothing,
    /// Those that do not train, whose weights stay the same from step to step.
    Frozen,
    /// All: worth it where weights stay the same over several passes, of which the gradients make one step of the optimiser,
    /// or in an evaluation.
    All,
}

/// A form of an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The fused one for f32 on the CPU.
    Cpu,
    /// Our kernels for f32 on CUDA devices (feature `cuda`).
    Cuda,
    /// Composed of candle's ops, for all else.
    Plain,
}

impl Compute {
    /// In this precision, all else as usual.
    pub fn of(precision: Precision) -> Self {
        Self {
            precision,
            ..Self::default()
        }
    }

    /// What multiplies bf16 on this machine's CPU, as it is told to people. `None` for f32, and where there is no such unit.
    pub fn bf16_unit(&self) -> Option<&'static str> {
        self.engine().unit.map(Unit::name)
    }

    /// Multiplications a second that no product on this machine's CPU exceeds, in the type that products are computed in; see
    /// [`super::limit`]. It takes a third of a second and all threads.
    pub fn limit(&self) -> Option<f64> {
        super::limit(self.engine().unit)
    }

    /// The form of an op that runs for this tensor.
    pub fn form(&self, x: &Tensor) -> Form {
        match x.device() {
            _ if self.plain || x.dtype() != DType::F32 => Form::Plain,
            Device::Cpu => Form::Cpu,
            Device::Cuda(_) if cfg!(feature = "cuda") => Form::Cuda,
            _ => Form::Plain,
        }
    }

    /// The same of an op that multiplies: our kernels take f32 alone.
    pub(super) fn product_form(&self, x: &Tensor) -> Form {
        match self.form(x) {
            Form::Cuda if self.precision != Precision::F32 => Form::Plain,
            form => form,
        }
    }

    /// What multiplies on the CPU.
    pub(super) fn engine(&self) -> Engine<'_> {
        Engine {
            unit: self.unit.filter(|_| self.precision == Precision::Bf16),
            profile: &self.profile,
        }
    }

    /// Candle's `lhs . rhs` with operands as the precision says, and the result in their own type. On the CPU, where candle
    /// multiplies bf16 by way of f32, operands are rounded and multiplied as f32.
    pub(super) fn plain_product(&self, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
        let on_cpu = lhs.device().is_cpu();
        if self.precision == Precision::F32 || (on_cpu && self.unit.is_none()) {
            return lhs.matmul(rhs);
        }
        let dtype = lhs.dtype();
        let inside = match on_cpu {
            true => dtype,
            false => DType::BF16,
        };
        let round = |t: &Tensor| t.to_dtype(DType::BF16)?.to_dtype(inside);
        round(lhs)?.matmul(&round(rhs)?)?.to_dtype(dtype)
    }
}

//! The `VarBuilder` backend that hands live variables out as they are and frozen ones as plain tensors.
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::Init;

use crate::entries::Entries;
use crate::Error;

pub(crate) struct View {
    entries: Arc<Entries>,
    frozen: usize,
}

impl View {
    pub fn new(entries: Arc<Entries>, frozen: usize) -> Self {
        Self { entries, frozen }
    }
}

impl SimpleBackend for View {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            candle_core::bail!(
                "variable '{name}' has shape {:?}, the model asks for {shape:?}",
                tensor.shape()
            );
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            return Err(candle_core::Error::wrap(Error::NoVariable(name.into())));
        };
        Ok(if entry.is_frozen(self.frozen) {
            entry.var.as_detached_tensor()
        } else {
            entry.var.as_tensor().clone()
        })
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }
}

/// Whether a weight that a model got from a `VarBuilder` trains. A layer asks this of one of its own weights to learn that
/// it is frozen, and then runs its BatchNorm and dropout in evaluation mode:
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use candle_nn::{batch_norm, BatchNorm, ModuleT, VarBuilder, VarMap};
/// # fn forward(bn: &BatchNorm, x: &Tensor, train: bool) -> candle_core::Result<Tensor> {
/// let live = bn.weight_and_bias().is_none_or(|(weight, _)| freezeout::is_live(weight));
/// bn.forward_t(x, train && live)
/// # }
/// ```
pub fn is_live(weight: &Tensor) -> bool {
    weight.track_op()
}

//! All that a training step changes, as tensors by name: what a checkpoint holds.
//!
//! | tensor | what |
//! |---|---|
//! | `<name>` | a weight, a running statistic |
//! | `optimizer.<buffer>.<name>` | a moment of a live weight: `exp_avg` and `exp_avg_sq` of AdamW |
//! | `optimizer.updates.<name>` | how often it was updated (i64 scalar) |
//! | `ema.<name>` | the weights' moving average, where there is one |
//! | `freezing.<name>` | what an adaptive policy remembers ([`FreezeOut::state`]), where there is one |
//!
//! The step is the caller's to keep, beside what else the run is: under a schedule, what is frozen follows from it.
use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{Ema, Error, FreezeOut, Optimizer};

const OPTIMIZER: &str = "optimizer.";
const AVERAGE: &str = "ema.";
const FREEZING: &str = "freezing.";

/// All weights and running statistics by name. They share the variables' memory: write them before the next step.
pub fn weights(freeze: &FreezeOut) -> BTreeMap<String, Tensor> {
    let detached = |(name, var): (&str, &candle_core::Var)| {
        let tensor = var.as_detached_tensor();
        (name.to_owned(), tensor)
    };
    freeze.all().map(detached).collect()
}

/// Weights, optimiser, average and policy after a step. Write them before the next forward pass, which changes running statistics.
///
/// # Errors
/// An error of candle.
pub fn collect(
    freeze: &FreezeOut,
    opt: &Optimizer,
    ema: Option<&Ema>,
) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut tensors = weights(freeze);
    for (name, tensor) in opt.state(freeze)? {
        tensors.insert(format!("{OPTIMIZER}{name}"), tensor);
    }
    for (name, tensor) in freeze.state()? {
        tensors.insert(format!("{FREEZING}{name}"), tensor);
    }
    for (name, tensor) in ema.into_iter().flat_map(Ema::tensors) {
        tensors.insert(format!("{AVERAGE}{name}"), tensor.clone());
    }
    Ok(tensors)
}

/// Puts what [`collect`] gave after `step` steps back. Under a schedule `freeze` must have [advanced](FreezeOut::advance) to
/// `step` before; under a policy it must not, for what was frozen is part of the state. Rebuild the model then.
///
/// # Errors
/// [`Error::Checkpoint`], [`Error::State`], [`Error::Policy`] name the tensor that is missing, left over or of another shape or type, and a
/// weight that has not been updated as often as its schedule says. Then some of the state may have been replaced.
pub fn restore(
    tensors: BTreeMap<String, Tensor>,
    step: usize,
    freeze: &mut FreezeOut,
    opt: &mut Optimizer,
    ema: Option<&mut Ema>,
) -> Result<(), Error> {
    let fail = |message: String| Err(Error::Checkpoint(message));
    let (mut state, mut weights) = (BTreeMap::new(), BTreeMap::new());
    let (mut average, mut freezing) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in tensors {
        if let Some(name) = name.strip_prefix(OPTIMIZER) {
            state.insert(name.to_owned(), tensor);
        } else if let Some(name) = name.strip_prefix(AVERAGE) {
            average.insert(name.to_owned(), tensor);
        } else if let Some(name) = name.strip_prefix(FREEZING) {
            freezing.insert(name.to_owned(), tensor);
        } else {
            weights.insert(name, tensor);
        }
    }
    for (name, var) in freeze.all() {
        let Some(tensor) = weights.remove(name) else {
            return fail(format!("the checkpoint has no tensor '{name}'"));
        };
        if tensor.shape() != var.shape() || tensor.dtype() != var.dtype() {
            return fail(format!(
                "tensor '{name}' of the checkpoint is {:?} {:?}, the model's {:?} {:?}",
                tensor.dtype(),
                tensor.shape(),
                var.dtype(),
                var.shape()
            ));
        }
        var.set(&tensor.to_device(var.device())?)?;
    }
    if let Some(name) = weights.keys().next() {
        return fail(format!(
            "the checkpoint has a tensor '{name}' that the model does not"
        ));
    }
    freeze.load_state(&freezing)?;
    // Whatever is live has been updated in every step since it was last unfrozen.
    for (name, layer, _) in freeze.live() {
        let updates = state.get(&format!("updates.{name}"));
        let updates = updates.map_or(Ok(0), |t| t.to_scalar::<i64>())?;
        let since = layer.map_or(0, |layer| freeze.schedule().live_since(step, layer));
        let all = (step - since) as i64;
        // When a policy last unfroze a layer is not known here.
        let fits = match layer {
            Some(_) if freeze.has_policy() => (0..=all).contains(&updates),
            _ => updates == all,
        };
        if !fits {
            return fail(format!(
                "after {step} steps '{name}' has been updated {updates} times"
            ));
        }
    }
    opt.load_state(freeze, &state)?;
    match ema {
        Some(ema) => ema.load(&average),
        None if !average.is_empty() => fail("the checkpoint has an average, the run none".into()),
        None => Ok(()),
    }
}

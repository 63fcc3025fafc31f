//! Policies decide while the model trains how many layers are frozen.
use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::{Error, FreezeOut, Gradients};

/// Decides while the model trains how many layers are frozen; always a prefix, counted from the input.
///
/// Must be deterministic: the same gradients and weights give the same decisions, and one restored from its state goes on
/// as if nothing had happened.
pub trait Policy: Send {
    /// Called once before `step`, with the weights as they are: how many layers are frozen from now on.
    ///
    /// # Errors
    /// An error of candle.
    fn advance(&mut self, step: usize, freeze: &FreezeOut) -> Result<usize, Error>;

    /// Called after each backward pass (with gradient accumulation, several times a step).
    ///
    /// # Errors
    /// An error of candle.
    fn observe(&mut self, _freeze: &FreezeOut, _grads: &Gradients) -> Result<(), Error> {
        Ok(())
    }

    /// Called by [`FreezeOut::observe_outputs`] with one output for each layer.
    ///
    /// # Errors
    /// An error of candle.
    fn observe_outputs(&mut self, _outputs: &[Tensor]) -> Result<(), Error> {
        Ok(())
    }

    /// Everything that it remembers.
    ///
    /// # Errors
    /// An error of candle.
    fn state(&self, freeze: &FreezeOut) -> Result<BTreeMap<String, Tensor>, Error>;

    /// Takes back what [`Policy::state`] gave.
    ///
    /// # Errors
    /// [`Error::Policy`] names what is missing or does not fit.
    fn load_state(
        &mut self,
        freeze: &FreezeOut,
        saved: &BTreeMap<String, Tensor>,
    ) -> Result<(), Error>;
}

/// A table of numbers as a tensor (f64, rows of equal length).
pub(crate) fn table(rows: &[Vec<f64>]) -> Result<Tensor, Error> {
    let width = rows.first().map_or(0, Vec::len);
    Ok(Tensor::from_vec(
        rows.concat(),
        (rows.len(), width),
        &Device::Cpu,
    )?)
}

/// Reads [`table`] back; `rows` is how many there must be.
pub(crate) fn rows(
    saved: &BTreeMap<String, Tensor>,
    key: &str,
    rows: usize,
) -> Result<Vec<Vec<f64>>, Error> {
    let tensor = saved
        .get(key)
        .ok_or_else(|| Error::Policy(format!("'{key}' is missing")))?;
    let values = tensor
        .to_vec2::<f64>()
        .map_err(|e| Error::Policy(format!("'{key}': {e}")))?;
    if values.len() == rows {
        Ok(values)
    } else {
        Err(Error::Policy(format!(
            "'{key}' has {} rows, not {rows}",
            values.len()
        )))
    }
}

/// Reads the number of frozen layers back.
pub(crate) fn frozen(saved: &BTreeMap<String, Tensor>, freeze: &FreezeOut) -> Result<usize, Error> {
    let (frozen, layers) = (count(saved, "frozen")?, freeze.schedule().layers);
    if frozen <= layers {
        Ok(frozen)
    } else {
        Err(Error::Policy(format!(
            "'frozen' is {frozen}, there are {layers} layers"
        )))
    }
}

/// Reads a number back that was saved as a scalar of type i64.
pub(crate) fn count(saved: &BTreeMap<String, Tensor>, key: &str) -> Result<usize, Error> {
    let tensor = saved
        .get(key)
        .ok_or_else(|| Error::Policy(format!("'{key}' is missing")))?;
    let value = tensor.to_scalar::<i64>();
    value
        .ok()
        .and_then(|value| usize::try_from(value).ok())
        .ok_or_else(|| Error::Policy(format!("'{key}' is no number of 0 or more")))
}

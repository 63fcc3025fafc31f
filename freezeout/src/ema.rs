//! Exponential moving average of the weights.
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::inplace::Scaled;
use crate::reduce::on_host;
use crate::{Error, FreezeOut};

/// An exponential moving average of all weights (Polyak and Juditsky, 1992), `e <- decay * e + (1 - decay) * p` after each
/// optimiser step; to be evaluated in place of the weights. Frozen weights are averaged like the others, so that the
/// average of a run with and without cutting is the same; running statistics of a BatchNorm are copied.
///
/// ```
/// # use candle_core::{DType, Device};
/// # use candle_nn::{linear, Module, VarBuilder, VarMap};
/// # use freezeout::{Ema, FreezeOut, Schedule};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let vars = VarMap::new();
/// # let build = |vb: VarBuilder| linear(2, 2, vb.pp("0"));
/// # build(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
/// # let freeze = FreezeOut::new(&vars, Schedule::cubic(0.8, 1, 100), |_| None).or(
/// #     FreezeOut::new(&vars, Schedule::cubic(0.8, 1, 100), |_| Some(0)))?;
/// let mut ema = Ema::new(&freeze, 0.9999)?;
/// // after each opt.step(..):
/// ema.update(&freeze)?;
/// let averaged = build(ema.vars())?; // a model of plain tensors
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    tensors: BTreeMap<String, Tensor>,
    device: Device,
    dtype: DType,
}

impl Ema {
    /// Starts from the weights as they are.
    ///
    /// # Errors
    /// [`Error::Optimizer`] if `decay` is not in [0, 1]; an error of candle.
    pub fn new(freeze: &FreezeOut, decay: f64) -> Result<Self, Error> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::Optimizer(format!(
                "the average's decay is {decay}, it must lie in [0, 1]"
            )));
        }
        let (mut tensors, mut like) = (BTreeMap::new(), None);
        for (name, var) in freeze.all() {
            tensors.insert(name.to_owned(), var.as_detached_tensor().copy()?.detach());
            like.get_or_insert((var.device().clone(), var.dtype()));
        }
        let (device, dtype) = like.unwrap_or((Device::Cpu, DType::F32));
        Ok(Self {
            decay,
            tensors,
            device,
            dtype,
        })
    }

    /// Takes the weights of a finished optimiser step into the average.
    ///
    /// # Errors
    /// An error of candle.
    pub fn update(&mut self, freeze: &FreezeOut) -> Result<(), Error> {
        for (name, var) in freeze.all() {
            let Some(average) = self.tensors.get_mut(name) else {
                continue;
            };
            if on_host(average) && on_host(var) {
                let op = Scaled {
                    keep: self.decay as f32,
                    add: (1.0 - self.decay) as f32,
                };
                average.inplace_op2(&var.as_detached_tensor(), &op)?;
            } else {
                let (old, new) = (
                    &*average * self.decay,
                    var.as_detached_tensor() * (1.0 - self.decay),
                );
                *average = (old? + new?)?.detach();
            }
        }
        for (name, var) in freeze.buffers() {
            let copy = var.as_detached_tensor().copy()?.detach();
            self.tensors.insert(name.to_owned(), copy);
        }
        Ok(())
    }

    /// A `VarBuilder` over the average as it is now: build a model from it to evaluate. It shares the average's memory.
    pub fn vars(&self) -> VarBuilder<'static> {
        let tensors = self.tensors.clone().into_iter().collect();
        VarBuilder::from_tensors(tensors, self.dtype, &self.device)
    }

    /// The average by the variables' names, for a checkpoint or an export.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Takes back what [`Ema::tensors`] gave.
    ///
    /// # Errors
    /// [`Error::State`] names what is missing, left over or of another shape.
    pub fn load(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let fail = |message: String| Err(Error::State(format!("average: {message}")));
        if let Some(name) = saved.keys().find(|name| !self.tensors.contains_key(*name)) {
            return fail(format!("'{name}' belongs to no variable"));
        }
        let mut tensors = BTreeMap::new();
        for (name, old) in &self.tensors {
            match saved.get(name) {
                None => return fail(format!("'{name}' is missing")),
                Some(new) if new.shape() != old.shape() || new.dtype() != old.dtype() => {
                    return fail(format!(
                        "'{name}' is {:?} {:?}, its variable {:?} {:?}",
                        new.dtype(),
                        new.shape(),
                        old.dtype(),
                        old.shape()
                    ));
                }
                Some(new) => {
                    let copy = new.to_device(&self.device)?.copy()?.detach();
                    tensors.insert(name.clone(), copy);
                }
            }
        }
        self.tensors = tensors;
        Ok(())
    }
}

//! The frozen set: which variables are live, and a `VarBuilder` that hands the others out as plain tensors.
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder, VarMap};

use crate::{Error, Gradients, Schedule};

struct Entry {
    var: Var,
    layer: Option<usize>,
    /// Updated by the forward pass itself, not by gradients.
    buffer: bool,
}

/// Whether a variable of this name is one that the forward pass updates itself: the running statistics of a BatchNorm.
fn is_buffer(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

/// Freezes the layers of a model while it trains.
///
/// No magic: all it does is hand out variables through [`FreezeOut::vars`], live ones as they are and frozen ones as
/// plain tensors that share the same memory. A model rebuilt from it after a freeze records nothing below the boundary,
/// so its backward pass, its activations and its gradients are gone. Rebuilding clones reference counts only.
///
/// `running_mean` and `running_var` of a BatchNorm get no gradient and belong to no layer: they are always handed out as
/// they are, so that what the forward pass writes into them stays. A frozen BatchNorm goes on updating them while it runs
/// in training mode.
pub struct FreezeOut {
    schedule: Schedule,
    entries: Arc<BTreeMap<String, Entry>>,
    device: Device,
    dtype: DType,
    frozen: usize,
}

impl FreezeOut {
    /// Takes over the variables of `vars`. `layer_of` says which layer a variable belongs to, 0 nearest the input;
    /// variables with `None` never freeze and follow the global learning rate.
    ///
    /// # Errors
    /// A schedule out of range, a layer number beyond the schedule's, or a layer without any variable.
    pub fn new(
        vars: &VarMap,
        schedule: Schedule,
        layer_of: impl Fn(&str) -> Option<usize>,
    ) -> Result<Self, Error> {
        schedule.validate()?;
        let mut entries = BTreeMap::new();
        let mut seen = vec![false; schedule.layers];
        let map = vars.data().lock().unwrap_or_else(|e| e.into_inner());
        for (name, var) in map.iter() {
            let buffer = is_buffer(name);
            let layer = if buffer { None } else { layer_of(name) };
            if let Some(layer) = layer {
                match seen.get_mut(layer) {
                    Some(seen) => *seen = true,
                    None => {
                        return Err(Error::UnknownLayer {
                            name: name.clone(),
                            layer,
                            last: schedule.layers - 1,
                        })
                    }
                }
            }
            let var = var.clone();
            entries.insert(name.clone(), Entry { var, layer, buffer });
        }
        drop(map);
        let empty: Vec<usize> = (0..seen.len()).filter(|&layer| !seen[layer]).collect();
        if !empty.is_empty() {
            return Err(Error::EmptyLayers(empty));
        }
        let (device, dtype) = entries
            .values()
            .next()
            .map(|e| (e.var.device().clone(), e.var.dtype()))
            .unwrap_or((Device::Cpu, DType::F32));
        Ok(Self {
            schedule,
            entries: Arc::new(entries),
            device,
            dtype,
            frozen: 0,
        })
    }

    /// Moves to `step`. `true` if the frozen set changed: rebuild the model from [`FreezeOut::vars`] then.
    ///
    /// A smaller step than before unfreezes layers again; their moments start afresh.
    ///
    /// # Errors
    /// None with a fixed schedule.
    pub fn advance(&mut self, step: usize) -> Result<bool, Error> {
        let frozen = self.schedule.frozen(step);
        let changed = frozen != self.frozen;
        self.frozen = frozen;
        Ok(changed)
    }

    /// Freezes the first `layers` layers at once, whatever the schedule says, until the next [`FreezeOut::advance`].
    pub fn freeze_first(&mut self, layers: usize) {
        self.frozen = layers.min(self.schedule.layers);
    }

    /// A `VarBuilder` over the variables as they are now: live ones as variables, frozen ones as plain tensors.
    pub fn vars(&self) -> VarBuilder<'static> {
        let view = View {
            entries: self.entries.clone(),
            frozen: self.frozen,
        };
        VarBuilder::from_backend(Box::new(view), self.dtype, self.device.clone())
    }

    /// The schedule it was made with.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// How many layers are frozen, counted from the input.
    pub fn frozen(&self) -> usize {
        self.frozen
    }

    /// Name, layer and variable of everything that trains now, in order of the names.
    pub fn live(&self) -> impl Iterator<Item = (&str, Option<usize>, &Var)> {
        self.entries
            .iter()
            .filter(|(_, e)| !e.buffer && !is_frozen(e.layer, self.frozen))
            .map(|(name, e)| (name.as_str(), e.layer, &e.var))
    }

    /// Name and variable of everything, frozen or not, in order of the names.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|(n, e)| (n.as_str(), &e.var))
    }

    /// Whether the variable of this name trains now.
    pub fn is_live(&self, name: &str) -> bool {
        self.entries
            .get(name)
            .is_some_and(|e| !e.buffer && !is_frozen(e.layer, self.frozen))
    }

    /// Runs the backward pass of `loss` and gives the gradients of the live variables by name.
    ///
    /// # Errors
    /// [`Error::NoGradient`] names live variables that the loss did not reach.
    pub fn backward(&self, loss: &Tensor) -> Result<Gradients, Error> {
        let mut grads = loss.backward()?;
        let mut missing = Vec::new();
        let mut by_name = BTreeMap::new();
        for (name, _, var) in self.live() {
            match grads.remove(var) {
                // A gradient may be tracked itself, which would keep this step's graph alive.
                Some(grad) => drop(by_name.insert(name.to_owned(), grad.detach())),
                None => missing.push(name.to_owned()),
            }
        }
        if missing.is_empty() {
            Ok(Gradients(by_name))
        } else {
            Err(Error::NoGradient(missing))
        }
    }
}

fn is_frozen(layer: Option<usize>, frozen: usize) -> bool {
    layer.is_some_and(|layer| layer < frozen)
}

struct View {
    entries: Arc<BTreeMap<String, Entry>>,
    frozen: usize,
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
        Ok(if is_frozen(entry.layer, self.frozen) {
            entry.var.as_detached_tensor()
        } else {
            entry.var.as_tensor().clone()
        })
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }
}

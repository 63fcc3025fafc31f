//! State of one variable, and of all as tensors.
use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

#[cfg(feature = "cuda")]
use super::cuda;
use super::kernel::HostStep;
use super::{Rule, Update};
use crate::reduce::on_host;
use crate::{Error, FreezeOut};

#[derive(Debug)]
pub(super) struct State {
    /// Updates done.
    pub updates: u64,
    /// How often the layer had been unfrozen when this state began.
    pub thaws: u64,
    buffers: Buffers,
}

#[derive(Debug)]
enum Buffers {
    /// f32 on the CPU: updated in place, one pass over memory.
    Host(Vec<RefCell<Vec<f32>>>),
    /// f32 on a CUDA device, for rules that have a kernel.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Buffers),
    /// Anything else: composed tensor ops.
    Device(Vec<Tensor>),
}

impl State {
    pub fn new(rule: &dyn Rule, var: &Var, thaws: u64) -> Result<Self, Error> {
        Ok(Self {
            updates: 0,
            thaws,
            buffers: Buffers::new(rule, var)?,
        })
    }

    pub fn apply(
        &mut self,
        rule: &dyn Rule,
        update: &Update,
        var: &Var,
        grad: &Tensor,
    ) -> Result<(), Error> {
        match &mut self.buffers {
            Buffers::Host(buffers) => {
                let op = HostStep {
                    rule,
                    update,
                    buffers,
                };
                var.inplace_op2(grad, &op)?;
            }
            #[cfg(feature = "cuda")]
            Buffers::Cuda(buffers) => {
                let op = cuda::CudaStep {
                    rule,
                    update,
                    buffers,
                };
                var.inplace_op2(grad, &op)?;
            }
            Buffers::Device(buffers) => {
                let dtype = state_dtype(var);
                let mut grad = grad.detach().to_dtype(dtype)?;
                if update.scale != 1.0 {
                    grad = (grad * update.scale)?;
                }
                if update.limit.is_finite() {
                    grad = grad.clamp(-update.limit, update.limit)?;
                }
                let old = var.as_detached_tensor().to_dtype(dtype)?;
                let new = rule
                    .tensors(update, &old, &grad, buffers)?
                    .to_dtype(var.dtype())?;
                for buffer in buffers {
                    *buffer = buffer.detach();
                }
                var.set(&new.detach())?;
            }
        }
        Ok(())
    }
}

impl Buffers {
    /// All zero.
    fn new(rule: &dyn Rule, var: &Var) -> Result<Self, Error> {
        let count = rule.buffers().len();
        #[cfg(feature = "cuda")]
        if let Some(device) = cuda::device(rule, var) {
            return Ok(Self::Cuda(cuda::zeros(device, var.elem_count())?));
        }
        if on_host(var) {
            let zeros = |_| RefCell::new(vec![0.0; var.elem_count()]);
            return Ok(Self::Host((0..count).map(zeros).collect()));
        }
        let zeros = |_| Ok(Tensor::zeros(var.shape(), state_dtype(var), var.device())?);
        Ok(Self::Device(
            (0..count).map(zeros).collect::<Result<_, Error>>()?,
        ))
    }

    /// From saved tensors.
    fn load(rule: &dyn Rule, var: &Var, saved: &[Tensor]) -> Result<Self, Error> {
        #[cfg(feature = "cuda")]
        if let (Some(device), [first, second]) = (cuda::device(rule, var), saved) {
            return Ok(Self::Cuda(cuda::upload(device, [first, second])?));
        }
        #[cfg(not(feature = "cuda"))]
        let _ = rule;
        if on_host(var) {
            let host = |t: &Tensor| -> Result<_, Error> {
                Ok(RefCell::new(t.flatten_all()?.to_vec1::<f32>()?))
            };
            return Ok(Self::Host(
                saved.iter().map(host).collect::<Result<_, _>>()?,
            ));
        }
        let device = |t: &Tensor| Ok(t.to_device(var.device())?);
        Ok(Self::Device(
            saved.iter().map(device).collect::<Result<_, Error>>()?,
        ))
    }
}

/// Half-precision variables are updated in f32: AdamW's eps is 0 in f16.
fn state_dtype(var: &Var) -> DType {
    match var.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

pub(super) fn save(
    rule: &dyn Rule,
    states: &BTreeMap<String, State>,
    freeze: &FreezeOut,
) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut out = BTreeMap::new();
    for (name, layer, var) in freeze.live() {
        let thaws = freeze.thaws(layer);
        let Some(state) = states.get(name).filter(|state| state.thaws == thaws) else {
            continue;
        };
        for (i, buffer) in rule.buffers().iter().enumerate() {
            let tensor = match &state.buffers {
                Buffers::Host(buffers) => {
                    Tensor::from_slice(&buffers[i].borrow(), var.shape(), &Device::Cpu)?
                }
                #[cfg(feature = "cuda")]
                Buffers::Cuda(buffers) => {
                    let values = cuda::download(&buffers[i].borrow())?;
                    Tensor::from_vec(values, var.shape(), &Device::Cpu)?
                }
                Buffers::Device(buffers) => buffers[i].clone(),
            };
            out.insert(format!("{buffer}.{name}"), tensor);
        }
        let updates = Tensor::new(state.updates as i64, &Device::Cpu)?;
        out.insert(format!("updates.{name}"), updates);
    }
    Ok(out)
}

pub(super) fn load(
    rule: &dyn Rule,
    freeze: &FreezeOut,
    saved: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, State>, Error> {
    let fail = |message: String| Err(Error::State(message));
    let vars = freeze.layers();
    let kinds: Vec<&str> = rule.buffers().iter().copied().chain(["updates"]).collect();
    for key in saved.keys() {
        let name = (kinds.iter()).find_map(|kind| key.strip_prefix(kind)?.strip_prefix('.'));
        match name {
            None => return fail(format!("'{key}' is no state of {}", rule.name())),
            Some(name) if !saved.contains_key(&format!("updates.{name}")) => {
                return fail(format!("'{key}' has no 'updates' beside it"));
            }
            Some(_) => {}
        }
    }
    let mut states = BTreeMap::new();
    for (key, updates) in saved {
        let Some(name) = key.strip_prefix("updates.") else {
            continue;
        };
        let Some(&(layer, var)) = vars.get(name) else {
            return fail(format!("'{key}' belongs to no variable"));
        };
        let mut buffers = Vec::new();
        for kind in rule.buffers() {
            let key = format!("{kind}.{name}");
            let Some(tensor) = saved.get(&key) else {
                return fail(format!("'{key}' is missing"));
            };
            if tensor.shape() != var.shape() || tensor.dtype() != state_dtype(var) {
                return fail(format!(
                    "'{key}' is {:?} {:?}, its variable wants {:?} {:?}",
                    tensor.dtype(),
                    tensor.shape(),
                    state_dtype(var),
                    var.shape()
                ));
            }
            buffers.push(tensor.clone());
        }
        let buffers = Buffers::load(rule, var, &buffers)?;
        let number = updates
            .to_scalar::<i64>()
            .map_err(|e| Error::State(format!("'{key}': {e}")))?;
        let updates = u64::try_from(number)
            .map_err(|_| Error::State(format!("'{key}' is {number}, less than 0")))?;
        let thaws = freeze.thaws(layer);
        let state = State {
            updates,
            thaws,
            buffers,
        };
        states.insert(name.to_owned(), state);
    }
    Ok(states)
}

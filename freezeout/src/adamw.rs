//! AdamW by variable name: rates by layer, state that can be saved, moments of frozen layers freed.
use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use crate::{Error, FreezeOut, Gradients};

/// AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), as PyTorch computes it:
///
/// ```text
/// p <- p * (1 - lr * weight_decay)
/// m <- beta1 * m + (1 - beta1) * g         v <- beta2 * v + (1 - beta2) * g^2
/// p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// ```
///
/// Weight decay applies to tensors of 2 or more dimensions that are not biases.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    state: BTreeMap<String, State>,
}

/// Numbers of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment. 0.9.
    pub beta1: f64,
    /// Decay of the second moment. 0.95, as MAE and its heirs train; PyTorch's own default is 0.999.
    pub beta2: f64,
    /// Added to the denominator. 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. 0.05.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.05,
        }
    }
}

#[derive(Debug)]
struct State {
    /// Updates done, `t`.
    updates: u64,
    moments: Moments,
}

#[derive(Debug)]
enum Moments {
    /// f32 on the CPU: updated in place, one pass over memory.
    Host {
        exp_avg: RefCell<Vec<f32>>,
        exp_avg_sq: RefCell<Vec<f32>>,
    },
    /// Anything else: composed tensor ops.
    Device { exp_avg: Tensor, exp_avg_sq: Tensor },
}

impl Moments {
    fn new(var: &Var) -> Result<Self, Error> {
        Ok(if on_host(var) {
            let zeros = || RefCell::new(vec![0.0; var.elem_count()]);
            Moments::Host {
                exp_avg: zeros(),
                exp_avg_sq: zeros(),
            }
        } else {
            Moments::Device {
                exp_avg: var.zeros_like()?.detach(),
                exp_avg_sq: var.zeros_like()?.detach(),
            }
        })
    }
}

fn on_host(var: &Var) -> bool {
    var.device().is_cpu() && var.dtype() == DType::F32 && var.is_contiguous()
}

/// Whether weight decay applies to a variable: 2 or more dimensions and not a bias.
pub fn decays(name: &str, rank: usize) -> bool {
    rank >= 2 && !name.ends_with("bias")
}

impl AdamW {
    /// An optimiser without any state yet.
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            state: BTreeMap::new(),
        }
    }

    /// Updates the live variables with the rates that the schedule of `freeze` gives at `step`, and frees the moments of
    /// frozen ones.
    ///
    /// # Errors
    /// [`Error::NoGradient`] if a live variable has none.
    pub fn step(
        &mut self,
        freeze: &FreezeOut,
        step: usize,
        grads: &Gradients,
    ) -> Result<(), Error> {
        self.state.retain(|name, _| freeze.is_live(name));
        for (name, layer, var) in freeze.live() {
            let Some(grad) = grads.get(name) else {
                return Err(Error::NoGradient(vec![name.to_owned()]));
            };
            let lr = freeze.schedule().lr(step, layer);
            self.update(name, var, grad, lr)?;
        }
        Ok(())
    }

    fn update(&mut self, name: &str, var: &Var, grad: &Tensor, lr: f64) -> Result<(), Error> {
        if !self.state.contains_key(name) {
            let fresh = State {
                updates: 0,
                moments: Moments::new(var)?,
            };
            self.state.insert(name.to_owned(), fresh);
        }
        let Some(state) = self.state.get_mut(name) else {
            return Err(Error::State(format!("no state for '{name}'")));
        };
        state.updates += 1;
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config;
        let t = i32::try_from(state.updates).unwrap_or(i32::MAX);
        let decay = if decays(name, var.rank()) {
            1.0 - lr * weight_decay
        } else {
            1.0
        };
        let step_size = lr / (1.0 - beta1.powi(t));
        let correction = (1.0 - beta2.powi(t)).sqrt();
        match &mut state.moments {
            Moments::Host {
                exp_avg,
                exp_avg_sq,
            } => {
                let op = HostStep {
                    exp_avg,
                    exp_avg_sq,
                    decay: decay as f32,
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    step_size: step_size as f32,
                    correction: correction as f32,
                    eps: eps as f32,
                };
                var.inplace_op2(&grad.contiguous()?, &op)?;
            }
            Moments::Device {
                exp_avg,
                exp_avg_sq,
            } => {
                *exp_avg = ((&*exp_avg * beta1)? + (grad * (1.0 - beta1))?)?.detach();
                *exp_avg_sq = ((&*exp_avg_sq * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?.detach();
                let denominator = ((exp_avg_sq.sqrt()? / correction)? + eps)?;
                let update = ((&*exp_avg / denominator)? * step_size)?;
                var.set(&((var.as_detached_tensor() * decay)? - update)?)?;
            }
        }
        Ok(())
    }

    /// The state as tensors, for a checkpoint: `exp_avg.<name>`, `exp_avg_sq.<name>` in the variable's shape and
    /// `updates.<name>` (i64 scalar) for every variable that has been updated and is live.
    ///
    /// # Errors
    /// An error of candle.
    pub fn state(&self, freeze: &FreezeOut) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut out = BTreeMap::new();
        for (name, _, var) in freeze.live() {
            let Some(state) = self.state.get(name) else {
                continue;
            };
            let (exp_avg, exp_avg_sq) = match &state.moments {
                Moments::Host {
                    exp_avg,
                    exp_avg_sq,
                } => (
                    Tensor::from_slice(&exp_avg.borrow(), var.shape(), &Device::Cpu)?,
                    Tensor::from_slice(&exp_avg_sq.borrow(), var.shape(), &Device::Cpu)?,
                ),
                Moments::Device {
                    exp_avg,
                    exp_avg_sq,
                } => (exp_avg.clone(), exp_avg_sq.clone()),
            };
            out.insert(format!("exp_avg.{name}"), exp_avg);
            out.insert(format!("exp_avg_sq.{name}"), exp_avg_sq);
            let updates = Tensor::new(state.updates as i64, &Device::Cpu)?;
            out.insert(format!("updates.{name}"), updates);
        }
        Ok(out)
    }

    /// Takes back what [`AdamW::state`] gave. Variables of which nothing was saved start afresh.
    ///
    /// # Errors
    /// [`Error::State`] names a tensor that is missing beside its siblings, belongs to no variable or has another shape.
    pub fn load_state(
        &mut self,
        freeze: &FreezeOut,
        saved: &BTreeMap<String, Tensor>,
    ) -> Result<(), Error> {
        let vars: BTreeMap<&str, &Var> = freeze.all().collect();
        for key in saved.keys() {
            let kinds = ["exp_avg.", "exp_avg_sq.", "updates."];
            let name = kinds.iter().find_map(|kind| key.strip_prefix(kind));
            if !name.is_some_and(|name| saved.contains_key(&format!("updates.{name}"))) {
                return Err(Error::State(format!("'{key}' has no 'updates' beside it")));
            }
        }
        let mut state = BTreeMap::new();
        for (key, updates) in saved {
            let Some(name) = key.strip_prefix("updates.") else {
                continue;
            };
            let Some(var) = vars.get(name) else {
                return Err(Error::State(format!("'{key}' belongs to no variable")));
            };
            let moment = |kind: &str| -> Result<Tensor, Error> {
                let key = format!("{kind}.{name}");
                let Some(tensor) = saved.get(&key) else {
                    return Err(Error::State(format!("'{key}' is missing")));
                };
                if tensor.shape() != var.shape() || tensor.dtype() != var.dtype() {
                    return Err(Error::State(format!(
                        "'{key}' is {:?} {:?}, its variable {:?} {:?}",
                        tensor.dtype(),
                        tensor.shape(),
                        var.dtype(),
                        var.shape()
                    )));
                }
                Ok(tensor.to_device(var.device())?)
            };
            let (exp_avg, exp_avg_sq) = (moment("exp_avg")?, moment("exp_avg_sq")?);
            let moments = if on_host(var) {
                let host = |t: Tensor| -> Result<_, Error> {
                    Ok(RefCell::new(t.flatten_all()?.to_vec1::<f32>()?))
                };
                Moments::Host {
                    exp_avg: host(exp_avg)?,
                    exp_avg_sq: host(exp_avg_sq)?,
                }
            } else {
                Moments::Device {
                    exp_avg,
                    exp_avg_sq,
                }
            };
            let updates = updates.to_scalar::<i64>()?;
            let updates = u64::try_from(updates)
                .map_err(|_| Error::State(format!("'{key}' is {updates}, less than 0")))?;
            state.insert(name.to_owned(), State { updates, moments });
        }
        self.state = state;
        Ok(())
    }
}

/// One AdamW update of one f32 tensor on the CPU: reads p, g, m, v and writes p, m, v once.
struct HostStep<'a> {
    exp_avg: &'a RefCell<Vec<f32>>,
    exp_avg_sq: &'a RefCell<Vec<f32>>,
    decay: f32,
    beta1: f32,
    beta2: f32,
    step_size: f32,
    correction: f32,
    eps: f32,
}

/// Elements per task. Every element is computed alone, so the split changes no bit.
const CHUNK: usize = 32 * 1024;

impl InplaceOp2 for HostStep<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        p_layout: &Layout,
        g: &CpuStorage,
        g_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(p), CpuStorage::F32(g)) = (p, g) else {
            candle_core::bail!("adamw: variable and gradient must both be f32");
        };
        let (Some((p0, p1)), Some((g0, g1))) =
            (p_layout.contiguous_offsets(), g_layout.contiguous_offsets())
        else {
            candle_core::bail!("adamw: variable and gradient must be contiguous");
        };
        let (p, g) = (&mut p[p0..p1], &g[g0..g1]);
        let mut m = self.exp_avg.borrow_mut();
        let mut v = self.exp_avg_sq.borrow_mut();
        if p.len() != g.len() || p.len() != m.len() || p.len() != v.len() {
            candle_core::bail!(
                "adamw: variable of {} elements, gradient of {}",
                p.len(),
                g.len()
            );
        }
        let (decay, beta1, beta2, step_size, correction, eps) = (
            self.decay,
            self.beta1,
            self.beta2,
            self.step_size,
            self.correction,
            self.eps,
        );
        p.par_chunks_mut(CHUNK)
            .zip(g.par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .for_each(|((p, g), (m, v))| {
                for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *p = *p * decay - step_size * *m / (v.sqrt() / correction + eps);
                }
            });
        Ok(())
    }
}

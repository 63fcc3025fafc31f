//! Optimisers whose state is kept by variable name.
mod adamw;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda;
mod groups;
mod kernel;
mod lars;
mod lion;
mod sgd;
mod state;

use std::collections::BTreeMap;
use std::fmt;

use candle_core::{Tensor, Var};

pub use adamw::AdamW;
pub use groups::{decays, layer_decay, Group, Param};
pub use kernel::Slices;
pub use lars::Lars;
pub use lion::Lion;
pub use sgd::Sgd;

use crate::reduce::{squared_sum, sum_of_squares};
use crate::{Error, FreezeOut, Gradients};
use state::State;

/// How one optimiser changes one tensor. Implement it for an optimiser of your own.
///
/// [`Rule::host`] is the fast way (f32 in host memory: one pass, in place, any number of threads), [`Rule::tensors`] the
/// composed one for everything else; both must compute the same.
pub trait Rule: fmt::Debug + Send + Sync {
    /// What to call it: `adamw`.
    fn name(&self) -> &'static str;

    /// Names of its state tensors, at most two, each in the variable's shape and zero at first.
    fn buffers(&self) -> &'static [&'static str];

    /// Its weight decay, which [`Group::weight_decay`] scales.
    fn weight_decay(&self) -> f64;

    /// Its numbers, each with the bound that it must be below (and 0 or more), to be checked before each step.
    fn numbers(&self) -> Vec<(&'static str, f64, f64)> {
        Vec::new()
    }

    /// Updates a part of a variable; every element must be computed alone.
    fn host(&self, update: &Update, x: Slices<'_>);

    /// The new value of a variable; `grad` is clipped already. Half-precision variables come as f32.
    ///
    /// # Errors
    /// An error of candle.
    fn tensors(
        &self,
        update: &Update,
        var: &Tensor,
        grad: &Tensor,
        buffers: &mut [Tensor],
    ) -> candle_core::Result<Tensor>;

    /// A fast way for f32 on CUDA devices. For our own rules alone: nobody else can make a formula, which is compiled as it is.
    #[cfg(feature = "cuda")]
    #[doc(hidden)]
    fn cuda(&self, update: &Update) -> Option<cuda::Formula> {
        let _ = update;
        None
    }

    /// The trust coefficient of a rule that scales each tensor by its norms (LARS). [`Update::trust`] is then
    /// `trust * |p| / |g + weight_decay * p|` for tensors of 2 or more dimensions whose norms are not 0.
    fn trust(&self) -> Option<f64> {
        None
    }
}

/// The numbers of one update of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Learning rate of this variable.
    pub lr: f64,
    /// Weight decay of this variable.
    pub weight_decay: f64,
    /// Which update of this variable it is, from 1.
    pub updates: u64,
    /// Factor that the gradient is multiplied with first (clipping by norm).
    pub scale: f64,
    /// Where the gradient is cut off (clipping by value), or infinity.
    pub limit: f64,
    /// Layer-wise factor (LARS), 1 otherwise.
    pub trust: f64,
}

impl Update {
    /// Changes nothing.
    #[cfg(feature = "cuda")]
    const NONE: Self = Self {
        lr: 0.0,
        weight_decay: 0.0,
        updates: 1,
        scale: 1.0,
        limit: f64::INFINITY,
        trust: 1.0,
    };

    /// `beta^updates`.
    pub(crate) fn power(&self, beta: f64) -> f64 {
        beta.powi(i32::try_from(self.updates).unwrap_or(i32::MAX))
    }
}

/// What is done to the gradients before an update.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Clip {
    None,
    Norm(f64),
    Value(f64),
}

/// An optimiser: a rule ([`AdamW`], [`Sgd`], [`Lars`], [`Lion`]), rates by layer and name, state that can be saved. The
/// state of frozen layers is freed; after unfreezing they start afresh.
///
/// ```
/// use freezeout::{layer_decay, Lion, Optimizer};
/// let opt = Optimizer::new(Lion::default())
///     .clip_norm(1.0)
///     .groups(layer_decay(0.75, 13)); // 12 blocks and their embedding; heads are one further
/// ```
pub struct Optimizer {
    rule: Box<dyn Rule>,
    groups: Box<dyn Fn(&Param<'_>) -> Group + Send>,
    clip: Clip,
    state: BTreeMap<String, State>,
}

impl fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Optimizer");
        out.field("rule", &self.rule).field("clip", &self.clip);
        out.field("variables", &self.state.len())
            .finish_non_exhaustive()
    }
}

impl Optimizer {
    /// An optimiser without any state yet. Weight decay applies to tensors of 2 or more dimensions that are not biases,
    /// unless [`Optimizer::groups`] says otherwise.
    pub fn new(rule: impl Rule + 'static) -> Self {
        Self {
            rule: Box::new(rule),
            groups: Box::new(Group::of),
            clip: Clip::None,
            state: BTreeMap::new(),
        }
    }

    /// `adamw`, `sgd`, `lars` or `lion` with its default numbers.
    ///
    /// # Errors
    /// [`Error::Optimizer`] for any other name.
    pub fn named(name: &str) -> Result<Self, Error> {
        match name {
            "adamw" => Ok(Self::new(AdamW::default())),
            "sgd" => Ok(Self::new(Sgd::default())),
            "lars" => Ok(Self::new(Lars::default())),
            "lion" => Ok(Self::new(Lion::default())),
            _ => Err(Error::Optimizer(format!(
                "there is no '{name}', only adamw, sgd, lars and lion"
            ))),
        }
    }

    /// Rate and weight decay by name, layer and shape.
    #[must_use]
    pub fn groups(mut self, groups: impl Fn(&Param<'_>) -> Group + Send + 'static) -> Self {
        self.groups = Box::new(groups);
        self
    }

    /// Scales all gradients by `max / norm` where their global L2 norm is larger than `max`, as PyTorch's
    /// `clip_grad_norm_`. Costs one more reading pass.
    #[must_use]
    pub fn clip_norm(mut self, max: f64) -> Self {
        self.clip = Clip::Norm(max);
        self
    }

    /// Cuts every element of the gradients to `[-max, max]`.
    #[must_use]
    pub fn clip_value(mut self, max: f64) -> Self {
        self.clip = Clip::Value(max);
        self
    }

    fn check(&self) -> Result<(), Error> {
        if let Clip::Norm(max) | Clip::Value(max) = self.clip {
            if max.is_nan() || max <= 0.0 {
                return Err(Error::Optimizer(format!(
                    "gradients cannot be clipped to {max}, it must be a number above 0"
                )));
            }
        }
        for (name, value, below) in self.rule.numbers() {
            if !(value >= 0.0 && value < below) {
                return Err(Error::Optimizer(format!(
                    "{}: {name} is {value}, it must be 0 or more and less than {below}",
                    self.rule.name()
                )));
            }
        }
        Ok(())
    }

    /// The rule it was made with.
    pub fn rule(&self) -> &dyn Rule {
        self.rule.as_ref()
    }

    /// Drops the moments of what has been frozen since the last step, as the next step would: their memory is free at once.
    pub fn forget_frozen(&mut self, freeze: &FreezeOut) {
        // A layer may have been frozen and unfrozen without a step in between: state from before is void all the same.
        self.state
            .retain(|name, state| freeze.live_thaws(name) == Some(state.thaws));
    }

    /// Updates the live variables with the rates that the schedule of `freeze` gives at `step`, and frees the state of
    /// frozen ones. Gives the gradients' global norm before clipping, if [`Optimizer::clip_norm`] asked for it.
    ///
    /// # Errors
    /// [`Error::NoGradient`] if live variables have none, [`Error::Optimizer`] if a number is out of range.
    pub fn step(
        &mut self,
        freeze: &FreezeOut,
        step: usize,
        grads: &Gradients,
    ) -> Result<Option<f64>, Error> {
        self.check()?;
        let missing: Vec<String> = (freeze.live())
            .filter(|(name, ..)| grads.get(name).is_none() && !freeze.may_miss(name))
            .map(|(name, ..)| name.to_owned())
            .collect();
        if !missing.is_empty() {
            return Err(Error::NoGradient(missing));
        }
        self.forget_frozen(freeze);
        let mut norm = None;
        let (mut scale, mut limit) = (1.0, f64::INFINITY);
        match self.clip {
            Clip::None => {}
            Clip::Value(max) => limit = max,
            Clip::Norm(max) => {
                let mut squares = 0.0;
                for (name, ..) in freeze.live() {
                    squares += grads.get(name).map_or(Ok(0.0), sum_of_squares)?;
                }
                // PyTorch's epsilon. A norm that is NaN makes a scale that is NaN, which nobody overlooks.
                scale = max / (squares.sqrt() + 1e-6);
                scale = if scale > 1.0 { 1.0 } else { scale };
                norm = Some(squares.sqrt());
            }
        }
        for (name, layer, var) in freeze.live() {
            let Some(grad) = grads.get(name) else {
                continue;
            };
            let dims = var.dims();
            let group = (self.groups)(&Param { name, layer, dims });
            let factors = [group.lr_scale, group.weight_decay];
            if factors.iter().any(|x| !(x.is_finite() && *x >= 0.0)) {
                return Err(Error::Optimizer(format!("group of '{name}' is {group:?}")));
            }
            let update = Update {
                lr: freeze.schedule().lr(step, layer) * group.lr_scale,
                weight_decay: self.rule.weight_decay() * group.weight_decay,
                updates: 0,
                scale,
                limit,
                trust: 1.0,
            };
            self.update((name, freeze.thaws(layer)), var, grad, update)?;
        }
        Ok(norm)
    }

    fn update(
        &mut self,
        (name, thaws): (&str, u64),
        var: &Var,
        grad: &Tensor,
        mut update: Update,
    ) -> Result<(), Error> {
        if !self.state.contains_key(name) {
            let fresh = State::new(self.rule.as_ref(), var, thaws)?;
            self.state.insert(name.to_owned(), fresh);
        }
        let Some(state) = self.state.get_mut(name) else {
            return Err(Error::State(format!("no state for '{name}'")));
        };
        let grad = grad.contiguous()?;
        if let Some(trust) = self.rule.trust().filter(|_| var.rank() > 1) {
            let seen = match update.limit.is_finite() {
                true => grad.clamp(-update.limit, update.limit)?,
                false => grad.clone(),
            };
            let weights = sum_of_squares(var)?.sqrt();
            let decay = (update.weight_decay, var.as_tensor());
            let direction = squared_sum((update.scale, &seen), decay)?.sqrt();
            if weights > 0.0 && direction > 0.0 {
                update.trust = trust * weights / direction;
            }
        }
        update.updates = state.updates + 1;
        state.apply(self.rule.as_ref(), &update, var, &grad)?;
        state.updates = update.updates;
        Ok(())
    }

    /// The state as tensors, for a checkpoint: `exp_avg.<name>` and so on in the variable's shape and `updates.<name>`
    /// (i64 scalar) for every variable that has been updated and is live.
    ///
    /// # Errors
    /// An error of candle.
    pub fn state(&self, freeze: &FreezeOut) -> Result<BTreeMap<String, Tensor>, Error> {
        state::save(self.rule.as_ref(), &self.state, freeze)
    }

    /// Takes back what [`Optimizer::state`] gave. Variables of which nothing was saved start afresh.
    ///
    /// # Errors
    /// [`Error::State`] names a tensor that is missing beside its siblings, belongs to no variable, to another optimiser, or
    /// has another shape.
    pub fn load_state(
        &mut self,
        freeze: &FreezeOut,
        saved: &BTreeMap<String, Tensor>,
    ) -> Result<(), Error> {
        self.state = state::load(self.rule.as_ref(), freeze, saved)?;
        Ok(())
    }
}

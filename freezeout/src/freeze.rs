//! The frozen set: which variables are live, and a `VarBuilder` that hands the others out as plain tensors.
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};

use crate::check::Check;
use crate::entries::{entries, in_order, Entries, Entry};
use crate::view::View;
use crate::{Error, Gradients, Layers, Policy, Schedule, Spacing};

/// Says yes to some names.
type Names = Box<dyn Fn(&str) -> bool + Send>;

/// Freezes the layers of a model while it trains.
///
/// No magic: all it does is hand out variables through [`FreezeOut::vars`], live ones as they are and frozen ones as
/// plain tensors that share the same memory. A model rebuilt from it after a freeze records nothing below the boundary,
/// so its backward pass, its activations and its gradients are gone. Rebuilding clones reference counts only.
///
/// `running_mean` and `running_var` of a BatchNorm get no gradient and belong to no layer: they are always handed out as
/// they are, so that what the forward pass writes into them stays. A frozen BatchNorm goes on updating them while it runs
/// in training mode; see [`is_live`](crate::is_live) for how a layer learns that it is frozen.
pub struct FreezeOut {
    schedule: Schedule,
    entries: Arc<Entries>,
    device: Device,
    dtype: DType,
    frozen: usize,
    /// How often each layer has been unfrozen: state from before is void.
    thaws: Vec<u64>,
    /// The step of the last advance.
    step: Option<usize>,
    /// Decides what is frozen instead of the schedule.
    policy: Option<Box<dyn Policy>>,
    /// The policy sees gradients through [`FreezeOut::observe`] alone.
    reduced: bool,
    check: Check,
    /// Variables that may go without gradient.
    missing: Option<Names>,
}

impl FreezeOut {
    /// Takes over the variables of `vars`. `layer_of` says which layer a variable belongs to, 0 nearest the input;
    /// variables with `None` never freeze and follow the global learning rate.
    ///
    /// # Errors
    /// A schedule out of range, a layer number beyond the schedule's, a layer without any variable, or numbered blocks
    /// (`blocks.0`, `blocks.1`, ...) whose layers do not rise.
    pub fn new(
        vars: &VarMap,
        schedule: Schedule,
        layer_of: impl Fn(&str) -> Option<usize>,
    ) -> Result<Self, Error> {
        let freeze = Self::build(vars, schedule, layer_of)?;
        in_order(&freeze.entries)?;
        Ok(freeze)
    }

    /// Takes over the variables of `vars`, assigned to layers by [`Layers`].
    ///
    /// # Errors
    /// As [`FreezeOut::new`], and a number of layers that is not the schedule's.
    pub fn with_layers(vars: &VarMap, schedule: Schedule, layers: &Layers) -> Result<Self, Error> {
        if layers.len() != schedule.layers {
            return Err(Error::Layers(format!(
                "there are {} layers, the schedule has {}",
                layers.len(),
                schedule.layers
            )));
        }
        let freeze = Self::build(vars, schedule, |name| layers.layer_of(name))?;
        let unknown = |(name, entry): &(&String, &Entry)| !entry.buffer && !layers.knows(name);
        if let Some((name, _)) = freeze.entries.iter().find(unknown) {
            return Err(Error::Layers(format!(
                "variable '{name}' was made after the layers were described"
            )));
        }
        Ok(freeze)
    }

    fn build(
        vars: &VarMap,
        schedule: Schedule,
        layer_of: impl Fn(&str) -> Option<usize>,
    ) -> Result<Self, Error> {
        schedule.validate()?;
        let entries = entries(vars, schedule.layers, layer_of)?;
        let (device, dtype) = entries
            .values()
            .next()
            .map(|e| (e.var.device().clone(), e.var.dtype()))
            .unwrap_or((Device::Cpu, DType::F32));
        let thaws = vec![0; schedule.layers];
        Ok(Self {
            schedule,
            entries: Arc::new(entries),
            device,
            dtype,
            frozen: 0,
            thaws,
            step: None,
            policy: None,
            reduced: false,
            check: Check::default(),
            missing: None,
        })
    }

    /// Lets `policy` decide how many layers are frozen. The schedule then gives only the learning rates, its spacing becomes
    /// [`Spacing::None`], and the layers that never freeze (`keep_last`).
    #[must_use]
    pub fn with_policy(mut self, policy: impl Policy + 'static) -> Self {
        self.schedule.spacing = Spacing::None;
        self.policy = Some(Box::new(policy));
        self
    }

    /// Shows a policy no gradients in [`FreezeOut::backward`], but those alone that [`FreezeOut::observe`] is given: with data
    /// parallel training ([`distributed`](crate::distributed)) each rank has gradients of its own, and ranks that decided on
    /// them would freeze different layers. Also once a step then, not once a micro-step.
    #[must_use]
    pub fn with_reduced_gradients(mut self) -> Self {
        self.reduced = true;
        self
    }

    /// Variables that may go without gradient in a step (a pooler that nobody uses, an expert without tokens, a dropped
    /// layer): [`FreezeOut::backward`] does not complain about them, and an [`Optimizer`](crate::Optimizer) leaves them as
    /// they are when they have none.
    #[must_use]
    pub fn allow_missing(mut self, names: impl Fn(&str) -> bool + Send + 'static) -> Self {
        self.missing = Some(Box::new(names));
        self
    }

    /// Whether a policy decides instead of the schedule.
    pub fn has_policy(&self) -> bool {
        self.policy.is_some()
    }

    pub(crate) fn may_miss(&self, name: &str) -> bool {
        self.missing.as_ref().is_some_and(|names| names(name))
    }

    /// How often a layer has been unfrozen.
    pub(crate) fn thaws(&self, layer: Option<usize>) -> u64 {
        layer
            .and_then(|layer| self.thaws.get(layer).copied())
            .unwrap_or(0)
    }

    fn set_frozen(&mut self, frozen: usize) {
        for thaws in &mut self.thaws[frozen.min(self.frozen)..self.frozen] {
            *thaws += 1;
        }
        self.frozen = frozen;
    }

    /// Where warnings go: a frozen set that does not shrink the graph. Standard error, unless told otherwise.
    #[must_use]
    pub fn on_warning(mut self, handler: impl Fn(&str) + Send + 'static) -> Self {
        self.check.handler = Some(Box::new(handler));
        self
    }

    /// Turns the checks of [`FreezeOut::backward`] off, all but the one for missing gradients.
    #[must_use]
    pub fn without_checks(mut self) -> Self {
        self.check.off = true;
        self
    }

    /// Moves to `step`. `true` if the frozen set changed: rebuild the model from [`FreezeOut::vars`] then.
    ///
    /// The frozen set may shrink again, by the schedule or because a smaller step is given; the moments of layers that are
    /// unfrozen start afresh.
    ///
    /// # Errors
    /// None with a fixed schedule; what the policy reports.
    pub fn advance(&mut self, step: usize) -> Result<bool, Error> {
        let frozen = match self.policy.take() {
            None => self.schedule.frozen(step),
            // A policy has a memory: asking it twice for one step would count twice.
            Some(policy) if self.step == Some(step) => {
                self.policy = Some(policy);
                self.frozen
            }
            Some(mut policy) => {
                let decided = policy.advance(step, self);
                self.policy = Some(policy);
                decided?.min(self.schedule.layers - self.schedule.keep_last)
            }
        };
        self.step = Some(step);
        let changed = frozen != self.frozen;
        self.set_frozen(frozen);
        Ok(changed)
    }

    /// Freezes the first `layers` layers at once, whatever the schedule says, until the next [`FreezeOut::advance`]. Learning
    /// rates stay the schedule's: 0 for a layer that it has frozen.
    pub fn freeze_first(&mut self, layers: usize) {
        self.set_frozen(layers.min(self.schedule.layers));
    }

    /// A `VarBuilder` over the variables as they are now: live ones as variables, frozen ones as plain tensors.
    pub fn vars(&self) -> VarBuilder<'static> {
        let view = View::new(self.entries.clone(), self.frozen);
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
            .filter(|(_, e)| !e.buffer && !e.is_frozen(self.frozen))
            .map(|(name, e)| (name.as_str(), e.layer, &e.var))
    }

    /// Name and variable of everything, frozen or not, in order of the names.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|(n, e)| (n.as_str(), &e.var))
    }

    /// Layer and variable of everything that could train, by name.
    pub(crate) fn layers(&self) -> BTreeMap<&str, (Option<usize>, &Var)> {
        let trainable = self.entries.iter().filter(|(_, entry)| !entry.buffer);
        trainable
            .map(|(name, e)| (name.as_str(), (e.layer, &e.var)))
            .collect()
    }

    /// Names and variables that the forward pass itself updates (a BatchNorm's running statistics).
    pub fn buffers(&self) -> impl Iterator<Item = (&str, &Var)> {
        let buffers = self.entries.iter().filter(|(_, entry)| entry.buffer);
        buffers.map(|(name, entry)| (name.as_str(), &entry.var))
    }

    /// Whether the variable of this name trains now.
    pub fn is_live(&self, name: &str) -> bool {
        self.entries
            .get(name)
            .is_some_and(|e| !e.buffer && !e.is_frozen(self.frozen))
    }

    /// How often the layer of a variable that trains now has been unfrozen.
    pub(crate) fn live_thaws(&self, name: &str) -> Option<u64> {
        let entry = self.entries.get(name).filter(|_| self.is_live(name))?;
        Some(self.thaws(entry.layer))
    }

    /// Runs the backward pass of `loss` and gives the gradients of the live variables by name.
    ///
    /// Checks the graph once after each change of the frozen set: a frozen set that does not shrink it, most often because
    /// a live variable lies below the boundary, is reported with the names (see [`FreezeOut::on_warning`]).
    ///
    /// # Errors
    /// [`Error::NoGradient`] names live variables that the loss did not reach, [`Error::NotRebuilt`] frozen ones that it
    /// still reaches.
    pub fn backward(&mut self, loss: &Tensor) -> Result<Gradients, Error> {
        self.backward_by(loss, Tensor::backward)
    }

    /// The same with a backward pass of one's own instead of candle's, such as candle-vit's `ops::backward`.
    ///
    /// # Errors
    /// As [`FreezeOut::backward`].
    pub fn backward_by(
        &mut self,
        loss: &Tensor,
        backward: impl FnOnce(&Tensor) -> candle_core::Result<GradStore>,
    ) -> Result<Gradients, Error> {
        let step = self.step.filter(|_| self.policy.is_none());
        let last = step.is_some_and(|step| self.schedule.frozen(step + 1) != self.frozen);
        self.check.graph(loss, &self.entries, self.frozen, last)?;
        let mut grads = backward(loss)?;
        let mut missing = Vec::new();
        let mut by_name = BTreeMap::new();
        for (name, _, var) in self.live() {
            match grads.remove(var) {
                // A gradient may be tracked itself, which would keep this step's graph alive.
                Some(grad) => drop(by_name.insert(name.to_owned(), grad.detach())),
                None if self.may_miss(name) => {}
                None => missing.push(name.to_owned()),
            }
        }
        if !missing.is_empty() {
            return Err(Error::NoGradient(missing));
        }
        drop(grads);
        let grads = Gradients::new(by_name);
        if !self.reduced {
            self.show(&grads)?;
        }
        Ok(grads)
    }

    /// Shows a policy the gradients of a step after [`Gradients::all_reduce`]; without a policy nothing happens. Call it at
    /// every step.
    ///
    /// # Errors
    /// [`Error::Policy`] without [`FreezeOut::with_reduced_gradients`], since the policy has seen each rank's own then; what
    /// the policy reports.
    pub fn observe(&mut self, grads: &Gradients) -> Result<(), Error> {
        self.reduced_alone()?;
        self.show(grads)
    }

    /// Refuses a policy that is shown each rank's own gradients.
    pub(crate) fn reduced_alone(&self) -> Result<(), Error> {
        if self.policy.is_none() || self.reduced {
            return Ok(());
        }
        Err(Error::Policy(
            "backward() shows it each rank's own gradients; make it with FreezeOut::with_reduced_gradients".into(),
        ))
    }

    fn show(&mut self, grads: &Gradients) -> Result<(), Error> {
        let Some(mut policy) = self.policy.take() else {
            return Ok(());
        };
        let observed = policy.observe(self, grads);
        self.policy = Some(policy);
        observed
    }

    /// Whether gradients reach the policy through [`FreezeOut::observe`] alone.
    pub(crate) fn reduced(&self) -> bool {
        self.reduced
    }

    /// Shows a policy that looks at outputs ([`Plasticity::of_outputs`](crate::Plasticity::of_outputs)) the outputs of the
    /// layers for one fixed batch; the first dimension counts its samples.
    ///
    /// # Errors
    /// A number of outputs that is not that of the layers; what the policy reports.
    pub fn observe_outputs(&mut self, outputs: &[Tensor]) -> Result<(), Error> {
        if outputs.len() != self.schedule.layers {
            return Err(Error::Policy(format!(
                "{} outputs for {} layers",
                outputs.len(),
                self.schedule.layers
            )));
        }
        match &mut self.policy {
            Some(policy) => policy.observe_outputs(outputs),
            None => Ok(()),
        }
    }

    /// What a checkpoint must keep beside weights and optimiser: nothing under a schedule, whose state is the step; under
    /// a policy `freeze.frozen`, `freeze.step` and the policy's own tensors.
    ///
    /// # Errors
    /// An error of candle.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let Some(policy) = &self.policy else {
            return Ok(BTreeMap::new());
        };
        let number = |n: usize| Tensor::new(n as i64, &Device::Cpu);
        let mut out = BTreeMap::from([("freeze.frozen".to_owned(), number(self.frozen)?)]);
        if let Some(step) = self.step {
            out.insert("freeze.step".to_owned(), number(step)?);
        }
        for (name, tensor) in policy.state(self)? {
            out.insert(format!("policy.{name}"), tensor);
        }
        Ok(out)
    }

    /// Takes back what [`FreezeOut::state`] gave; the weights must be in their variables already. Rebuild the model from
    /// [`FreezeOut::vars`] afterwards, and go on with the next step.
    ///
    /// # Errors
    /// [`Error::Policy`] names what is missing or does not fit.
    pub fn load_state(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let Some(mut policy) = self.policy.take() else {
            return match saved.keys().next() {
                Some(key) => Err(Error::Policy(format!("'{key}', but there is no policy"))),
                None => Ok(()),
            };
        };
        let loaded = self.load_policy(policy.as_mut(), saved);
        self.policy = Some(policy);
        loaded
    }

    fn load_policy(
        &mut self,
        policy: &mut dyn Policy,
        saved: &BTreeMap<String, Tensor>,
    ) -> Result<(), Error> {
        let number = |key: &str| -> Result<Option<usize>, Error> {
            let Some(tensor) = saved.get(key) else {
                return Ok(None);
            };
            let value = tensor
                .to_scalar::<i64>()
                .map_err(|e| Error::Policy(format!("'{key}': {e}")))?;
            let value = usize::try_from(value);
            value
                .map(Some)
                .map_err(|_| Error::Policy(format!("'{key}' is less than 0")))
        };
        let most = self.schedule.layers - self.schedule.keep_last;
        let frozen = match number("freeze.frozen")? {
            Some(frozen) if frozen <= most => frozen,
            Some(frozen) => {
                return Err(Error::Policy(format!(
                    "'freeze.frozen' is {frozen}, at most {most} layers may freeze"
                )))
            }
            None => return Err(Error::Policy("'freeze.frozen' is missing".into())),
        };
        let step = number("freeze.step")?;
        let mut own = BTreeMap::new();
        for (key, tensor) in saved {
            match key.strip_prefix("policy.") {
                Some(name) => drop(own.insert(name.to_owned(), tensor.clone())),
                None if key == "freeze.frozen" || key == "freeze.step" => {}
                None => return Err(Error::Policy(format!("'{key}' is not part of it"))),
            }
        }
        policy.load_state(self, &own)?;
        self.set_frozen(frozen);
        self.step = step;
        Ok(())
    }
}

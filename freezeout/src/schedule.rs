//! When each layer freezes and which learning rate it has until then.
use serde::{Deserialize, Serialize};

use crate::{Change, Decay, Error, Spacing};

/// Which learning rate a layer has before it freezes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerLr {
    /// Each layer has a decay of its own that ends at 0 when it freezes, and starts from `lr / rho_i`, so that every
    /// layer's learning rate has the same integral (FreezeOut, section 2).
    Scaled,
    /// Each layer has a decay of its own that ends at 0 when it freezes, and starts from `lr`.
    Unscaled,
    /// All layers follow one decay from `lr` to `min_lr`; a layer simply leaves when its time comes.
    Shared,
}

/// How the learning rate rises at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warmup {
    /// Every layer rises from 0 to `lr`; under [`LayerLr::Scaled`] the rate then jumps to `lr / rho_i`.
    Common,
    /// Every layer rises from 0 to its own first rate, so nothing jumps.
    Continuous,
}

/// Freezing times and learning rates of all layers: a pure function of (step, layer), so a checkpoint needs no more
/// than the step.
///
/// Layers are numbered 0 (nearest the input) to `N = layers - 1`. With `J = steps - warmup_steps` and
/// `j' = step - warmup_steps`:
///
/// ```text
/// rho_i = s(t0 + (1 - t0) * i / N)
/// layer i is frozen from the first step with j' > J * rho_i
/// lr_i  = lr_i0 * d(j' / (J * rho_i))          d the decay: (1 + cos(pi * x)) / 2
/// ```
///
/// Source: FreezeOut, arXiv 1706.04983, section 2. The last layer has `rho = 1` and never freezes.
///
/// ```
/// use freezeout::Schedule;
/// let schedule = Schedule::cubic(0.8, 13, 1000); // 13 layers, 1000 steps
/// assert_eq!(schedule.freeze_step(0), Some(513)); // 0.8^3 = 0.512 of the run
/// assert_eq!(schedule.freeze_step(12), None);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Optimiser steps of the whole run, warm-up included.
    pub steps: usize,
    /// Optimiser steps in which the learning rate rises from 0. A fixed spacing freezes nothing in them.
    pub warmup_steps: usize,
    /// Number of layers, `N + 1`.
    pub layers: usize,
    /// How the freezing times are spread.
    pub spacing: Spacing,
    /// Where layer 0 freezes, before spacing, as a fraction in (0, 1]. 1 means that nothing freezes.
    pub t0: f64,
    /// This many successive layers freeze together, when the first of them would: `rho` uses `group * (i / group)`.
    #[serde(default = "one")]
    pub group: usize,
    /// The last layers that never freeze, at least 1 ([`Spacing::At`] may do without: 0).
    #[serde(default = "one")]
    pub keep_last: usize,
    /// Which learning rate a layer has.
    pub layer_lr: LayerLr,
    /// How the learning rate rises.
    pub warmup: Warmup,
    /// How the learning rate falls.
    #[serde(default)]
    pub decay: Decay,
    /// Highest learning rate.
    pub lr: f64,
    /// Where the global decay ends ([`LayerLr::Shared`], and variables that belong to no layer).
    pub min_lr: f64,
}

/// Shortest part of a run for which scaled rates are allowed in a plan.
const SHORTEST: f64 = 0.05;

fn one() -> usize {
    1
}

impl Schedule {
    /// Cubic spacing, one shared cosine from 1e-3 to 0, no warm-up. Change the fields for anything else.
    pub fn cubic(t0: f64, layers: usize, steps: usize) -> Self {
        Self {
            steps,
            warmup_steps: 0,
            layers,
            spacing: Spacing::Cubic,
            t0,
            group: 1,
            keep_last: 1,
            layer_lr: LayerLr::Shared,
            warmup: Warmup::Common,
            decay: Decay::Cosine,
            lr: 1e-3,
            min_lr: 0.0,
        }
    }

    /// Layer `i` freezes at step `at[i]`; `None` = never. There are as many layers as entries.
    ///
    /// # Errors
    /// [`Error::Schedule`] if a layer would freeze before one that is nearer the input: only a prefix can be cut off.
    pub fn freeze_at(at: &[Option<usize>], steps: usize) -> Result<Self, Error> {
        let time = |step: &Option<usize>| step.unwrap_or(usize::MAX);
        if let Some(i) = (1..at.len()).find(|&i| time(&at[i]) < time(&at[i - 1])) {
            return Err(Error::Schedule(format!(
                "layer {i} would freeze before layer {}, which is nearer the input: {at:?}",
                i - 1
            )));
        }
        let mut changes: Vec<Change> = Vec::new();
        for (layer, step) in at.iter().enumerate() {
            let (Some(step), frozen) = (*step, layer + 1) else {
                break;
            };
            match changes.last_mut() {
                Some(last) if last.step == step => last.frozen = frozen,
                _ => changes.push(Change { step, frozen }),
            }
        }
        Ok(Self::plan(changes, at.len(), steps))
    }

    /// Gradual unfreezing (ULMFiT, arXiv 1801.06146): at first only the last layer trains, and from each step in `at` one
    /// layer more, from the head down. Variables in no layer train all the time.
    ///
    /// ```
    /// use freezeout::Schedule;
    /// let schedule = Schedule::gradual_unfreeze(&[100, 200], 4, 1000);
    /// assert_eq!([0, 99, 100, 200].map(|step| schedule.frozen(step)), [3, 3, 2, 1]);
    /// ```
    pub fn gradual_unfreeze(at: &[usize], layers: usize, steps: usize) -> Self {
        let frozen = |thawed: usize| layers.saturating_sub(1 + thawed);
        let first = Change {
            step: 0,
            frozen: frozen(0),
        };
        let later = at.iter().enumerate().map(|(i, &step)| Change {
            step,
            frozen: frozen(i + 1),
        });
        Self::plan(std::iter::once(first).chain(later).collect(), layers, steps)
    }

    fn plan(changes: Vec<Change>, layers: usize, steps: usize) -> Self {
        Self {
            spacing: Spacing::At(changes),
            keep_last: 0,
            ..Self::cubic(1.0, layers, steps)
        }
    }

    /// Refuses numbers that make no schedule.
    ///
    /// # Errors
    /// [`Error::Schedule`] names the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Schedule(message));
        if !(self.t0 > 0.0 && self.t0 <= 1.0) {
            return fail(format!("t0 is {}, it must lie in (0, 1]", self.t0));
        }
        if let Spacing::Power(power) = self.spacing {
            if !(power.is_finite() && power > 0.0) {
                return fail(format!(
                    "spacing is power:{power}, the power must be a finite number above 0"
                ));
            }
        }
        if self.layers == 0 {
            return fail("layers is 0, there must be at least one".into());
        }
        if !matches!(self.spacing, Spacing::At(_)) && self.ratio(0) < 1e-9 {
            return fail(format!(
                "t0 is {}, with which layer 0 would freeze before it has trained at all",
                self.t0
            ));
        }
        if self.group == 0 {
            return fail("group is 0, it must be at least 1".into());
        }
        if self.keep_last > self.layers {
            return fail(format!(
                "keep_last is {}, there are {} layers",
                self.keep_last, self.layers
            ));
        }
        if self.steps == 0 {
            return fail("steps is 0, there must be at least one".into());
        }
        if self.steps > 1 << 48 {
            return fail(format!(
                "steps is {}, at most 2^48 are possible",
                self.steps
            ));
        }
        if self.warmup_steps >= self.steps {
            return fail(format!(
                "warmup_steps is {}, it must be less than steps ({})",
                self.warmup_steps, self.steps
            ));
        }
        for (name, value) in [("lr", self.lr), ("min_lr", self.min_lr)] {
            if !(value.is_finite() && value >= 0.0) {
                return fail(format!(
                    "{name} is {value}, it must be a finite number, 0 or more"
                ));
            }
        }
        if let Spacing::At(changes) = &self.spacing {
            let most = self.layers - self.keep_last;
            if let Some(change) = changes.iter().find(|change| change.frozen > most) {
                return fail(format!(
                    "spacing {} freezes {} layers, at most {most} of {} may freeze (keep_last is {})",
                    self.spacing, change.frozen, self.layers, self.keep_last
                ));
            }
            if let Some(pair) = changes.windows(2).find(|pair| pair[0].step >= pair[1].step) {
                return fail(format!(
                    "spacing {}: step {} comes after step {}, steps must rise",
                    self.spacing, pair[1].step, pair[0].step
                ));
            }
            if let Some(change) = changes.iter().find(|change| change.step >= self.steps) {
                return fail(format!(
                    "spacing {}: step {} lies beyond the run's {} steps",
                    self.spacing, change.step, self.steps
                ));
            }
            if self.layer_lr == LayerLr::Scaled {
                self.scales(changes)?;
            }
        }
        Ok(())
    }

    /// Refuses stretches of a plan that are so short that `lr / rho` has nothing to do with `lr` any more.
    fn scales(&self, changes: &[Change]) -> Result<(), Error> {
        let starts = std::iter::once(0).chain(changes.iter().map(|change| change.step));
        for step in starts {
            for layer in self.frozen(step)..self.layers {
                let rho = self.stretch(step, layer).rho;
                if rho < SHORTEST {
                    return Err(Error::Schedule(format!(
                        "spacing {}: layer {layer} trains for {:.1} % of the steps from step {step} on, for which scaled \
                         rates are {:.0} times lr; use unscaled or shared ones",
                        self.spacing,
                        100.0 * rho,
                        1.0 / rho
                    )));
                }
            }
        }
        Ok(())
    }

    /// `rho_i`: the fraction of the steps after warm-up during which layer `i` trains. Under [`Spacing::At`] that of its
    /// first stretch of training.
    pub fn ratio(&self, layer: usize) -> f64 {
        if let Spacing::At(_) = self.spacing {
            let first = self.first_live(layer);
            return first.map_or(0.0, |step| self.stretch(step, layer).rho);
        }
        if layer + self.keep_last.max(1) >= self.layers {
            return 1.0;
        }
        let last = (self.layers - 1) as f64;
        let group = self.group.max(1);
        let i = layer / group * group;
        self.spacing
            .apply(self.t0 + (1.0 - self.t0) * i as f64 / last)
    }

    fn after_warmup(&self) -> f64 {
        self.steps.saturating_sub(self.warmup_steps) as f64
    }

    /// Whether layer `i` does not train at `step`.
    pub fn is_frozen(&self, step: usize, layer: usize) -> bool {
        match &self.spacing {
            Spacing::At(changes) => layer < frozen_at(changes, step),
            _ => {
                let ratio = self.ratio(layer);
                // A layer that trains to the end does so however often the last step is repeated.
                ratio < 1.0
                    && step > self.warmup_steps
                    && (step - self.warmup_steps) as f64 > self.after_warmup() * ratio
            }
        }
    }

    /// The first step at which layer `i` is frozen, `None` if it trains from start to end.
    pub fn freeze_step(&self, layer: usize) -> Option<usize> {
        let step = match &self.spacing {
            Spacing::At(changes) => changes.iter().find(|c| layer < c.frozen)?.step,
            _ if self.ratio(layer) >= 1.0 => return None,
            _ => {
                let whole = (self.after_warmup() * self.ratio(layer)).floor() as usize + 1;
                self.warmup_steps + whole
            }
        };
        (step < self.steps).then_some(step)
    }

    /// How many layers, counted from the input, are frozen at `step`.
    pub fn frozen(&self, step: usize) -> usize {
        if let Spacing::At(changes) = &self.spacing {
            return frozen_at(changes, step);
        }
        (0..self.layers)
            .take_while(|&layer| self.is_frozen(step, layer))
            .count()
    }

    /// Every step at which the number of frozen layers changes, as an explicit plan: print it, or edit it and give it
    /// back as [`Spacing::At`], for instance to unfreeze everything near the end.
    pub fn changes(&self) -> Vec<Change> {
        let mut steps: Vec<usize> = match &self.spacing {
            Spacing::At(changes) => changes.iter().map(|change| change.step).collect(),
            _ => (0..self.layers)
                .filter_map(|i| self.freeze_step(i))
                .collect(),
        };
        steps.sort_unstable();
        let mut changes: Vec<Change> = Vec::new();
        for step in steps.into_iter().filter(|&step| step < self.steps) {
            let frozen = self.frozen(step);
            if frozen != changes.last().map_or(0, |last| last.frozen) {
                changes.push(Change { step, frozen });
            }
        }
        changes
    }

    /// Learning rate of a layer at `step`; `None` stands for variables that belong to no layer and follow the global
    /// decay. A frozen layer has rate 0.
    pub fn lr(&self, step: usize, layer: Option<usize>) -> f64 {
        let whole = Stretch {
            start: self.warmup_steps,
            span: self.after_warmup(),
            rho: 1.0,
        };
        let (first, last, stretch) = match layer {
            Some(layer) if self.is_frozen(step, layer) => return 0.0,
            None => (self.lr, self.min_lr, whole),
            Some(_) if self.layer_lr == LayerLr::Shared => (self.lr, self.min_lr, whole),
            Some(layer) => {
                let stretch = self.stretch(step, layer);
                let first = match self.layer_lr {
                    LayerLr::Scaled => self.lr / stretch.rho,
                    LayerLr::Unscaled | LayerLr::Shared => self.lr,
                };
                (first, 0.0, stretch)
            }
        };
        if step < self.warmup_steps {
            let target = match self.warmup {
                Warmup::Common => self.lr,
                Warmup::Continuous => first,
            };
            return target * step as f64 / self.warmup_steps as f64;
        }
        let progress = step.saturating_sub(stretch.start) as f64 / stretch.span;
        last + (first - last) * self.decay.at(progress.min(1.0))
    }

    /// The stretch of training that layer `i` is in at `step`, at which it must be live.
    fn stretch(&self, step: usize, layer: usize) -> Stretch {
        let Spacing::At(changes) = &self.spacing else {
            let rho = self.ratio(layer);
            return Stretch {
                start: self.warmup_steps,
                span: self.after_warmup() * rho,
                rho,
            };
        };
        let frozen = |change: &Change| layer < change.frozen;
        let now = changes.partition_point(|change| change.step <= step);
        let start = self.live_since(step, layer);
        let end = changes[now..].iter().find(|&change| frozen(change));
        let end = end.map_or(self.steps, |change| change.step.min(self.steps));
        let start = start.max(self.warmup_steps);
        let span = end.saturating_sub(start).max(1) as f64;
        Stretch {
            start,
            span,
            rho: (span / self.after_warmup()).min(1.0),
        }
    }

    /// The first step of the stretch of training that layer `i` is in at `step`: 0 if it has never been frozen, `step` if
    /// it is frozen.
    pub fn live_since(&self, step: usize, layer: usize) -> usize {
        if self.is_frozen(step, layer) {
            return step;
        }
        let Spacing::At(changes) = &self.spacing else {
            return 0;
        };
        let now = changes.partition_point(|change| change.step <= step);
        let last_frozen = changes[..now].iter().rposition(|c| layer < c.frozen);
        last_frozen.map_or(0, |last| changes.get(last + 1).map_or(step, |c| c.step))
    }

    /// The first step at which a layer trains.
    fn first_live(&self, layer: usize) -> Option<usize> {
        let changes = self.changes();
        let mut steps = std::iter::once(0).chain(changes.iter().map(|change| change.step));
        steps.find(|&step| !self.is_frozen(step, layer))
    }
}

/// A stretch of steps in which a layer trains.
struct Stretch {
    /// First step, not in warm-up.
    start: usize,
    /// Number of steps.
    span: f64,
    /// `span` over the steps after warm-up.
    rho: f64,
}

fn frozen_at(changes: &[Change], step: usize) -> usize {
    let now = changes.partition_point(|change| change.step <= step);
    now.checked_sub(1).map_or(0, |last| changes[last].frozen)
}

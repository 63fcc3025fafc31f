//! When each layer freezes and which learning rate it has until then.
use serde::{Deserialize, Serialize};

use crate::Error;

/// How the freezing times are spread over the layers: `s(x)` in `rho_i = s(t0 + (1 - t0) * i / N)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// `s(x) = x`: the layers freeze at even distances.
    Linear,
    /// `s(x) = x^2`.
    Squared,
    /// `s(x) = x^3`: early layers freeze early, late layers late (FreezeOut's best).
    Cubic,
    /// No layer ever freezes.
    None,
}

/// Which learning rate a layer has before it freezes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerLr {
    /// Each layer has a cosine of its own that ends at 0 when it freezes, and starts from `lr / rho_i`, so that every
    /// layer's learning rate has the same integral (FreezeOut, section 2).
    Scaled,
    /// Each layer has a cosine of its own that ends at 0 when it freezes, and starts from `lr`.
    Unscaled,
    /// All layers follow one cosine from `lr` to `min_lr`; a layer simply leaves when its time comes.
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
/// lr_i  = lr_i0 / 2 * (1 + cos(pi * j' / (J * rho_i)))
/// ```
///
/// Source: FreezeOut, arXiv 1706.04983, section 2. Layer N has `rho = 1` and never freezes.
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
    /// Optimiser steps in which the learning rate rises from 0. Nothing freezes in them.
    pub warmup_steps: usize,
    /// Number of layers, `N + 1`.
    pub layers: usize,
    /// How the freezing times are spread.
    pub spacing: Spacing,
    /// Where layer 0 freezes, before spacing, as a fraction in (0, 1]. 1 means that nothing freezes.
    pub t0: f64,
    /// Which learning rate a layer has.
    pub layer_lr: LayerLr,
    /// How the learning rate rises.
    pub warmup: Warmup,
    /// Highest learning rate.
    pub lr: f64,
    /// Where the global cosine ends ([`LayerLr::Shared`], and variables that belong to no layer).
    pub min_lr: f64,
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
            layer_lr: LayerLr::Shared,
            warmup: Warmup::Common,
            lr: 1e-3,
            min_lr: 0.0,
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
        if self.layers > 0 && self.ratio(0) < 1e-9 {
            return fail(format!(
                "t0 is {}, with which layer 0 would freeze before it has trained at all",
                self.t0
            ));
        }
        if self.layers == 0 {
            return fail("layers is 0, there must be at least one".into());
        }
        if self.steps == 0 {
            return fail("steps is 0, there must be at least one".into());
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
        Ok(())
    }

    /// `rho_i`: the fraction of the steps after warm-up during which layer `i` trains.
    pub fn ratio(&self, layer: usize) -> f64 {
        let last = self.layers.saturating_sub(1).max(1) as f64;
        let x = if layer + 1 >= self.layers {
            1.0
        } else {
            self.t0 + (1.0 - self.t0) * layer as f64 / last
        };
        match self.spacing {
            Spacing::Linear => x,
            Spacing::Squared => x * x,
            Spacing::Cubic => x * x * x,
            Spacing::None => 1.0,
        }
    }

    fn after_warmup(&self) -> f64 {
        self.steps.saturating_sub(self.warmup_steps) as f64
    }

    /// Whether layer `i` no longer trains at `step`.
    pub fn is_frozen(&self, step: usize, layer: usize) -> bool {
        step > self.warmup_steps
            && (step - self.warmup_steps) as f64 > self.after_warmup() * self.ratio(layer)
    }

    /// The first step at which layer `i` is frozen, `None` if it trains to the end.
    pub fn freeze_step(&self, layer: usize) -> Option<usize> {
        let whole = (self.after_warmup() * self.ratio(layer)).floor() as usize + 1;
        let step = self.warmup_steps + whole;
        (step < self.steps).then_some(step)
    }

    /// How many layers, counted from the input, are frozen at `step`.
    pub fn frozen(&self, step: usize) -> usize {
        (0..self.layers)
            .take_while(|&layer| self.is_frozen(step, layer))
            .count()
    }

    /// Learning rate of a layer at `step`; `None` stands for variables that belong to no layer and follow the global
    /// cosine. A frozen layer has rate 0.
    pub fn lr(&self, step: usize, layer: Option<usize>) -> f64 {
        let shared = |from: f64, to: f64, span: f64| {
            let progress = (step.saturating_sub(self.warmup_steps)) as f64 / span;
            to + (from - to) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        };
        let Some(layer) = layer else {
            return if step < self.warmup_steps {
                self.lr * step as f64 / self.warmup_steps as f64
            } else {
                shared(self.lr, self.min_lr, self.after_warmup())
            };
        };
        if self.is_frozen(step, layer) {
            return 0.0;
        }
        let ratio = self.ratio(layer);
        let first = match self.layer_lr {
            LayerLr::Scaled => self.lr / ratio,
            LayerLr::Unscaled | LayerLr::Shared => self.lr,
        };
        if step < self.warmup_steps {
            let target = match self.warmup {
                Warmup::Common => self.lr,
                Warmup::Continuous => first,
            };
            return target * step as f64 / self.warmup_steps as f64;
        }
        match self.layer_lr {
            LayerLr::Shared => shared(first, self.min_lr, self.after_warmup()),
            LayerLr::Scaled | LayerLr::Unscaled => shared(first, 0.0, self.after_warmup() * ratio),
        }
    }
}

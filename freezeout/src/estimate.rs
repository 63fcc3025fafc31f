//! What a schedule saves, from the costs of the layers.
use std::fmt;

use crate::{Cluster, Error, Schedule, Spacing};

/// What one layer costs, or the rest of the model that never freezes. Any units, the same for all layers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LayerCost {
    /// Compute of the forward pass. The backward pass takes twice as much: once for the weights' gradients, once for the
    /// input's.
    pub forward: f64,
    /// The part of `forward` whose input is the layer's input (a block's first matmul, the whole of a patch embedding). When
    /// the layer is the first live one, the gradient of that input is not needed.
    pub entry: f64,
    /// Forward compute of branches that hang on the layer and are dropped with it (an auxiliary loss, a decoder).
    pub branch: f64,
    /// Memory that the forward pass keeps for the backward pass, branches included.
    pub activations: f64,
    /// Number of parameters, and so of gradients that workers exchange, branches included.
    pub parameters: f64,
}

/// What one training step costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepCost {
    /// Compute or time, forward and backward.
    pub compute: f64,
    /// The backward pass's part of it. A [`Cluster`] sends gradients meanwhile.
    pub backward: f64,
    /// Memory for activations.
    pub activations: f64,
    /// Gradients computed, and communicated if there are several workers.
    pub gradients: f64,
}

/// The cost of a step for every number of frozen layers, from FLOPs ([`Costs::of_layers`]) or measured
/// ([`profile`](crate::profile), or [`Costs::new`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Costs(pub(crate) Vec<StepCost>);

impl Costs {
    /// Of steps with 0, 1, ... all layers frozen.
    pub fn new(steps: Vec<StepCost>) -> Self {
        Self(steps)
    }

    /// With f layers frozen a step computes
    ///
    /// ```text
    /// sum_i forward_i + sum_{i >= f} (2 forward_i + 3 branch_i) - entry_f + 3 rest.forward
    /// ```
    ///
    /// and keeps activations and gradients of layers f and up and of the rest.
    pub fn of_layers(layers: &[LayerCost], rest: LayerCost) -> Self {
        let forward: f64 = layers.iter().map(|layer| layer.forward).sum();
        let step = |frozen: usize| {
            let live = &layers[frozen..];
            let backward: f64 = live.iter().map(|l| 2.0 * l.forward + 3.0 * l.branch).sum();
            let not_needed = live.first().map_or(rest.entry, |layer| layer.entry);
            let sum =
                |part: fn(&LayerCost) -> f64| live.iter().map(part).sum::<f64>() + part(&rest);
            let twice: f64 = live.iter().map(|l| 2.0 * (l.forward + l.branch)).sum();
            StepCost {
                compute: forward + backward - not_needed + 3.0 * (rest.forward + rest.branch),
                backward: twice - not_needed + 2.0 * (rest.forward + rest.branch),
                activations: sum(|l| l.activations),
                gradients: sum(|l| l.parameters),
            }
        };
        Self((0..=layers.len()).map(step).collect())
    }

    /// The same in other units: every compute and every number of gradients times these. A [`Cluster`] takes seconds and bytes.
    ///
    /// ```
    /// use freezeout::{Costs, LayerCost};
    /// let layer = LayerCost { forward: 2e9, parameters: 7e6, ..Default::default() };
    /// let costs = Costs::of_layers(&[layer; 3], LayerCost::default());
    /// let whole = costs.step(0).compute;
    /// let costs = costs.scaled(0.5 / whole, 4.0); // a whole step lasts 0.5 s, gradients are f32
    /// assert_eq!(costs.step(0).gradients, 3.0 * 28e6);
    /// ```
    pub fn scaled(mut self, compute: f64, gradients: f64) -> Self {
        for step in &mut self.0 {
            step.compute *= compute;
            step.backward *= compute;
            step.gradients *= gradients;
        }
        self
    }

    /// How many layers can freeze.
    pub(crate) fn layers(&self) -> usize {
        self.0.len().saturating_sub(1)
    }

    /// The cost of a step with this many layers frozen; more than there are count as all.
    pub fn step(&self, frozen: usize) -> StepCost {
        let frozen = frozen.min(self.layers());
        self.0.get(frozen).copied().unwrap_or_default()
    }
}

/// The part of compute, of activation memory (averaged over the run) and of gradient communication that a schedule saves
/// against training everything to the end. 0.157 = 15.7 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Part of the compute, or of the time if the costs are times.
    pub compute: f64,
    /// Part of the activation memory, averaged over the steps. The peak, at the start, stays.
    pub activations: f64,
    /// Part of the gradients that are computed and, with several workers, exchanged.
    pub gradients: f64,
    /// Part of the wall clock: that of the compute, unless several workers wait for each other's gradients
    /// ([`Estimate::on`]).
    pub time: f64,
}

impl Estimate {
    /// Sums the costs over all steps of the schedule.
    ///
    /// # Errors
    /// A schedule out of range, or costs for another number of layers.
    pub fn new(schedule: &Schedule, costs: &Costs) -> Result<Self, Error> {
        Self::of_stretches(schedule, &[(0, costs)])
    }

    /// The same where a step costs more or less as the run goes on, as with images that grow: from each of these steps on, the
    /// first of which is 0, what is beside it. What is saved is saved against such steps with nothing frozen.
    ///
    /// ```
    /// use freezeout::{Costs, Estimate, LayerCost, Schedule};
    /// # fn main() -> Result<(), freezeout::Error> {
    /// let layer = LayerCost { forward: 2e9, ..Default::default() };
    /// let large = Costs::of_layers(&[layer; 12], LayerCost::default());
    /// let small = large.clone().scaled(0.25, 1.0);
    /// let schedule = Schedule::cubic(0.5, 12, 1000);
    /// let growing = Estimate::of_stretches(&schedule, &[(0, &small), (800, &large)])?;
    /// // Layers freeze late, where steps are long.
    /// assert!(growing.compute > Estimate::new(&schedule, &large)?.compute);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Estimate::new`]; stretches that do not begin at step 0 or do not ascend.
    pub fn of_stretches(schedule: &Schedule, stretches: &[(usize, &Costs)]) -> Result<Self, Error> {
        Self::timed(schedule, stretches, |costs, frozen| {
            Ok(costs.step(frozen).compute)
        })
    }

    /// The same on many workers, with costs in seconds and bytes.
    ///
    /// ```
    /// use freezeout::{Cluster, Costs, Estimate, LayerCost, Schedule};
    /// # fn main() -> Result<(), freezeout::Error> {
    /// let layer = LayerCost { forward: 2e9, parameters: 7e6, ..Default::default() };
    /// let costs = Costs::of_layers(&[layer; 12], LayerCost::default());
    /// let whole = costs.step(0).compute;
    /// let (schedule, costs) = (Schedule::cubic(0.5, 12, 1000), costs.scaled(0.5 / whole, 4.0));
    /// let ours = Cluster::new(8, 1.0); // 8 workers, 1 Gbit/s
    /// let usual = Cluster { frozen_sent: true, ..ours };
    /// let saved = |cluster| Ok::<_, freezeout::Error>(Estimate::on(&schedule, &costs, cluster)?.time);
    /// assert!(saved(&ours)? > 0.2 && saved(&usual)? < 0.01);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Estimate::new`] and of [`Cluster::step`].
    pub fn on(schedule: &Schedule, costs: &Costs, cluster: &Cluster) -> Result<Self, Error> {
        Self::of_stretches_on(schedule, &[(0, costs)], cluster)
    }

    /// [`Estimate::of_stretches`] on many workers, with costs in seconds and bytes.
    ///
    /// # Errors
    /// Those of [`Estimate::of_stretches`] and of [`Cluster::step`].
    pub fn of_stretches_on(
        schedule: &Schedule,
        stretches: &[(usize, &Costs)],
        cluster: &Cluster,
    ) -> Result<Self, Error> {
        Self::timed(schedule, stretches, |costs, frozen| {
            Ok(cluster.step(costs, frozen)?.seconds())
        })
    }

    fn timed(
        schedule: &Schedule,
        stretches: &[(usize, &Costs)],
        time: impl Fn(&Costs, usize) -> Result<f64, Error>,
    ) -> Result<Self, Error> {
        schedule.validate()?;
        let ascend = stretches.is_sorted_by(|a, b| a.0 < b.0);
        if !ascend || stretches.first().is_none_or(|(first, _)| *first != 0) {
            return Err(Error::Schedule(
                "costs must begin at step 0, and each later ones at a later step".into(),
            ));
        }
        if let Some((_, costs)) = stretches.iter().find(|s| s.1.layers() != schedule.layers) {
            return Err(Error::Schedule(format!(
                "costs are for {} layers, the schedule has {}",
                costs.layers(),
                schedule.layers
            )));
        }
        let mut starts: Vec<usize> = stretches.iter().map(|(first, _)| *first).collect();
        starts.extend(schedule.changes().iter().map(|change| change.step));
        starts.retain(|start| *start < schedule.steps);
        starts.sort_unstable();
        starts.dedup();
        let ends = starts.iter().copied().skip(1).chain([schedule.steps]);
        let (mut spent, mut full) = ([0.0; 4], [0.0; 4]);
        for (&start, end) in starts.iter().zip(ends) {
            let Some((_, costs)) = stretches.iter().rfind(|(first, _)| *first <= start) else {
                continue;
            };
            let steps = (end - start) as f64;
            for (sums, frozen) in [(&mut spent, schedule.frozen(start)), (&mut full, 0)] {
                let cost = costs.step(frozen);
                let seconds = time(costs, frozen)?;
                let parts = [cost.compute, cost.activations, cost.gradients, seconds];
                for (sum, part) in sums.iter_mut().zip(parts) {
                    *sum += steps * part;
                }
            }
        }
        let saved = |part: usize| match full[part] > 0.0 {
            true => 1.0 - spent[part] / full[part],
            false => 0.0,
        };
        Ok(Self {
            compute: saved(0),
            activations: saved(1),
            gradients: saved(2),
            time: saved(3),
        })
    }
}

/// Of a part of 1; what rounds to zero has no sign.
fn percent(part: f64) -> f64 {
    (1000.0 * part).round() / 10.0 + 0.0
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "saves {:.1} % of compute, {:.1} % of activation memory on average, {:.1} % of gradient communication",
            percent(self.compute),
            percent(self.activations),
            percent(self.gradients)
        )
    }
}

/// The estimator that FreezeOut published (arXiv 1706.04983, section 3 and its code), for comparison. With forward costs
/// c_i:
///
/// ```text
/// 1 - (sum c_i + sum c_i rho_i) / (2 sum c_i)         times 1.3 for linear spacing
/// ```
///
/// It takes the backward pass to cost as much as the forward pass, and counts no warm-up; the 1.3 is a fudge. Use
/// [`Estimate`].
pub fn freezeout_speedup(schedule: &Schedule, forward: &[f64]) -> f64 {
    let all: f64 = forward.iter().sum();
    let weighted = forward
        .iter()
        .enumerate()
        .map(|(i, c)| c * schedule.ratio(i));
    let fudge = match schedule.spacing {
        Spacing::Linear => 1.3,
        _ => 1.0,
    };
    fudge * (1.0 - (all + weighted.sum::<f64>()) / (2.0 * all))
}

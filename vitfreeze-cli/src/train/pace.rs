//! How long a training's steps take with so many layers frozen.
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use freezeout::{FreezeOut, Gradients, Schedule};
use serde::{Deserialize, Serialize};

use super::settings::TrainSettings as _;
use super::Task;
use crate::machine::workers::Workers;
use crate::machine::{device, Machine};
use crate::run::metrics::median;

/// Rounds over all numbers of frozen layers: at least so many, and more, up to a limit, while there is time.
const TURNS: std::ops::RangeInclusive<usize> = 3..=5;
const TIME: Duration = Duration::from_secs(90);
/// Steps of each round that count; one before them warms up.
const STEPS: usize = 2;

/// Seconds of a step by number of frozen layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    frozen: Vec<usize>,
    seconds: Vec<f64>,
}

impl Pace {
    /// Trains a few steps with each of these numbers of frozen layers, on the run's own images. By turns: a machine that
    /// becomes slower or faster meanwhile does so for all of them. Nothing is written.
    pub fn measure<T: Task>(config: &T::Settings, frozen: &[usize]) -> Result<Self> {
        let workers = Workers::alone();
        let training = config.training();
        let machine = Machine::open(&training.device, training.threads, &workers)?;
        let (mut task, images) = T::open(config, &machine)?;
        let plan = training.plan(images.feed.batches_per_epoch(), 1)?;
        // So small a rate that no weight moves: what is measured is time.
        let schedule = Schedule {
            lr: 1e-12,
            min_lr: 0.0,
            ..training.schedule(&plan, task.layers())?
        };
        task.budget(config, 0).check_for(&machine.device, 1)?;
        let vars = task.vars()?;
        let freeze = FreezeOut::new(&vars, schedule, |name| task.layer_of(name))?;
        let mut freeze = freeze.without_checks();
        let mut opt = task.optimizer(config).groups(task.groups(config));
        let mut batches = images.feed.stream(0, 0);
        let micro = plan.steps.largest();
        let mut rounds: Vec<Vec<f64>> = Vec::new();
        let begun = Instant::now();
        let more = |turn: &usize| turn < TURNS.start() || begun.elapsed() < TIME;
        for _ in (0..*TURNS.end()).take_while(more) {
            let mut round = vec![f64::NAN; frozen.len()];
            // There and back: a drift inside a round is in none of them either.
            let mut order: Vec<usize> = (0..frozen.len()).collect();
            if rounds.len() % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let frozen = frozen[at];
                freeze.freeze_first(frozen);
                let model = task.model(freeze.vars(), 0)?;
                opt.forget_frozen(&freeze);
                device::release_memory(&machine.device);
                let mut times = Vec::new();
                for step in 0..=STEPS {
                    let start = Instant::now();
                    let mut grads: Option<Gradients> = None;
                    for _ in 0..micro {
                        let batch = batches.next().context("the loader ended early")??;
                        let loss = (task.loss(&model, batch)?.total * (1.0 / micro as f64))?;
                        if !loss.to_scalar::<f32>()?.is_finite() {
                            bail!("the loss is not finite; take a lower lr");
                        }
                        let backward = vit::ops::backward_seen;
                        let ranks = workers.comm();
                        let (sum, _) =
                            freeze.backward_reduced(&loss, grads.take(), ranks, backward)?;
                        grads = Some(sum);
                    }
                    opt.step(&freeze, 0, &grads.unwrap_or_default())?;
                    if step > 0 {
                        times.push(start.elapsed().as_secs_f64());
                    }
                }
                round[at] = median(times.into_iter()).unwrap_or(f64::NAN);
            }
            rounds.push(round);
        }
        // The runs of a study are processes of their own, which want the memory.
        drop((freeze, opt, batches, vars));
        device::release_memory(&machine.device);
        // Each number's part of its round, so that a drift from one round to the next is in none of them.
        let whole = |round: &Vec<f64>| round.iter().sum::<f64>();
        let usual = median(rounds.iter().map(whole)).unwrap_or(f64::NAN);
        let seconds = (0..frozen.len()).map(|i| {
            let parts = rounds.iter().map(|round| round[i] / whole(round));
            median(parts).unwrap_or(f64::NAN) * usual
        });
        Ok(Self {
            frozen: frozen.to_vec(),
            seconds: seconds.collect(),
        })
    }

    /// The same with the numbers of `other` that are not in it, in its own time: by one that both have measured.
    pub fn with(mut self, other: &Self) -> Self {
        let both = |&f: &usize| Some(self.step(f)? / other.step(f)?);
        let factor = other.frozen.iter().find_map(both).unwrap_or(1.0);
        for (&frozen, &seconds) in other.frozen.iter().zip(&other.seconds) {
            if self.step(frozen).is_none() {
                self.frozen.push(frozen);
                self.seconds.push(seconds * factor);
            }
        }
        self
    }

    /// Seconds of a step with so many layers frozen, if that was measured.
    pub fn step(&self, frozen: usize) -> Option<f64> {
        let at = self.frozen.iter().position(|&f| f == frozen)?;
        self.seconds.get(at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_later_is_in_the_time_of_what_was_before() {
        let pace = |frozen: &[usize], seconds: &[f64]| Pace {
            frozen: frozen.to_vec(),
            seconds: seconds.to_vec(),
        };
        // The machine has become half as fast since.
        let both = pace(&[0, 3], &[1.0, 0.75]).with(&pace(&[0, 6], &[2.0, 1.0]));
        assert_eq!(both, pace(&[0, 3, 6], &[1.0, 0.75, 0.5]));
    }
}

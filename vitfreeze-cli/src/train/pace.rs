//! How long a training's steps take with so many layers frozen.
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use freezeout::{FreezeOut, Gradients};
use serde::{Deserialize, Serialize};

use super::settings::TrainSettings as _;
use super::Task;
use crate::machine::workers::Workers;
use crate::machine::{device, Machine};
use crate::run::metrics::median;

/// Rounds over all numbers of frozen layers: at least so many, and more, up to a limit, while there is time.
const TURNS: std::ops::RangeInclusive<usize> = 3..=8;
const TIME: Duration = Duration::from_secs(90);
/// Steps of each round that count; one before them warms up.
const STEPS: usize = 2;

/// Median seconds of a step by number of frozen layers.
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
        let schedule = training.schedule(&plan, task.layers())?;
        task.budget(config, 0).check_for(&machine.device, 1)?;
        let vars = task.vars()?;
        let freeze = FreezeOut::new(&vars, schedule, |name| task.layer_of(name))?;
        let mut freeze = freeze.without_checks();
        let mut opt = task.optimizer(config).groups(task.groups(config));
        let mut batches = images.feed.stream(0, 0);
        let micro = plan.steps.largest();
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); frozen.len()];
        let begun = Instant::now();
        let more = |turn: &usize| turn < TURNS.start() || begun.elapsed() < TIME;
        for _ in (0..*TURNS.end()).take_while(more) {
            for (&frozen, times) in frozen.iter().zip(&mut times) {
                freeze.freeze_first(frozen);
                let model = task.model(freeze.vars())?;
                device::release_memory(&machine.device);
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
                    // The first step's rate, which is 0 in a warm-up: what is measured is time.
                    opt.step(&freeze, 0, &grads.unwrap_or_default())?;
                    if step > 0 {
                        times.push(start.elapsed().as_secs_f64());
                    }
                }
            }
        }
        let medians = times.into_iter().map(|t| median(t.into_iter()));
        Ok(Self {
            frozen: frozen.to_vec(),
            seconds: medians.map(|m| m.unwrap_or(f64::NAN)).collect(),
        })
    }

    /// Seconds of a step with so many layers frozen, if that was measured.
    pub fn step(&self, frozen: usize) -> Option<f64> {
        let at = self.frozen.iter().position(|&f| f == frozen)?;
        self.seconds.get(at).copied()
    }
}

//! One optimiser step.
use std::time::Instant;

use anyhow::{bail, Context, Result};
use candle_core::Tensor;
use datasets::Batch;
use freezeout::{Gradients, Param};

use super::Run;
use crate::machine::interrupt;
use crate::run::folder::checkpoint_path;
use crate::run::metrics::{timed, timed_on, NotFinite, Row, Seconds};
use crate::run::report::Report;
use crate::train::Task;

impl<T: Task> Run<T> {
    /// The gradients of one optimiser step: the mean over its batches and the workers.
    pub fn gradients(
        &mut self,
        step: usize,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
        report: &Report,
    ) -> Result<(Row, Gradients)> {
        // All agree before the last backward pass: during it the gradients are on their way to the others.
        let mine = self.up_to_the_last_backward(step, batches, report);
        let workers = self.machine.workers.clone();
        let mut waited = 0.0;
        let (mut row, before, loss) = timed(&mut waited, || workers.agree(mine))?;
        let (grads, reduced) = timed_on(&self.machine.device, &mut row.seconds.backward, || {
            let backward = vit::ops::backward_seen;
            let ranks = workers.comm();
            self.freeze.backward_reduced(&loss, before, ranks, backward)
        })?;
        if workers.size() > 1 {
            row.seconds.backward -= reduced.seconds;
            row.reduced_bytes = Some(reduced.bytes);
            timed(&mut waited, || self.mean_of_workers(&mut row))?;
            row.seconds.communication = waited + reduced.seconds;
        }
        Ok((row, grads))
    }

    /// The losses' means over the workers; whether one of them was asked to stop.
    fn mean_of_workers(&mut self, row: &mut Row) -> Result<()> {
        let workers = &self.machine.workers;
        // Each has a place of its own: two may be asked by different signals.
        let mut signals = vec![0.0; workers.size()];
        signals[workers.rank()] = f64::from(interrupt::signal().unwrap_or(0));
        let mut sums = [signals, vec![row.loss]].concat();
        sums.extend(row.stage_losses.iter().flatten());
        workers.comm().all_reduce_f64(&mut sums)?;
        let (signals, losses) = sums.split_at(workers.size());
        self.asked = signals.iter().map(|&s| s as u8).find(|&s| s != 0);
        let size = workers.size() as f64;
        let rest = row.stage_losses.iter_mut().flatten();
        for (loss, sum) in std::iter::once(&mut row.loss).chain(rest).zip(losses) {
            *loss = sum / size;
        }
        Ok(())
    }

    /// The signal by which this worker, or together with others one of them, was asked to stop.
    pub fn asked(&self) -> Option<u8> {
        match self.machine.workers.size() {
            1 => interrupt::signal(),
            _ => self.asked,
        }
    }

    /// The gradients of this worker's batches but the last one, and the last one's loss.
    fn up_to_the_last_backward(
        &mut self,
        step: usize,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
        report: &Report,
    ) -> Result<(Row, Option<Gradients>, Tensor)> {
        self.started = Instant::now();
        let schedule = self.freeze.schedule();
        let micro = self.steps.batches(step);
        let rate = |layer| {
            let group = (self.groups)(&Param {
                name: "",
                layer,
                dims: &[],
            });
            schedule.lr(step, layer) * group.lr_scale
        };
        let mut row = Row {
            step,
            epoch: self.steps.epoch(step),
            loss: 0.0,
            stage_losses: Vec::new(),
            lr: self.layers.iter().copied().map(rate).collect(),
            frozen: self.freeze.frozen(),
            image_size: self.task.image_size(step),
            graph_nodes: 0,
            grad_norm: None,
            images: self.images(micro),
            reduced_bytes: None,
            images_per_second: 0.0,
            seconds: Seconds::default(),
        };
        let mut grads: Option<Gradients> = None;
        for left in (0..micro).rev() {
            let batch = timed(&mut row.seconds.data, || batches.next());
            if self.feed.skipped_count() > self.told.len() {
                report.tell_skipped(&mut self.told, self.feed.skipped());
            }
            let batch = batch.context("the loader ended early").and_then(|b| b);
            let batch = self.of_all(batch)?;
            let loss = timed_on(&self.machine.device, &mut row.seconds.forward, || {
                self.task.loss(&self.model, batch)
            })?;
            let value = f64::from(loss.total.to_scalar::<f32>()?);
            self.of_all(self.check_finite(value, &row))?;
            row.loss += value / micro as f64;
            row.stage_losses.resize(loss.stages.len(), None);
            for (sum, stage) in row.stage_losses.iter_mut().zip(&loss.stages) {
                if let Some(stage) = stage {
                    *sum.get_or_insert(0.0) += f64::from(stage.to_scalar::<f32>()?) / micro as f64;
                }
            }
            let total = match micro {
                1 => loss.total,
                _ => (loss.total * (1.0 / micro as f64))?,
            };
            row.graph_nodes = total.sorted_nodes().len();
            if left == 0 {
                return Ok((row, grads, total));
            }
            let more = timed_on(&self.machine.device, &mut row.seconds.backward, || {
                self.freeze.backward_by(&total, vit::ops::backward)
            })?;
            grads.get_or_insert_default().add(more)?;
        }
        bail!("step {step} has no batches")
    }

    /// Where the loss needs the other workers an error of one is one of all at once; elsewhere they agree later, once a step.
    fn of_all<X>(&self, mine: Result<X>) -> Result<X> {
        match T::TOGETHER {
            true => self.machine.workers.agree(mine),
            false => mine,
        }
    }

    fn check_finite(&self, loss: f64, row: &Row) -> Result<()> {
        if loss.is_finite() {
            return Ok(());
        }
        Err(NotFinite(format!(
            "step {}: the loss is {loss} at learning rate {:.3e}; {} still holds step {}; start again with a lower --lr",
            row.step,
            row.lr.iter().copied().fold(0.0, f64::max),
            checkpoint_path(&self.dir).display(),
            self.saved,
        ))
        .into())
    }

    /// One optimiser step; completes the row and writes it.
    pub fn update(&mut self, mut row: Row, grads: &Gradients) -> Result<Row> {
        let step = row.step;
        row.grad_norm = timed_on(
            &self.machine.device,
            &mut row.seconds.optimizer,
            || -> Result<_> {
                self.freeze.observe(grads)?;
                let norm = self.opt.step(&self.freeze, step, grads)?;
                if let Some(ema) = &mut self.ema {
                    ema.update(&self.freeze)?;
                }
                Ok(norm)
            },
        )?;
        row.seconds.total = self.started.elapsed().as_secs_f64();
        row.images_per_second = row.images as f64 / row.seconds.total;
        self.seconds += row.seconds.total;
        self.log_step(&row)?;
        self.step = step + 1;
        Ok(row)
    }

    fn log_step(&mut self, row: &Row) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            metrics.write(row)?;
        }
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        events.scalar("train/loss", row.step, row.loss)?;
        for (stage, loss) in row.stage_losses.iter().enumerate() {
            if let Some(loss) = loss {
                events.scalar(&format!("train/loss_stage_{stage}"), row.step, *loss)?;
            }
        }
        for (layer, &lr) in row.lr.iter().enumerate() {
            events.scalar(&format!("lr/layer_{layer:02}"), row.step, lr)?;
        }
        if let Some(norm) = row.grad_norm {
            events.scalar("train/grad_norm", row.step, norm)?;
        }
        events.scalar("frozen", row.step, row.frozen as f64)?;
        if let Some(size) = row.image_size {
            events.scalar("image_size", row.step, size as f64)?;
        }
        events.scalar("images_per_second", row.step, row.images_per_second)
    }
}

//! Judging the weights on the validation split, and keeping the best.
use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{anyhow, Result};
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::Run;
use crate::accuracy::{Accuracy, Confusion};
use crate::run::checkpoint::Best;
use crate::run::folder::checkpoint_path;
use crate::run::metrics::{Line, NotFinite, Row};
use crate::run::report::Report;
use crate::train::{Task, TrainSettings as _};

/// The weights of the best evaluation.
pub(super) const BEST: &str = "best.safetensors";

/// A line of metrics.jsonl: a step, or the evaluation after it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Logged {
    Step(Row),
    Evaluation(Evaluation),
}

/// An evaluation on the validation split; accuracies in percent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done before the one that it follows.
    pub step: usize,
    epoch: usize,
    top1: f64,
    top5: f64,
    loss: f64,
    /// The same of the weights' moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ema_top1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ema_top5: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ema_loss: Option<f64>,
    images: usize,
    pub seconds: f64,
}

impl Line for Logged {
    fn step(&self) -> usize {
        match self {
            Self::Step(row) => row.step,
            Self::Evaluation(evaluation) => evaluation.step,
        }
    }
}

impl<T: Task> Run<T> {
    /// Whether the steps done end an epoch after which there is an evaluation.
    pub fn evaluation_is_due(&self) -> bool {
        let done = self.steps.epoch(self.step);
        T::EVALUATES
            && self.steps.ends_epoch(self.step)
            && (done.is_multiple_of(self.config.eval_every()) || done == self.training().epochs)
    }

    /// Does the evaluation that a resumed run was stopped at.
    pub fn catch_up(&mut self, report: &Report) -> Result<()> {
        let due = self.step > 0 && self.evaluation_is_due() && self.judged != Some(self.step);
        match due {
            true => self.evaluate(report),
            false => Ok(()),
        }
    }

    /// Evaluates, logs, and keeps the best. Part of the step before, so that a resumed run has the same lines and files.
    pub fn evaluate(&mut self, report: &Report) -> Result<()> {
        let step = self.step.saturating_sub(1);
        let (evaluation, told, cells) = match report.pause(|| self.judge(step)) {
            Ok(judged) => judged,
            Err(e) if self.ruined(&e) => return Err(e),
            // What was trained is kept, whatever has become of the validation images.
            Err(e) => {
                self.save()?;
                let (step, resume) = (self.step, self.resume_command());
                let more =
                    format!("saved after step {step}; after repairing it, continue with: {resume}");
                return Err(self.machine.workers.with_more(e, &more));
            }
        };
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&Logged::Evaluation(evaluation.clone()))?;
        }
        self.seconds += evaluation.seconds;
        self.judged = Some(self.step);
        let result = self.counted(&evaluation);
        if self.best.is_none_or(|best| result.top1 > best.top1) {
            self.best = Some(result);
            self.confused = Some(cells);
            self.export(BEST)?;
        }
        let (epoch, epochs) = (evaluation.epoch + 1, self.training().epochs);
        report.say(format!("epoch {epoch}/{epochs}: {told}"));
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        let e = evaluation;
        let scalars = [
            ("val/top1", Some(e.top1)),
            ("val/top5", Some(e.top5)),
            ("val/loss", Some(e.loss)),
            ("val/ema_top1", e.ema_top1),
            ("val/ema_top5", e.ema_top5),
            ("val/ema_loss", e.ema_loss),
        ];
        for (tag, value) in scalars {
            if let Some(value) = value {
                events.scalar(tag, step, value)?;
            }
        }
        events.flush()
    }

    /// The weights, and their average, on the validation split, a line that says it, and what was taken for what.
    pub(super) fn judge(&self, step: usize) -> Result<(Evaluation, String, Confusion)> {
        let started = Instant::now();
        let workers = &self.machine.workers;
        let judge = |vb| -> Result<Accuracy> {
            let mine = workers.agree(
                self.task
                    .model(vb, step)
                    .and_then(|m| self.task.evaluate(&m)),
            )?;
            Ok(mine.of_all(workers.comm().as_ref())?)
        };
        // Plain tensors: an evaluation records no graph.
        let weights = freezeout::checkpoint::weights(&self.freeze)
            .into_iter()
            .collect();
        let own = judge(VarBuilder::from_tensors(
            weights,
            DType::F32,
            &self.machine.device,
        ))?;
        let average = self.ema.as_ref().map(|ema| judge(ema.vars())).transpose()?;
        // All have the same numbers: one speaks.
        workers.agree(match own.loss() {
            _ if own.images() == 0 => Err(anyhow!("not one validation image could be read")),
            loss if loss.is_finite() => Ok(()),
            loss => Err(NotFinite(format!(
                "after step {}: the validation loss is {loss}; {} still holds step {}; start again with a lower --lr",
                step + 1,
                checkpoint_path(&self.dir).display(),
                self.saved,
            ))
            .into()),
        })?;
        let evaluation = Evaluation {
            step,
            epoch: self.steps.epoch(step),
            top1: own.top1(),
            top5: own.top5(),
            loss: own.loss(),
            ema_top1: average.as_ref().map(Accuracy::top1),
            ema_top5: average.as_ref().map(Accuracy::top5),
            ema_loss: average.as_ref().map(Accuracy::loss),
            images: own.images(),
            seconds: started.elapsed().as_secs_f64(),
        };
        let say = |a: &Accuracy| {
            let (top1, top5, loss) = (a.top1(), a.top5(), a.loss());
            format!("top-1 {top1:.2} %, top-5 {top5:.2} %, loss {loss:.4}")
        };
        let mut told = format!("{} on {} validation images", say(&own), own.images());
        if let Some(average) = &average {
            told += &format!("; moving average {}", say(average));
        }
        let cells = average.unwrap_or(own).confusion().clone();
        Ok((evaluation, told, cells))
    }

    /// The numbers that count: of the average, where there is one.
    pub(super) fn counted(&self, e: &Evaluation) -> Best {
        Best {
            epoch: e.epoch,
            top1: e.ema_top1.unwrap_or(e.top1),
            top5: e.ema_top5.unwrap_or(e.top5),
            loss: e.ema_loss.unwrap_or(e.loss),
            images: e.images,
        }
    }

    /// The first worker writes the weights (of the average, where there is one) into the run's folder.
    pub(super) fn export(&self, name: &str) -> Result<()> {
        self.machine.workers.first_does(|| self.write_weights(name))
    }

    fn write_weights(&self, name: &str) -> Result<()> {
        let weights: BTreeMap<String, Tensor> = match &self.ema {
            Some(ema) => ema.tensors().clone(),
            None => freezeout::checkpoint::weights(&self.freeze),
        };
        self.task.export(&weights, &self.dir.join(name))
    }
}

//! The files of a run: its state, its classifiers, its result.
use std::process::ExitCode;

use anyhow::Result;

use super::evaluation::BEST;
use super::Run;
use crate::commands::report as page;
use crate::console::{counted, print};
use crate::machine::device;
use crate::machine::workers::Elsewhere;
use crate::run::checkpoint::{self, Header};
use crate::run::folder::{self, checkpoint_path, quoted, SEEN};
use crate::run::metrics::NotFinite;
use crate::run::report::Report;
use crate::run::result::{self, RunResult};
use crate::settings::Settings as _;
use crate::train::Task;

impl<T: Task> Run<T> {
    pub fn save(&mut self) -> Result<()> {
        self.stage()?;
        self.commit()
    }

    /// Writes the state as it is now, before the next forward pass changes any of it (BatchNorm's statistics).
    pub fn stage(&mut self) -> Result<()> {
        let workers = self.machine.workers.clone();
        workers.first_does(|| {
            if let Some(metrics) = &self.metrics {
                metrics.flush()?;
            }
            if let Some(events) = &mut self.events {
                events.flush()?;
            }
            let staged = self.staged_checkpoint().map_err(|e| self.untouched(e))?;
            self.staged = Some(staged);
            Ok(())
        })?;
        self.waiting = true;
        Ok(())
    }

    /// Whether an error in a step's gradients leaves a staged checkpoint without its name, on all workers alike: its weights
    /// are bad, or nobody knows what the others do.
    pub fn ruined(&self, error: &anyhow::Error) -> bool {
        let elsewhere = error.downcast_ref::<Elsewhere>();
        error.is::<NotFinite>()
            || elsewhere.is_some_and(|e| e.not_finite)
            || !self.machine.workers.all_know(error)
    }

    /// Makes what was staged, if anything was, the run's checkpoint.
    pub fn commit(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.waiting) {
            return Ok(());
        }
        let staged = self.staged.take();
        self.machine.workers.first_does(|| match staged {
            Some(staged) => staged.commit().map_err(|e| self.untouched(e.into())),
            None => Ok(()),
        })?;
        self.saved = self.step;
        // It belongs to the best evaluation that the checkpoint knows.
        self.draw_confusion();
        Ok(())
    }

    pub(super) fn staged_checkpoint(&self) -> Result<vit::Staged> {
        let header = Header::new(
            &self.config,
            self.task.about()?,
            self.step,
            self.data,
            self.best,
            self.machine.workers.size(),
        );
        let path = checkpoint_path(&self.dir);
        checkpoint::stage(&path, &header, &self.freeze, &self.opt, self.ema.as_ref())
    }

    /// The command that goes on with this run.
    pub fn resume_command(&self) -> String {
        let workers = self.machine.workers.size();
        folder::resume_command(T::Settings::COMMAND, &self.dir, workers)
    }

    fn untouched(&self, error: anyhow::Error) -> anyhow::Error {
        folder::untouched(error, &self.dir, self.saved, &self.resume_command())
    }

    /// Exports the weights, writes result.json and says what there is now.
    pub fn finish(mut self, report: &Report) -> Result<ExitCode> {
        let (file, what) = T::EXPORT;
        self.export(file)?;
        let mut lines = Vec::new();
        let mut result = self.best;
        if T::EVALUATES && self.judged != Some(self.step) {
            // Stopped inside an epoch: told, but no evaluation of the whole run.
            let (evaluation, told, cells) = self.judge(self.step.saturating_sub(1))?;
            self.seconds += evaluation.seconds;
            lines.push(format!("  after step {}: {told}", self.step));
            if result.is_none() {
                result = Some(self.counted(&evaluation));
                self.confused = Some(cells);
                self.draw_confusion();
            }
        }
        if let Some(best) = self.best {
            lines.push(format!(
                "  best: top-1 {:.2} %, top-5 {:.2} % after epoch {}",
                best.top1,
                best.top5,
                best.epoch + 1
            ));
        }
        let written = RunResult {
            kind: T::Settings::COMMAND.into(),
            top1: result.map(|r| r.top1),
            top5: result.map(|r| r.top5),
            loss: result.map(|r| r.loss).or(report.last_loss()),
            best_epoch: self.best.map(|b| b.epoch),
            images: result.map_or(report.images(), |r| r.images),
            saved: report.saved().map(|saved| 100.0 * saved),
            seconds: self.seconds,
            peak_bytes: device::peak_bytes(&self.machine.device),
            settings: serde_json::to_value(&self.config)?,
            versions: result::versions(),
        };
        // First, for nothing may be left of what is printed.
        let workers = &self.machine.workers;
        workers.first_does(|| result::write(&self.dir, &written))?;
        let mut skipped = [self.feed.skipped_count() as f64];
        workers.comm().all_reduce_f64(&mut skipped)?;
        if !workers.first() {
            return Ok(ExitCode::SUCCESS);
        }
        print(report.summary().trim_end())?;
        for line in lines {
            print(line)?;
        }
        let skipped = skipped[0] as usize;
        if skipped > 0 {
            print(format!("  {} skipped", counted(skipped, "damaged image")))?;
        }
        let page = page::of_a_run_at_its_end(&self.dir);
        print(format!("Files in {}:", self.dir.display()))?;
        let best = self
            .best
            .map(|_| (BEST, "the classifier of the best epoch".to_owned()));
        let state = format!("the training state after step {}", self.step);
        let steps = match T::EVALUATES {
            true => "one line per step and per evaluation",
            false => "one line per step",
        };
        let files = [
            (file, what.to_owned()),
            ("checkpoint.safetensors", state),
            ("metrics.jsonl", steps.to_owned()),
            (
                "result.json",
                "loss, accuracy, seconds, settings, versions".to_owned(),
            ),
            ("config.toml", "every number of this run".to_owned()),
        ];
        let page = page.then(|| (page::NAME, "all of it as one page".to_owned()));
        let drawn = [
            ("confusion.png", "which class was taken for which"),
            (SEEN, "what it predicted, by epoch"),
        ];
        let drawn = drawn
            .into_iter()
            .filter(|(name, _)| self.dir.join(name).exists());
        let drawn = drawn.map(|(name, what)| (name, what.to_owned()));
        for (name, what) in best.into_iter().chain(files).chain(drawn).chain(page) {
            print(format!("  {name:<22}  {what}"))?;
        }
        print("Next:")?;
        let dir = quoted(&self.dir);
        let left = self.freeze.schedule().steps - self.step;
        if left > 0 {
            let (resume, left) = (self.resume_command(), counted(left, "step"));
            print(format!("  {resume}    the other {left}"))?;
        }
        for line in self.task.next(&dir) {
            print(format!("  {line}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

//! What a person sees of a run: a progress bar on a terminal, plain lines otherwise, freezes, the summary.
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::metrics::{duration, Row, Seconds};

/// How often a plain line appears when there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Steps after a freeze until its saving is told.
const SETTLE: usize = 8;

/// Live output of a run.
pub struct Report {
    bar: ProgressBar,
    steps: usize,
    per_epoch: usize,
    layers: usize,
    rows: Vec<Row>,
    started: Instant,
    first: usize,
    last_line: Instant,
    /// Step of the latest freeze whose saving has not been told yet.
    pending: Option<usize>,
}

impl Report {
    /// For `steps` steps, of which `done` are done.
    pub fn new(steps: usize, done: usize, per_epoch: usize, layers: usize, rows: Vec<Row>) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let template = "{bar:24.cyan/dim} {pos}/{len}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_position(done as u64);
        Self {
            bar,
            steps,
            per_epoch,
            layers,
            first: done,
            rows,
            started: Instant::now(),
            last_line: Instant::now(),
            pending: None,
        }
    }

    /// One line above the bar.
    pub fn say(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| eprintln!("{}", line.as_ref()));
    }

    /// A step has been done.
    pub fn step(&mut self, row: Row) {
        let done = row.step + 1;
        let rate = self.started.elapsed().as_secs_f64() / (done - self.first) as f64;
        let eta = duration(rate * (self.steps - done) as f64);
        let live = row.lr.get(row.frozen..).unwrap_or_default();
        let (low, high) = live
            .iter()
            .fold((f64::INFINITY, 0f64), |(l, h), &x| (l.min(x), h.max(x)));
        let lr = if low == high {
            format!("{high:.2e}")
        } else {
            format!("{low:.1e}..{high:.1e}")
        };
        let text = format!(
            "epoch {}/{}  loss {:.4}  lr {lr}  {:.0} img/s  frozen {}/{}  ETA {eta}",
            row.epoch + 1,
            self.steps / self.per_epoch,
            row.loss,
            row.images_per_second,
            row.frozen,
            self.layers,
        );
        self.bar.set_message(text.clone());
        self.bar.set_position(done as u64);
        let first = done == self.first + 1;
        if self.bar.is_hidden()
            && (first || done == self.steps || self.last_line.elapsed() >= LINE_EVERY)
        {
            eprintln!("step {done}/{}  {text}", self.steps);
            self.last_line = Instant::now();
        }
        self.rows.push(row);
        if self.pending.is_some_and(|step| done >= step + SETTLE) {
            self.tell_saving();
        }
    }

    /// Layers have been frozen before `step`.
    pub fn froze(&mut self, step: usize, what: &str, frozen: usize) {
        self.tell_saving();
        self.say(format!(
            "step {step}: froze {what}; {frozen} of {} layers frozen",
            self.layers
        ));
        self.pending = Some(step);
    }

    /// What the latest freeze saved, measured on the steps since.
    fn tell_saving(&mut self) {
        let Some(step) = self.pending.take() else {
            return;
        };
        let (before, after): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(|r| r.step < step);
        let latest = before.iter().rev().take(SETTLE).copied();
        let (Some(was), Some(is), Some(unfrozen), Some(last), Some(first)) = (
            median(latest),
            median(after.iter().copied()),
            unfrozen_step(&self.rows),
            before.last(),
            after.first(),
        ) else {
            return;
        };
        self.say(format!(
            "    {} frozen: {was:.3} -> {is:.3} s/step, {:+.1} % against an unfrozen step; graph {} -> {} nodes",
            first.frozen,
            100.0 * (is - unfrozen) / unfrozen,
            last.graph_nodes,
            first.graph_nodes,
        ));
    }

    /// Ends the bar.
    pub fn close(&mut self) {
        self.tell_saving();
        self.bar.finish_and_clear();
    }

    /// The last page: wall time and its split, what freezing saved, first and last loss.
    pub fn summary(&self) -> String {
        let mut sum = Seconds::default();
        self.rows.iter().for_each(|r| sum.add(&r.seconds));
        let images: usize = self.rows.iter().map(|r| r.images).sum();
        let part = |x: f64| 100.0 * x / sum.total.max(1e-9);
        let mut text = format!(
            "{} steps, {images} images in {} ({:.1} images/s)\n",
            self.rows.len(),
            duration(sum.total),
            images as f64 / sum.total.max(1e-9),
        );
        text += &format!(
            "  data {:.1} %, forward {:.1} %, backward {:.1} %, optimiser {:.1} %\n",
            part(sum.data),
            part(sum.forward),
            part(sum.backward),
            part(sum.optimizer),
        );
        text += &self.saving();
        text += &self.losses();
        text
    }

    /// Each stage's loss over its first and its last steps: the total says little, since a frozen stage leaves it.
    fn losses(&self) -> String {
        let stages = self.rows.first().map_or(0, |r| r.stage_losses.len());
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let stage = |k: usize| {
            let values: Vec<f64> = self
                .rows
                .iter()
                .filter_map(|r| *r.stage_losses.get(k)?)
                .collect();
            let some = self.per_epoch.min(values.len());
            let (first, last) = (&values[..some], &values[values.len() - some..]);
            format!("{:.4} -> {:.4}", mean(first), mean(last))
        };
        let all: Vec<String> = (0..stages).map(stage).collect();
        format!("  loss by stage, first -> last epoch: {}\n", all.join(", "))
    }

    fn saving(&self) -> String {
        let Some(unfrozen) = unfrozen_step(&self.rows) else {
            return String::new();
        };
        let frozen: Vec<&Row> = self.rows.iter().filter(|r| r.frozen > 0).collect();
        if frozen.is_empty() {
            return "  no layer was frozen in these steps\n".into();
        }
        let saved: f64 = frozen.iter().map(|r| unfrozen - r.seconds.total).sum();
        format!(
            "  freezing saved {} = {:.1} % of the run, measured against its own unfrozen steps (median {unfrozen:.3} s)\n",
            duration(saved),
            100.0 * saved / (unfrozen * self.rows.len() as f64),
        )
    }
}

/// Median seconds of an unfrozen step, without the first two of the run, which warm things up.
fn unfrozen_step(rows: &[Row]) -> Option<f64> {
    median(rows.iter().skip(2).filter(|r| r.frozen == 0))
}

fn median<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<f64> {
    let mut seconds: Vec<f64> = rows.map(|r| r.seconds.total).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

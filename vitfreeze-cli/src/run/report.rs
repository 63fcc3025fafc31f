//! What a person sees of a run: a progress bar on a terminal, plain lines otherwise, freezes, the summary.
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use datasets::Skipped;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::{counted, duration, is_held, is_quiet, note, percent, warn};
use crate::run::metrics::{median, median_and_error, Row, Seconds};
use crate::run::work::Work;

/// How often a plain line appears when there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Steps after a freeze until its saving is told.
const SETTLE: usize = 8;

/// What has been frozen, or thawed, by the layers' names.
pub fn changed_layers(before: usize, now: usize, name: impl Fn(usize) -> String) -> Option<String> {
    let names: Vec<String> = (before.min(now)..before.max(now)).map(name).collect();
    let verb = if now < before { "unfroze" } else { "froze" };
    (!names.is_empty()).then(|| format!("{verb} {}", names.join(", ")))
}

/// Live output of a run.
pub struct Report {
    bar: ProgressBar,
    /// Where this session stops.
    stop: usize,
    epochs: usize,
    per_epoch: usize,
    layers: usize,
    work: Work,
    rows: Vec<Row>,
    started: Instant,
    first: usize,
    last_line: Instant,
    /// Step of the latest freeze whose saving has not been told yet.
    pending: Option<usize>,
}

impl Report {
    /// For steps `done` to `stop` of a run of so many epochs.
    pub fn new(
        done: usize,
        stop: usize,
        epochs: usize,
        per_epoch: usize,
        layers: usize,
        rows: Vec<Row>,
    ) -> Self {
        let bar = if std::io::stderr().is_terminal() && !is_quiet() && !is_held() {
            ProgressBar::with_draw_target(Some(stop as u64), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let template = "{bar:12.cyan/dim} {pos}/{len} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_position(done as u64);
        Self {
            bar,
            stop,
            epochs,
            per_epoch,
            layers,
            work: Work::even(),
            first: done,
            rows,
            started: Instant::now(),
            last_line: Instant::now(),
            pending: None,
        }
    }

    /// The same of a run whose steps have so much work.
    pub fn with_work(self, work: Work) -> Self {
        Self { work, ..self }
    }

    /// One line above the bar.
    pub fn say(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| note(line));
    }

    /// Warns of damaged images as they turn up, of each once.
    pub fn tell_skipped(&self, told: &mut BTreeSet<usize>, skipped: Vec<Skipped>) {
        for image in skipped {
            if told.insert(image.index) {
                let line = format!("warning: skipped {}: {}", image.name, image.reason);
                self.bar.suspend(|| warn(vit::printable(&line)));
            }
        }
    }

    /// Takes the bar away while something else draws one.
    pub fn pause<T>(&self, f: impl FnOnce() -> T) -> T {
        self.bar.suspend(f)
    }

    /// A step has been done.
    pub fn step(&mut self, row: Row) {
        let done = row.step + 1;
        let rate = self.started.elapsed().as_secs_f64() / self.work.between(self.first, done);
        let eta = duration(rate * self.work.between(done, self.stop));
        let live = row.lr.get(row.frozen..).unwrap_or_default();
        let (low, high) = live
            .iter()
            .fold((f64::INFINITY, 0f64), |(l, h), &x| (l.min(x), h.max(x)));
        let lr = if low == high {
            format!("{high:.2e}")
        } else {
            format!("{low:.1e}..{high:.1e}")
        };
        let frozen = match self.layers {
            0 | 1 => String::new(),
            layers => format!("  frozen {}/{layers}", row.frozen),
        };
        let size = row.image_size;
        let size = size.map_or(String::new(), |size| format!("  {size} px"));
        let text = format!(
            "ETA {eta}  loss {:.4}{frozen}{size}  {:.0} img/s  lr {lr}  epoch {}/{}",
            row.loss,
            row.images_per_second,
            row.epoch + 1,
            self.epochs,
        );
        self.bar.set_position(done as u64);
        self.bar.set_message(text.clone());
        let first = done == self.first + 1;
        if self.bar.is_hidden()
            && !is_held()
            && (first || done == self.stop || self.last_line.elapsed() >= LINE_EVERY)
        {
            note(format!("step {done}/{}  {text}", self.stop));
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
            "step {step}: {what}; {frozen} of {} layers frozen",
            self.layers
        ));
        self.pending = Some(step);
    }

    /// What the latest freeze saved, measured on the steps since.
    fn tell_saving(&mut self) {
        let Some(step) = self.pending.take() else {
            return;
        };
        let (before, mut after): (Vec<&Row>, Vec<&Row>) =
            self.rows.iter().partition(|r| r.step < step);
        let (Some(last), Some(&first)) = (before.last(), after.first()) else {
            return;
        };
        after.retain(|row| row.image_size == first.image_size);
        if first.frozen == 0 {
            return;
        }
        let saved = self
            .told_saving(&after)
            .map_or(String::new(), |(is, part)| {
                format!("{is:.3} s/step, {} less than unfrozen; ", percent(part))
            });
        self.say(format!(
            "    {} frozen: {saved}graph {} -> {} nodes",
            first.frozen, last.graph_nodes, first.graph_nodes,
        ));
    }

    /// Median seconds of these steps, whose images are of one size, and the part that they save of an unfrozen step of that
    /// size, if that is more than chance: three standard errors.
    fn told_saving(&self, frozen: &[&Row]) -> Option<(f64, f64)> {
        let unfrozen = unfrozen_rows(&self.rows, frozen.first()?.image_size);
        let unfrozen: Vec<f64> = unfrozen.map(|r| r.seconds.total).collect();
        let frozen: Vec<f64> = frozen.iter().map(|r| r.seconds.total).collect();
        let (is, error) = median_and_error(&frozen)?;
        let (was, other_error) = median_and_error(&unfrozen)?;
        (was - is > 3.0 * error.hypot(other_error)).then_some((is, 1.0 - is / was))
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
        let images = self.images();
        let part = |x: f64| 100.0 * x / sum.total.max(1e-9);
        let mut text = format!(
            "{}, {} in {} ({:.1} images/s)\n",
            counted(self.rows.len(), "step"),
            counted(images, "image"),
            duration(sum.total),
            images as f64 / sum.total.max(1e-9),
        );
        text += &format!(
            "  data {:.1} %, forward {:.1} %, backward {:.1} %, optimiser {:.1} %{}\n",
            part(sum.data),
            part(sum.forward),
            part(sum.backward),
            part(sum.optimizer),
            match sum.communication > 0.0 {
                true => format!(", communication {:.1} %", part(sum.communication)),
                false => String::new(),
            }
        );
        text += &self.saving();
        text += &self.losses();
        text
    }

    /// The loss over the first and the last epoch; in pretraining each stage's, since a frozen stage leaves the total.
    fn losses(&self) -> String {
        let stages = self.rows.first().map_or(0, |r| r.stage_losses.len());
        let all: Vec<String> = (0..stages)
            .map(|k| self.first_and_last(|r| *r.stage_losses.get(k)?))
            .collect();
        match all.is_empty() {
            true => format!(
                "  loss, first -> last epoch: {}\n",
                self.first_and_last(|r| Some(r.loss))
            ),
            false => format!(
                "  loss by stage, first -> last epoch:\n    {}\n",
                all.join(", ")
            ),
        }
    }

    fn first_and_last(&self, loss: impl Fn(&Row) -> Option<f64>) -> String {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let values: Vec<f64> = self.rows.iter().filter_map(loss).collect();
        if values.is_empty() {
            return "-".into();
        }
        let some = self.per_epoch.min(values.len());
        let (first, last) = (&values[..some], &values[values.len() - some..]);
        format!("{:.4} -> {:.4}", mean(first), mean(last))
    }

    /// Images of all steps.
    pub fn images(&self) -> usize {
        self.rows.iter().map(|r| r.images).sum()
    }

    /// Mean loss of the last epoch's steps.
    pub fn last_loss(&self) -> Option<f64> {
        let last = self.rows.len().saturating_sub(self.per_epoch);
        let rows = self.rows.get(last..).filter(|rows| !rows.is_empty())?;
        Some(rows.iter().map(|r| r.loss).sum::<f64>() / rows.len() as f64)
    }

    /// The part of the time that freezing saved, against the run's own unfrozen steps, if that is more than chance.
    pub fn saved(&self) -> Option<f64> {
        self.saved_seconds().map(|(saved, whole)| saved / whole)
    }

    /// Seconds that freezing saved, and that the steps would have taken unfrozen: of each size of the images whose unfrozen
    /// steps are known.
    fn saved_seconds(&self) -> Option<(f64, f64)> {
        let (mut saved, mut whole) = (0.0, 0.0);
        for (size, unfrozen) in self.unfrozen_steps() {
            let of_size: Vec<&Row> = self.rows.iter().filter(|r| r.image_size == size).collect();
            whole += unfrozen * of_size.len() as f64;
            let frozen: Vec<&Row> = of_size.into_iter().filter(|r| r.frozen > 0).collect();
            if self.told_saving(&frozen).is_some() {
                let seconds = frozen.iter().map(|r| unfrozen - r.seconds.total);
                saved += seconds.sum::<f64>();
            }
        }
        (saved > 0.0).then_some((saved, whole))
    }

    /// Median seconds of an unfrozen step, by the size of its images.
    fn unfrozen_steps(&self) -> Vec<(Option<usize>, f64)> {
        let sizes: BTreeSet<_> = self.rows.iter().map(|r| r.image_size).collect();
        let one = |size| Some((size, unfrozen_step(&self.rows, size)?));
        sizes.into_iter().filter_map(one).collect()
    }

    fn saving(&self) -> String {
        let unfrozen = self.unfrozen_steps();
        if unfrozen.is_empty() {
            return String::new();
        }
        let median = |(size, seconds): &(Option<usize>, f64)| match size {
            Some(size) => format!("{seconds:.3} s at {size} px"),
            None => format!("{seconds:.3} s"),
        };
        let medians: Vec<String> = unfrozen.iter().map(median).collect();
        let medians = medians.join(", ");
        match self.saved_seconds() {
            Some((saved, whole)) => format!(
                "  freezing saved {} = {} against its own unfrozen steps (median {medians})\n",
                duration(saved),
                percent(saved / whole),
            ),
            None if self.rows.iter().any(|r| r.frozen > 0) => format!(
                "  what freezing saved is less than the steps' own scatter (median of unfrozen ones {medians})\n"
            ),
            None if self.layers < 2 => String::new(),
            None => "  no layer was frozen in these steps\n".into(),
        }
    }
}

/// Median seconds of an unfrozen step whose images have this size.
pub fn unfrozen_step(rows: &[Row], size: Option<usize>) -> Option<f64> {
    median(unfrozen_rows(rows, size).map(|r| r.seconds.total))
}

/// The unfrozen steps without the first two of the run, which warm things up.
fn unfrozen_rows(rows: &[Row], size: Option<usize>) -> impl Iterator<Item = &Row> {
    let rows = rows.iter().skip(2);
    rows.filter(move |r| r.frozen == 0 && r.image_size == size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report of steps that took so long; the frozen ones come behind the others.
    fn report(unfrozen: &[f64], frozen: &[f64]) -> Report {
        let all = unfrozen.iter().map(|&s| (s, 0));
        let all = all.chain(frozen.iter().map(|&s| (s, 3)));
        let row = |(step, (total, frozen))| Row {
            step,
            epoch: 0,
            loss: 1.0,
            stage_losses: Vec::new(),
            lr: Vec::new(),
            frozen,
            image_size: None,
            graph_nodes: 10,
            grad_norm: None,
            images: 1,
            images_per_second: 1.0,
            reduced_bytes: None,
            seconds: Seconds {
                total,
                ..Seconds::default()
            },
        };
        let rows: Vec<Row> = all.enumerate().map(row).collect();
        Report::new(rows.len(), rows.len(), 1, 10, 13, rows)
    }

    #[test]
    fn a_saving_is_told_when_it_is_more_than_chance() {
        let steady = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0];
        let scattered = [1.0, 1.3, 0.7, 1.2, 0.8, 1.25, 0.75, 1.1, 0.9, 1.0];
        let times = |x: f64| steady.map(|s| s * x);
        let saving = |unfrozen: &[f64], frozen: &[f64]| report(unfrozen, frozen).saving();
        assert!(saving(&steady, &times(0.8)).contains("freezing saved"));
        assert!(saving(&steady, &times(0.8)).contains("= 10.0 %"));
        // Slower steps, the same ones, a saving below the scatter, too few steps to know.
        for (unfrozen, frozen) in [
            (&steady[..], &times(1.086)[..]),
            (&steady, &steady),
            (&scattered, &times(0.97)),
            (&steady, &times(0.8)[..4]),
        ] {
            let said = saving(unfrozen, frozen);
            assert!(said.contains("scatter"), "{said}");
        }
        assert!(saving(&steady, &[]).contains("no layer was frozen"));
        // Larger images take longer: they are held against unfrozen steps of their own size alone.
        let mut growing = report(&steady, &times(0.8));
        growing.rows.extend(report(&[], &times(3.0)).rows);
        for (i, row) in growing.rows.iter_mut().enumerate() {
            row.image_size = Some(if i < 20 { 128 } else { 224 });
        }
        let said = growing.saving();
        assert!(
            said.contains("= 10.0 %") && said.contains("(median 1.000 s at 128 px)"),
            "{said}"
        );
        assert!(report(&steady, &times(0.8)).saved().is_some());
        assert_eq!(report(&scattered, &times(0.97)).saved(), None);
    }
}

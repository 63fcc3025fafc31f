//! Progress of counted work: a bar on a terminal, a plain line every ten seconds otherwise.
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::{duration, is_quiet, note, warn};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Clone, Copy, PartialEq)]
pub enum Unit {
    Images,
    Bytes,
}

/// Work in progress.
pub struct Progress {
    bar: ProgressBar,
    unit: Unit,
    lines: Mutex<Lines>,
}

/// What the plain lines need.
struct Lines {
    what: String,
    /// Where `what` began: a download that goes on has units that cost no time.
    first: u64,
    started: Instant,
    last: Instant,
}

impl Progress {
    /// Of so many units; 0: unknown.
    pub fn new(total: u64, unit: Unit) -> Self {
        let bar = if std::io::stderr().is_terminal() && !is_quiet() {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        } else {
            let bar = ProgressBar::hidden();
            bar.set_length(total);
            bar
        };
        let template = match unit {
            Unit::Images => "{bar:12.cyan/dim} {pos}/{len}  ETA {eta}  {per_sec} {wide_msg}",
            Unit::Bytes => {
                "{bar:12.cyan/dim} {bytes}/{total_bytes}  ETA {eta}  {bytes_per_sec} {wide_msg}"
            }
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self {
            bar,
            unit,
            lines: Mutex::new(Lines {
                what: String::new(),
                first: 0,
                started: Instant::now(),
                last: Instant::now(),
            }),
        }
    }

    /// `done` units of `total` of `what` are done.
    pub fn at(&self, what: &str, done: u64, total: u64) {
        let mut lines = self.lines.lock().unwrap_or_else(|e| e.into_inner());
        self.bar.set_length(total);
        self.bar.set_position(done);
        if lines.what != what {
            lines.what = what.to_owned();
            (lines.first, lines.started) = (done, Instant::now());
            self.bar.set_message(vit::printable(what));
            self.bar.reset_eta();
        }
        if !self.bar.is_hidden() || lines.last.elapsed() < LINE_EVERY {
            return;
        }
        lines.last = Instant::now();
        let new = done.saturating_sub(lines.first) as f64;
        let rate = new / lines.started.elapsed().as_secs_f64().max(1e-9);
        let eta = duration(total.saturating_sub(done) as f64 / rate.max(1e-9));
        note(match self.unit {
            Unit::Images => format!("{done}/{total}  ETA {eta}  {rate:.0} img/s  {what}"),
            Unit::Bytes => format!(
                "{:.0}/{:.0} MB  ETA {eta}  {what}",
                done as f64 / 1e6,
                total as f64 / 1e6
            ),
        });
    }

    /// One line above the bar.
    pub fn say(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| note(line));
    }

    /// The same of every worker.
    pub fn warn(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| warn(line));
    }

    /// Ends the bar.
    pub fn close(&self) {
        self.bar.finish_and_clear();
    }
}

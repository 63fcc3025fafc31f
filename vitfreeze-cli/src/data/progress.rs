//! How far we are: a bar on a terminal, else a line now and then.
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::metrics::duration;
use crate::report::note;

const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts images.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    all: usize,
    done: usize,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// For so many images.
    pub fn new(what: &'static str, all: usize) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::with_draw_target(Some(all as u64), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let template = "{prefix} {bar:20.cyan/dim} {pos}/{len}  {per_sec}  ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(what);
        Self {
            bar,
            what,
            all,
            done: 0,
            started: Instant::now(),
            last_line: Instant::now(),
        }
    }

    /// So many more are done.
    pub fn add(&mut self, images: usize) {
        self.done += images;
        self.bar.set_position(self.done as u64);
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            let rate = self.done as f64 / self.started.elapsed().as_secs_f64();
            let eta = duration((self.all - self.done) as f64 / rate);
            note(format!(
                "{} {}/{}  {rate:.0} images/s  ETA {eta}",
                self.what, self.done, self.all
            ));
            self.last_line = Instant::now();
        }
    }

    /// Takes the bar away.
    pub fn close(&self) {
        self.bar.finish_and_clear();
    }
}

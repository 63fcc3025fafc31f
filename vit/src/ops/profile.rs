//! Where the time goes: wall time of regions of code, on one thread.
//!
//! A region inside another one is taken off that one's time: the rows of [`Profile::take`] add up to the time spent inside the
//! outermost regions. What other threads do is not seen, only that this one waited for it. Inside a parallel loop nothing is timed:
//! this thread may be one of rayon's and do a part of the loop.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// Times regions, or, as it is made by default, does nothing. Clones time into the same rows.
#[derive(Debug, Clone, Default)]
pub struct Profile(Option<Arc<Timer>>);

/// Times nothing.
pub(super) static OFF: Profile = Profile(None);

#[derive(Debug)]
struct Timer {
    thread: ThreadId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rows: HashMap<&'static str, (Duration, u64)>,
    /// The time of inner regions in each of the open ones, outermost first.
    inner: Vec<Duration>,
}

impl Timer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one kind of region took, without the regions inside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpTime {
    /// Its name.
    pub name: &'static str,
    /// Wall time in seconds, all calls together.
    pub seconds: f64,
    /// How often it ran.
    pub calls: u64,
}

impl Profile {
    /// One that times the regions of the calling thread.
    pub fn start() -> Self {
        Self(Some(Arc::new(Timer {
            thread: thread::current().id(),
            state: Mutex::default(),
        })))
    }

    /// The times since the start, or since this was called last; dearest first.
    pub fn take(&self) -> Vec<OpTime> {
        let state = self
            .0
            .as_ref()
            .map(|timer| std::mem::take(&mut *timer.state()));
        let row = |(name, (time, calls)): (_, (Duration, _))| OpTime {
            name,
            seconds: time.as_secs_f64(),
            calls,
        };
        let rows = state.unwrap_or_default().rows.into_iter();
        let mut rows: Vec<OpTime> = rows.map(row).collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then(a.name.cmp(b.name)));
        rows
    }

    /// Runs `f` as a region.
    pub fn timed<R>(&self, name: &'static str, f: impl FnOnce() -> R) -> R {
        let _region = self.region(name);
        f()
    }

    /// Begins a region that ends when the result is dropped.
    pub fn region(&self, name: &'static str) -> Region {
        let timer = self.0.clone();
        let timer = timer.filter(|timer| timer.thread == thread::current().id());
        if let Some(timer) = &timer {
            timer.state().inner.push(Duration::ZERO);
        }
        Region {
            name,
            since: timer.map(|timer| (timer, Instant::now())),
        }
    }
}

/// A region that runs; see [`Profile::region`].
#[must_use = "the region ends where this is dropped"]
pub struct Region {
    name: &'static str,
    /// `None` while nothing is timed.
    since: Option<(Arc<Timer>, Instant)>,
}

impl Drop for Region {
    fn drop(&mut self) {
        let Some((timer, since)) = &self.since else {
            return;
        };
        let time = since.elapsed();
        let mut state = timer.state();
        // A region that began before the rows were taken is open no more.
        let Some(inner) = state.inner.pop() else {
            return;
        };
        let (own, calls) = state.rows.entry(self.name).or_default();
        *own += time.saturating_sub(inner);
        *calls += 1;
        if let Some(outer) = state.inner.last_mut() {
            *outer += time;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait() {
        std::thread::sleep(Duration::from_millis(2));
    }

    #[test]
    fn inner_regions_are_taken_off_and_the_rows_sum_to_the_whole() {
        let profile = Profile::start();
        let begin = Instant::now();
        profile.timed("outer", || {
            wait();
            for _ in 0..3 {
                profile.timed("inner", wait);
            }
        });
        let whole = begin.elapsed().as_secs_f64();
        let rows = profile.take();
        assert_eq!(rows.len(), 2);
        let row = |name| *rows.iter().find(|row| row.name == name).unwrap();
        let (outer, inner) = (row("outer"), row("inner"));
        assert_eq!((outer.calls, inner.calls), (1, 3));
        // Sleeping takes at least as long as asked; were inner times not taken off, the sum would exceed the whole.
        assert!(outer.seconds >= 0.002 && inner.seconds >= 0.006);
        assert!(outer.seconds + inner.seconds <= whole);
        assert!(rows[0].seconds >= rows[1].seconds);
        assert_eq!(profile.take(), []);
    }

    #[test]
    fn nothing_is_timed_unless_started_nor_on_other_threads() {
        let off = Profile::default();
        off.timed("off", || ());
        assert_eq!(off.take(), []);
        let profile = Profile::start();
        std::thread::scope(|threads| {
            threads.spawn(|| profile.timed("other thread", || ()));
        });
        let open = profile.region("open");
        assert_eq!(profile.take(), []);
        // It began before.
        drop(open);
        profile.clone().timed("after", || ());
        let names: Vec<_> = profile.take().iter().map(|row| row.name).collect();
        assert_eq!(names, ["after"]);
    }
}

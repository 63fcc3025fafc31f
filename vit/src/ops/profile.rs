//! Where the time goes: wall time of regions of code, on the one thread that asked for it.
//!
//! A region inside another one is taken off that one's time: the rows of [`stop`] add up to the time spent inside the outermost
//! regions. What worker threads do is not seen, only that the calling thread waited for it. A thread that has not called
//! [`start`] pays one look at a thread-local for each region.
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

thread_local! {
    static TIMER: RefCell<Option<Timer>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Timer {
    rows: HashMap<&'static str, (Duration, u64)>,
    /// The time of inner regions in each of the open ones, outermost first.
    inner: Vec<Duration>,
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

/// Begins to time the regions of this thread; forgets what it has timed so far.
pub fn start() {
    TIMER.set(Some(Timer::default()));
}

/// Ends it: the times since [`start`], dearest first. Nothing without a start.
pub fn stop() -> Vec<OpTime> {
    let rows = TIMER.take().unwrap_or_default().rows.into_iter();
    let row = |(name, (time, calls)): (_, (Duration, _))| OpTime {
        name,
        seconds: time.as_secs_f64(),
        calls,
    };
    let mut rows: Vec<OpTime> = rows.map(row).collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then(a.name.cmp(b.name)));
    rows
}

/// Runs `f` as a region.
pub fn timed<R>(name: &'static str, f: impl FnOnce() -> R) -> R {
    let _region = region(name);
    f()
}

/// Begins a region that ends when the result is dropped.
pub fn region(name: &'static str) -> Region {
    let begin = |timer: &mut Timer| timer.inner.push(Duration::ZERO);
    let on = TIMER.with_borrow_mut(|timer| timer.as_mut().map(begin).is_some());
    Region {
        name,
        since: on.then(Instant::now),
    }
}

/// A region that runs; see [`region`].
#[must_use = "the region ends where this is dropped"]
pub struct Region {
    name: &'static str,
    /// `None` while nothing is timed.
    since: Option<Instant>,
}

impl Drop for Region {
    fn drop(&mut self) {
        let Some(since) = self.since else { return };
        let time = since.elapsed();
        TIMER.with_borrow_mut(|timer| {
            // A region that began before a start or a stop is open no more.
            let Some(timer) = timer else { return };
            let Some(inner) = timer.inner.pop() else {
                return;
            };
            let (own, calls) = timer.rows.entry(self.name).or_default();
            *own += time.saturating_sub(inner);
            *calls += 1;
            if let Some(outer) = timer.inner.last_mut() {
                *outer += time;
            }
        });
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
        start();
        let begin = Instant::now();
        timed("outer", || {
            wait();
            for _ in 0..3 {
                timed("inner", wait);
            }
        });
        let whole = begin.elapsed().as_secs_f64();
        let rows = stop();
        assert_eq!(rows.len(), 2);
        let row = |name| *rows.iter().find(|row| row.name == name).unwrap();
        let (outer, inner) = (row("outer"), row("inner"));
        assert_eq!((outer.calls, inner.calls), (1, 3));
        // Sleeping takes at least as long as asked; were inner times not taken off, the sum would exceed the whole.
        assert!(outer.seconds >= 0.002 && inner.seconds >= 0.006);
        assert!(outer.seconds + inner.seconds <= whole);
        assert!(rows[0].seconds >= rows[1].seconds);
    }

    #[test]
    fn nothing_is_timed_without_a_start_nor_on_other_threads() {
        timed("before", || ());
        assert_eq!(stop(), []);
        start();
        std::thread::scope(|threads| {
            threads.spawn(|| timed("other thread", || ()));
        });
        let open = region("open");
        assert_eq!(stop(), []);
        // Its end finds no timer, and later that of somebody else.
        start();
        drop(open);
        timed("after", || ());
        let names: Vec<_> = stop().iter().map(|row| row.name).collect();
        assert_eq!(names, ["after"]);
    }
}

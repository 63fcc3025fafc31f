//! A bound on the memory of decoding, over all threads: small files can hold very large images.

use std::cell::{Cell, RefCell};
use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes that images (and pages of Parquet files) take while they are decoded, in all threads together. An image that
/// needs more by itself is refused, unless a larger limit of pixels is given: it then is decoded alone.
pub(crate) const MAX_DECODED: u64 = 1 << 30;

static TAKEN: Mutex<u64> = Mutex::new(0);
static RETURNED: Condvar = Condvar::new();

thread_local! {
    static KEEPING: Cell<bool> = const { Cell::new(false) };
    static KEPT: RefCell<Option<Permit>> = const { RefCell::new(None) };
}

/// Permission to use so many bytes, returned when dropped. A thread holds one at a time, or two could wait for each other.
#[derive(Debug)]
pub(crate) struct Permit(u64);

impl Permit {
    /// Waits until the other threads leave so many bytes; more than there are in all, until they have returned all.
    pub fn take(bytes: u64) -> Self {
        KEPT.take();
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken > 0 && taken.saturating_add(bytes) > MAX_DECODED {
            taken = RETURNED.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = taken.saturating_add(bytes);
        Self(bytes)
    }

    /// The image is decoded and takes `bytes`: where the thread works on it in a [`Keep`], they stay taken.
    pub fn keep(mut self, bytes: u64) {
        if KEEPING.get() {
            self.give_back(self.0.saturating_sub(bytes));
            KEPT.set(Some(self));
        }
    }

    fn give_back(&mut self, bytes: u64) {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(bytes);
        self.0 = self.0.saturating_sub(bytes);
        RETURNED.notify_all();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back(self.0);
    }
}

/// While it lives, the permit of the image that this thread decoded last is not returned. Inside, a thread must not wait
/// for another that decodes.
pub(crate) struct Keep;

impl Keep {
    pub fn new() -> Self {
        KEEPING.set(true);
        Self
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        KEEPING.set(false);
        KEPT.take();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn threads_never_hold_more_than_the_bound() {
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for n in 0..8u64 {
                let (now, most) = (&now, &most);
                scope.spawn(move || {
                    let _keep = Keep::new();
                    for i in 0..20 {
                        let bytes = MAX_DECODED / (1 + (n + i) % 4);
                        let permit = Permit::take(bytes);
                        most.fetch_max(
                            now.fetch_add(bytes, Ordering::SeqCst) + bytes,
                            Ordering::SeqCst,
                        );
                        std::thread::yield_now();
                        now.fetch_sub(bytes, Ordering::SeqCst);
                        permit.keep(bytes / 2);
                    }
                });
            }
        });
        assert!(most.into_inner() <= MAX_DECODED);
    }

    #[test]
    fn what_is_larger_than_the_bound_goes_alone() {
        let large = Permit::take(3 * MAX_DECODED);
        let waits = std::thread::spawn(|| drop(Permit::take(1)));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waits.is_finished());
        drop(large);
        waits.join().unwrap();
    }
}

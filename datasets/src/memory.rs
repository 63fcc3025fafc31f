//! A bound on the memory of decoding: small files can hold very large images.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes that images (and pages of Parquet files) may take together while they are decoded: 1 GiB unless another number
/// is given. Clones share them. Each thread that reads has a [`Permit`] of the same memory.
#[derive(Clone, Debug)]
pub struct DecodeMemory(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    all: u64,
    taken: Mutex<u64>,
    returned: Condvar,
}

impl Default for DecodeMemory {
    fn default() -> Self {
        Self::new(1 << 30)
    }
}

impl DecodeMemory {
    /// So many bytes. An image that needs more by itself is refused, unless a larger limit of pixels is given: it then
    /// is decoded alone.
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(Pool {
            all: bytes,
            taken: Mutex::new(0),
            returned: Condvar::new(),
        }))
    }

    /// A permit that holds nothing yet.
    pub fn permit(&self) -> Permit {
        Permit {
            memory: self.clone(),
            bytes: 0,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.all
    }
}

/// Permission to use so many bytes of a [`DecodeMemory`], returned when dropped.
///
/// Reading an image takes what it needs and keeps what the image is large: hold the permit as long as the image. A thread
/// holds one that is not empty at a time, or two threads could wait for each other.
#[derive(Debug)]
pub struct Permit {
    memory: DecodeMemory,
    bytes: u64,
}

impl Permit {
    /// Returns what it holds, then waits until the other permits leave so many bytes; more than there are in all, until
    /// they hold none.
    pub fn take(&mut self, bytes: u64) {
        self.keep(0);
        let pool = &self.memory.0;
        let mut taken = pool.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken > 0 && taken.saturating_add(bytes) > pool.all {
            taken = (pool.returned.wait(taken)).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = taken.saturating_add(bytes);
        self.bytes = bytes;
    }

    /// Returns all but so many bytes.
    pub fn keep(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        if back > 0 {
            let pool = &self.memory.0;
            let mut taken = pool.taken.lock().unwrap_or_else(PoisonError::into_inner);
            *taken = taken.saturating_sub(back);
            self.bytes -= back;
            pool.returned.notify_all();
        }
    }

    /// The memory it is of.
    pub(crate) fn memory(&self) -> &DecodeMemory {
        &self.memory
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn threads_never_hold_more_than_the_bound() {
        const ALL: u64 = 1000;
        let memory = DecodeMemory::new(ALL);
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for n in 0..8u64 {
                let (memory, now, most) = (&memory, &now, &most);
                scope.spawn(move || {
                    let mut permit = memory.permit();
                    for i in 0..20 {
                        let bytes = ALL / (1 + (n + i) % 4);
                        permit.take(bytes);
                        let held = now.fetch_add(bytes, Ordering::SeqCst) + bytes;
                        most.fetch_max(held, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(bytes, Ordering::SeqCst);
                        permit.keep(bytes / 2);
                    }
                });
            }
        });
        assert!(most.into_inner() <= ALL);
        assert_eq!(*memory.0.taken.lock().unwrap(), 0);
    }

    #[test]
    fn what_is_larger_than_the_bound_goes_alone() {
        let memory = DecodeMemory::new(10);
        let mut large = memory.permit();
        large.take(30);
        let mut other = memory.permit();
        let waits = std::thread::spawn(move || other.take(1));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waits.is_finished());
        drop(large);
        waits.join().unwrap();
    }

    #[test]
    fn memories_know_nothing_of_each_other() {
        let (a, b) = (DecodeMemory::new(10), DecodeMemory::new(10));
        let (mut of_a, mut of_b) = (a.permit(), b.permit());
        of_a.take(10);
        of_b.take(10);
        let mut shared = b.clone().permit();
        drop(of_b);
        shared.take(10);
    }
}

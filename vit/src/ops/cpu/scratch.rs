//! Memory that is used again: temporaries and kept activations of the fused ops.
//!
//! A new vector may cost a page fault every 4 KiB; these hold whatever was in them.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

use super::unwritten::unwritten;

/// Requests after which a vector that nobody has taken is freed: several steps of the deepest models.
const AGE: u64 = 4096;

/// 64 bytes: a line of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

/// Unused vectors by their length, each with the request at which it came back; the latest last.
struct Pool {
    free: BTreeMap<usize, Vec<(u64, Vec<Line>)>>,
    requests: u64,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    free: BTreeMap::new(),
    requests: 0,
});

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread keeps no longer vectors than these 4 MiB.
const LOCAL_LINES: usize = 1 << 16;

thread_local! {
    /// For work inside a parallel loop, which would otherwise queue for the pool: this thread's own, of any length.
    static LOCAL: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Lines that go back to where they came from when they are dropped.
pub struct Lines {
    lines: Vec<Line>,
    length: usize,
    from: From,
}

/// Where lines came from.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Pool,
    Thread,
    Allocator,
}

impl Lines {
    /// So many of the pool, of whatever content.
    pub fn new(length: usize) -> Self {
        let mut pool = pool();
        pool.requests += 1;
        let now = pool.requests;
        let found = pool.free.get_mut(&length).and_then(Vec::pop);
        if now.is_multiple_of(256) {
            pool.free.retain(|_, vectors| {
                vectors.retain(|(since, _)| now - since < AGE);
                !vectors.is_empty()
            });
        }
        drop(pool);
        Self {
            lines: found.map_or_else(|| bytemuck::zeroed_vec(length), |(_, lines)| lines),
            length,
            from: From::Pool,
        }
    }

    /// So many of the allocator's, not yet written.
    ///
    /// # Safety
    /// Each line is written before it is read.
    pub unsafe fn own(length: usize) -> Self {
        Self {
            // SAFETY: the caller's.
            lines: unsafe { unwritten(length) },
            length,
            from: From::Allocator,
        }
    }

    /// So many of this thread's own, of whatever content.
    pub fn local(length: usize) -> Self {
        let mut lines = LOCAL.with_borrow_mut(Vec::pop).unwrap_or_default();
        if lines.len() < length {
            lines.resize(length, Line([0; 16]));
        }
        Self {
            lines,
            length,
            from: From::Thread,
        }
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        &self.lines[..self.length]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        &mut self.lines[..self.length]
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        match self.from {
            From::Thread => {
                if lines.len() <= LOCAL_LINES {
                    LOCAL.with_borrow_mut(|local| local.push(lines));
                }
            }
            From::Pool => {
                let mut pool = pool();
                let now = pool.requests;
                pool.free.entry(lines.len()).or_default().push((now, lines));
            }
            From::Allocator => {}
        }
    }
}

/// A vector of numbers that goes back to the pool when it is dropped.
pub struct Memory<T> {
    lines: Lines,
    length: usize,
    numbers: PhantomData<T>,
}

pub type Buffer = Memory<f32>;

impl<T: Pod> Memory<T> {
    /// `length` numbers, of whatever values.
    pub fn new(length: usize) -> Self {
        Self {
            lines: Lines::new(length.div_ceil(size_of::<Line>() / size_of::<T>())),
            length,
            numbers: PhantomData,
        }
    }
}

impl<T: Pod> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl<T: Pod> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

/// Frees the memory that the fused ops keep for their next call. To be called when a model shrinks (layers have been
/// frozen) or is done; nothing but speed depends on it.
pub fn release_buffers() {
    pool().free.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_it_got_and_frees_what_is_old() {
        // A length that no other test asks for.
        const LENGTH: usize = 1_000_003;
        let mut first = Buffer::new(LENGTH);
        first.fill(7.0);
        drop(first);
        assert!(Buffer::new(LENGTH).iter().all(|&x| x == 7.0));
        for _ in 0..AGE + 256 {
            drop(Buffer::new(1_000_033));
        }
        assert!(Buffer::new(LENGTH).iter().all(|&x| x == 0.0));
    }
}

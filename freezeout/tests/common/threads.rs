//! Ranks that are threads of one process: a double for tests, summing in order of the ranks.
use std::sync::{Arc, Barrier, Mutex};

use freezeout::distributed::Communicator;
use freezeout::Error;

#[derive(Debug)]
struct Shared {
    values: Vec<Mutex<Vec<f64>>>,
    barrier: Barrier,
}

#[derive(Debug, Clone)]
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

impl Threads {
    /// Everybody's numbers, by rank. f64 holds each f32 exactly.
    fn gather(&self, own: Vec<f64>) -> Vec<Vec<f64>> {
        *self.shared.values[self.rank].lock().unwrap() = own;
        self.shared.barrier.wait();
        let all = self.shared.values.iter();
        let all = all.map(|values| values.lock().unwrap().clone()).collect();
        self.shared.barrier.wait();
        all
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.values.len()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), Error> {
        let all = self.gather(values.iter().map(|&x| f64::from(x)).collect());
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|rank| rank[i] as f32).sum();
        }
        Ok(())
    }

    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), Error> {
        let all = self.gather(values.to_vec());
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|rank| rank[i]).sum();
        }
        Ok(())
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<(), Error> {
        let all = self.gather(bytes.iter().map(|&x| f64::from(x)).collect());
        for (byte, value) in bytes.iter_mut().zip(&all[root]) {
            *byte = *value as u8;
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), Error> {
        self.shared.barrier.wait();
        Ok(())
    }
}

/// Runs `rank` on as many threads; what each gave, by rank.
pub fn run<T: Send>(size: usize, rank: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
    let shared = Arc::new(Shared {
        values: (0..size).map(|_| Mutex::default()).collect(),
        barrier: Barrier::new(size),
    });
    std::thread::scope(|scope| {
        let rank = &rank;
        let start = |rank_of: usize| {
            let shared = shared.clone();
            scope.spawn(move || {
                rank(&Threads {
                    rank: rank_of,
                    shared,
                })
            })
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

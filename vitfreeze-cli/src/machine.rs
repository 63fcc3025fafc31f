//! What the program runs on: device, memory, signals.
pub mod allocator;
pub mod budget;
pub mod device;
mod doors;
#[cfg(feature = "cuda")]
mod gpu;
pub mod interrupt;
pub mod memory;
#[cfg(any(test, feature = "nccl"))]
mod torchrun;
pub mod workers;

use anyhow::Result;
use candle_core::Device;

use workers::Workers;

/// What a run computes with.
pub struct Machine {
    pub device: Device,
    /// Of this worker.
    pub threads: usize,
    pub workers: Workers,
}

impl Machine {
    /// What one of `workers` computes with: its part of the cores, and a GPU of its own where they are on GPUs.
    pub fn open(device: &str, threads: usize, workers: &Workers) -> Result<Self> {
        Ok(Self {
            threads: device::set_threads_of(threads, workers.sharing)?,
            device: workers.open_device(device)?,
            workers: workers.clone(),
        })
    }

    /// The same, its workers connected by what they compute on. All of them do this together, so none may have failed before.
    pub fn connected(self) -> Result<Self> {
        Ok(Self {
            workers: self.workers.by_gpu(&self.device)?,
            ..self
        })
    }
}

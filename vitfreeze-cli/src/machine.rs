//! What the program runs on: device, memory, signals.
pub mod allocator;
pub mod budget;
pub mod device;
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
        let threads = device::set_threads_of(threads, workers.local)?;
        let device = workers.open_device(device)?;
        Ok(Self {
            workers: workers.by_gpu(&device)?,
            device,
            threads,
        })
    }
}

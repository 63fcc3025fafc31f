//! What the program runs on: device, memory, signals.
pub mod allocator;
pub mod budget;
pub mod device;
mod doors;
#[cfg(feature = "cuda")]
mod gpu;
pub mod interrupt;
pub mod memory;
pub mod workers;

use candle_core::Device;

use workers::Workers;

/// What a run computes with.
pub struct Machine {
    pub device: Device,
    /// Of this worker.
    pub threads: usize,
    pub workers: Workers,
}

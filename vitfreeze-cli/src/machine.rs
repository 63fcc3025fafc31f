//! What the program runs on: device, memory, signals.
pub mod allocator;
pub mod budget;
pub mod device;
#[cfg(feature = "cuda")]
mod gpu;
pub mod interrupt;
pub mod memory;

#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod adamw;
mod error;
mod freeze;
mod gradients;
mod schedule;

pub use adamw::{decays, AdamW, AdamWConfig};
pub use candle_core as candle;
pub use error::Error;
pub use freeze::FreezeOut;
pub use gradients::Gradients;
pub use schedule::{LayerLr, Schedule, Spacing, Warmup};

#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]
#![cfg_attr(feature = "cuda", deny(unsafe_code))]

mod begin;
mod config;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda;
mod decoder;
mod error;
mod export;
mod hog;
mod loss;
mod masking;
mod model;
mod pixels;
mod target;

pub use begin::Begun;
pub use candle_core as candle;
pub use config::{LocalMimConfig, Stage};
pub use decoder::Decoder;
pub use error::Error;
pub use hog::hog;
pub use loss::{masked_mse, masked_mse_plain};
pub use masking::Masking;
pub use model::{LocalMim, Loss, StageOutput};
pub use pixels::{mean_and_deviation, pixels};
pub use target::Target;

#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod config;
mod error;
mod file;
mod init;
mod layers;
mod model;
pub mod ops;
mod pos_embed;

pub use candle_core as candle;
pub use config::VitConfig;
pub use error::Error;
pub use file::{save_atomic, save_encoder};
pub use init::init;
pub use layers::{Block, LayerNorm, Linear, PatchEmbed};
pub use model::Vit;
pub use pos_embed::sincos_2d;

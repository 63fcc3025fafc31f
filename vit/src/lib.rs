#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod backbone;
mod block;
mod checkpoint;
mod config;
mod drop;
mod error;
mod file;
mod finetune;
#[cfg(feature = "hub")]
mod hub;
mod init;
mod layers;
mod loss;
mod model;
pub mod ops;
mod pos_embed;
mod presets;
mod record;
mod swin;

pub use backbone::Backbone;
pub use block::Block;
pub use candle_core as candle;
pub use checkpoint::{
    adapt_input_channels, Checkpoint, Family, Filter, Head, Hints, Layout, LoadOptions, Preprocess,
    Pretrained, StoredTensor, StoredType,
};
pub use config::{Activation, Pool, PosEmbed, VitConfig};
pub use drop::Drops;
pub use error::{printable, shown, Error, Mismatch};
pub use file::{save_atomic, save_encoder, save_encoder_prepared, write_atomic, Staged};
pub use finetune::layer_of;
#[cfg(feature = "hub")]
pub use hub::{Hub, OnProgress};
pub use init::seeded;
pub use layers::{LayerNorm, Linear, PatchEmbed};
pub use loss::{cross_entropy, soft_target_cross_entropy};
pub use model::Vit;
pub use pos_embed::{axial_rope, resample_pos_embed, sincos_2d, Resample};
pub use swin::{Swin, SwinConfig, MAX_WINDOW};

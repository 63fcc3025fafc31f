//! What comes from outside: files, datasets, checkpoints.
pub mod channels;
pub mod classes;
pub mod dataset;
pub mod files;
#[cfg(feature = "hub")]
mod hub;
pub mod look;
pub mod normal;
pub mod pretrained;
pub mod splits;
pub mod subset;

#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod decode;
mod error;
mod folder;
mod loader;
pub mod rng;
mod shapes;
mod source;
mod transform;

pub use decode::{decode, DecodeError, MAX_PIXELS};
pub use error::Error;
pub use folder::ImageFolder;
pub use loader::{Batch, Batches, Loader, LoaderConfig, Skipped};
pub use rand_chacha::ChaCha8Rng;
pub use shapes::Shapes;
pub use source::{Image, Source};
pub use transform::{
    resize, CropBox, PretrainTransform, RandomResizedCrop, IMAGENET_MEAN, IMAGENET_STD,
};

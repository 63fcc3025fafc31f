#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod bands;
mod cache;
mod cifar;
mod decode;
mod error;
mod files;
mod folder;
mod formats;
mod ilsvrc;
mod listing;
mod loader;
mod mat;
mod memory;
mod mixup;
mod normalize;
mod open;
mod panics;
#[cfg(feature = "parquet")]
mod parquet;
mod resize;
pub mod rng;
mod shapes;
mod source;
mod split;
mod tar_images;
mod tiff;
mod transform;
mod webdataset;

pub use bands::{decode_bands, decode_bands_within, Bands, ChannelStats};
pub use cache::{write_cache, CacheFile};
pub use cifar::Cifar;
pub use decode::{decode, decode_within, DecodeError, MAX_PIXELS};
pub use error::Error;
pub use files::open_file;
pub use folder::ImageFolder;
pub use ilsvrc::open_ilsvrc;
pub use loader::{Batch, Batches, Loader, LoaderConfig, OnBad, Skipped};
pub use memory::{DecodeMemory, Permit};
pub use mixup::{MixMode, Mixup};
pub use normalize::{Normalize, IMAGENET_MEAN, IMAGENET_STD};
pub use open::{open, open_within};
pub use panics::catching_panics;
#[cfg(feature = "parquet")]
pub use parquet::ParquetImages;
pub use rand_chacha::ChaCha8Rng;
pub use resize::{resize, CropBox, Interpolation};
pub use shapes::Shapes;
pub use source::{Image, Source};
pub use split::{files_of as files_of_split, is_split};
pub use tar_images::TarImages;
pub use transform::{
    turn_hue, BandsTransform, ColorJitter, Drawn, EraseFill, EvalTransform, FinetuneTransform,
    Geometry, Op, PretrainTransform, RandAugment, RandomErasing, RandomResizedCrop, Recipe,
    Transform,
};
pub use webdataset::open_webdataset;

/// Entry points for the fuzzer.
#[doc(hidden)]
pub mod fuzz {
    pub use crate::cifar::fuzz_cifar as cifar;
    pub use crate::mat::fuzz_mat as mat;
    pub use crate::webdataset::fuzz_webdataset as webdataset;
}

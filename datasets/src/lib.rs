#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod decode;
mod error;
mod folder;
mod loader;
mod mixup;
mod normalize;
mod resize;
pub mod rng;
mod shapes;
mod source;
mod transform;

pub use decode::{decode, DecodeError, MAX_PIXELS};
pub use error::Error;
pub use folder::ImageFolder;
pub use loader::{Batch, Batches, Loader, LoaderConfig, Skipped};
pub use mixup::{MixMode, Mixup};
pub use normalize::{Normalize, IMAGENET_MEAN, IMAGENET_STD};
pub use rand_chacha::ChaCha8Rng;
pub use resize::{resize, CropBox, Interpolation};
pub use shapes::Shapes;
pub use source::{Image, Source};
pub use transform::{
    turn_hue, ColorJitter, Drawn, EraseFill, EvalTransform, FinetuneTransform, Geometry, Op,
    PretrainTransform, RandAugment, RandomErasing, RandomResizedCrop, Transform,
};

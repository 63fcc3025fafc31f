//! From a decoded image to the numbers a network sees.

mod crop;
mod eval;
mod pretrain;

pub use crop::RandomResizedCrop;
pub use eval::EvalTransform;
pub use pretrain::PretrainTransform;

use crate::Error;

/// An error for a side that no network has.
fn check_size(size: usize) -> Result<(), Error> {
    if (1..=1 << 14).contains(&size) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "image size {size}; expected 1 to 16384"
    )))
}

//! Everything that can go wrong in this crate.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Numbers that do not fit together.
    #[error("{0}")]
    Config(String),
    /// An architecture that does not fit together.
    #[error(transparent)]
    Vit(#[from] vit::Error),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

//! Either kind of model.
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::ops::Compute;
use crate::{Drops, Swin, Vit, VitConfig};

/// The model of an architecture, whatever its kind: what commands and examples that take any checkpoint call.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)]
pub enum Backbone {
    /// A Vision Transformer.
    Vit(Vit),
    /// A Swin Transformer.
    Swin(Swin),
}

macro_rules! of_either {
    ($self:expr, $model:ident => $do:expr) => {
        match $self {
            Self::Vit($model) => $do,
            Self::Swin($model) => $do,
        }
    };
}

impl Backbone {
    /// The whole model: [`Swin::new`] where the architecture has [`VitConfig::swin`], else [`Vit::new`].
    ///
    /// # Errors
    /// Sizes that do not fit, a variable that is missing or has another shape.
    pub fn new(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        match cfg.swin {
            Some(_) => Swin::new(cfg, vb).map(Self::Swin),
            None => Vit::new(cfg, vb).map(Self::Vit),
        }
    }

    /// The encoder alone, without final norm and head: [`Swin::encoder`] or [`Vit::encoder`].
    ///
    /// # Errors
    /// As [`Backbone::new`].
    pub fn encoder(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        match cfg.swin {
            Some(_) => Swin::encoder(cfg, vb).map(Self::Swin),
            None => Vit::encoder(cfg, vb).map(Self::Vit),
        }
    }

    /// The same, computing so.
    #[must_use]
    pub fn with_compute(self, compute: &Compute) -> Self {
        match self {
            Self::Vit(model) => Self::Vit(model.with_compute(compute)),
            Self::Swin(model) => Self::Swin(model.with_compute(compute)),
        }
    }

    /// How it computes.
    pub fn compute(&self) -> &Compute {
        of_either!(self, model => model.compute())
    }

    /// The architecture.
    pub fn config(&self) -> &VitConfig {
        of_either!(self, model => model.config())
    }

    /// The tokens behind each of `blocks` of the units in `ids_keep` alone, as masked pretraining wants them: [`Vit::features`]
    /// and [`Swin::visible_features`].
    ///
    /// # Errors
    /// Shapes that do not fit, a unit or a block that is not there.
    pub fn visible_features(
        &self,
        images: &Tensor,
        ids_keep: &[u32],
        blocks: &[usize],
    ) -> Result<Vec<Tensor>> {
        match self {
            Self::Vit(model) => model.features(images, Some(ids_keep), blocks),
            Self::Swin(model) => model.visible_features(images, ids_keep, blocks),
        }
    }

    /// `(B, C, H, W) -> (B, T, F)`: the last block's tokens behind the final norm; see [`Vit::forward_features`] and
    /// [`Swin::forward_features`].
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_features(&self, images: &Tensor) -> Result<Tensor> {
        of_either!(self, model => model.forward_features(images))
    }

    /// `(B, T, F) -> (B, F)`: these tokens as one vector, what the head sees.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        of_either!(self, model => model.pool(tokens))
    }

    /// `(B, T, F) -> (B, classes)`: pooling and head.
    ///
    /// # Errors
    /// Shapes that do not fit, a model without a head.
    pub fn forward_head(&self, tokens: &Tensor) -> Result<Tensor> {
        of_either!(self, model => model.forward_head(tokens))
    }

    /// `(B, C, H, W) -> (B, classes)`: logits.
    ///
    /// # Errors
    /// Shapes that do not fit, a model without a head.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        of_either!(self, model => model.forward(images))
    }

    /// The same while training: with the dropout and drop path of the architecture, drawn from `drops`.
    ///
    /// # Errors
    /// Shapes that do not fit, a number of seeds that is not B, a model without a head.
    pub fn forward_train(&self, images: &Tensor, drops: Drops) -> Result<Tensor> {
        of_either!(self, model => model.forward_train(images, drops))
    }
}

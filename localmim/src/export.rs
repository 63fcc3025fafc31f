//! The encoder out of a pretraining model.
use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use vit::{sincos_2d, PosEmbed};

use crate::LocalMimConfig;

impl LocalMimConfig {
    /// The encoder's tensors under timm's names, from all weights of the model: no decoders, the last stage's norm as the
    /// final `norm`, and a fixed position embedding as `pos_embed`.
    ///
    /// # Errors
    /// A weight that is missing, by name.
    pub fn encoder_tensors(
        &self,
        weights: &BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let last = format!("norm.{}.", self.stages.len().saturating_sub(1));
        let mut out = BTreeMap::new();
        for (name, tensor) in weights {
            let name = match name.split('.').next() {
                Some(
                    "patch_embed" | "cls_token" | "dist_token" | "reg_token" | "pos_embed"
                    | "norm_pre" | "blocks" | "layers",
                ) => name.clone(),
                Some("norm") if name.starts_with(&last) => name.replacen(&last, "norm.", 1),
                _ => continue,
            };
            out.insert(name, tensor.clone());
        }
        if self.vit.swin.is_some() {
            return Ok(out);
        }
        let Some(cls_token) = out.get("cls_token") else {
            candle_core::bail!("there is no weight 'cls_token'");
        };
        if self.vit.pos_embed == PosEmbed::SinCos {
            let pos_embed = sincos_2d(self.vit.embed_dim, self.vit.grid(), cls_token.device())?;
            let pos_embed = pos_embed.to_dtype(cls_token.dtype())?;
            out.insert("pos_embed".into(), pos_embed);
        }
        Ok(out)
    }
}

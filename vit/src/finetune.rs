//! An encoder made ready to be fine-tuned into a classifier.
use candle_core::{DType, Tensor};

use crate::{Error, Pool, Pretrained, VitConfig};

/// The layer of a variable, counted from the input, for freezing and for the layer decay of learning rates (BEiT, arXiv
/// 2106.08254): 0 is all that comes before the blocks, k + 1 is block k, `None` the last norm and the head.
pub fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    match parts.next()? {
        "cls_token" | "dist_token" | "reg_token" | "pos_embed" | "patch_embed" | "norm_pre" => {
            Some(0)
        }
        "blocks" => parts.next()?.parse::<usize>().ok().map(|block| block + 1),
        _ => None,
    }
}

impl VitConfig {
    /// The layer of a variable, as [`layer_of`] counts them. Those of a Swin are its blocks over all stages; a stage's merging
    /// belongs to its first block, as in timm.
    pub fn layer_of(&self, name: &str) -> Option<usize> {
        match &self.swin {
            Some(swin) if name.starts_with("layers.") => swin.layer_of(name),
            _ => layer_of(name),
        }
    }

    /// What the blocks' variables begin with in a layer above 0: `blocks.3`, of a Swin `layers.1.blocks.1`.
    pub fn block_name(&self, block: usize) -> String {
        match self.swin.and_then(|swin| swin.place(block)) {
            Some((stage, index)) => format!("layers.{stage}.blocks.{index}"),
            None => format!("blocks.{block}"),
        }
    }
}

impl Pretrained {
    /// A new head of `classes` outputs on the encoder, as MAE fine-tunes it (arXiv 2111.06377, A.1): the position table
    /// becomes a variable; with `fc_norm`, and where the mean of a ViT's patches is what the head sees, a new norm behind it takes
    /// the place of the encoder's own (a Swin keeps its own, in front of the mean). `draw` gives the first weights of `head` and of a distilled model's `head_dist`, by name
    /// and number (MAE draws them of a normal distribution with deviation 2e-5); biases are 0.
    ///
    /// # Errors
    /// [`Error::Config`] for a number of classes that no model has; an error of candle.
    pub fn with_new_head(
        self,
        classes: usize,
        fc_norm: bool,
        mut draw: impl FnMut(&str, usize) -> Vec<f32>,
    ) -> Result<Self, Error> {
        let mut all = self.with_learnt_table()?;
        let device = all.place().1;
        if fc_norm && all.cfg.pool == Pool::Avg && all.cfg.swin.is_none() {
            all.tensors.retain(|name, _| !name.starts_with("norm."));
            let ones = Tensor::ones(all.cfg.embed_dim, DType::F32, &device)?;
            let zeros = ones.zeros_like()?;
            all.tensors.insert("fc_norm.bias".into(), zeros);
            all.tensors.insert("fc_norm.weight".into(), ones);
            all.cfg.fc_norm = true;
        }
        all.cfg.num_classes = classes;
        all.cfg.validate()?;
        let width = all.cfg.features();
        let heads = ["head", "head_dist"];
        for head in &heads[..1 + usize::from(all.cfg.dist_token)] {
            let weight = Tensor::from_vec(draw(head, classes * width), (classes, width), &device)?;
            all.tensors.insert(format!("{head}.weight"), weight);
            let bias = Tensor::zeros(classes, DType::F32, &device)?;
            all.tensors.insert(format!("{head}.bias"), bias);
        }
        all.labels.clear();
        Ok(all)
    }
}

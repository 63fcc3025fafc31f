//! An encoder made ready to be fine-tuned into a classifier.
use candle_core::{DType, Tensor};

use crate::{Error, Pool, Pretrained};

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

impl Pretrained {
    /// A new head of `classes` outputs on the encoder, as MAE fine-tunes it (arXiv 2111.06377, A.1): the position table
    /// becomes a variable; with `fc_norm`, and where the mean of the patches is what the head sees, a new norm behind it takes the
    /// place of the encoder's own. `draw` gives the first weights of `head` and of a distilled model's `head_dist`, by name
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
        if fc_norm && all.cfg.pool == Pool::Avg {
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

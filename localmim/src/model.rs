//! LocalMIM: encoder, stages, loss.
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use vit::ops::Compute;
use vit::{Backbone, LayerNorm};

use crate::{masked_mse, Decoder, LocalMimConfig, Masking, Stage};

/// Local masked image modeling on a Vision Transformer or a Swin Transformer (arXiv 2303.05251): the tokens after several encoder blocks are
/// decoded, each stage against targets of its own resolution.
///
/// Variables: the encoder's under timm's names, `norm.{k}.*` and `decoder.{k}.*` for stage k. A stage whose weights are
/// plain tensors (frozen) is dead: neither decoder nor target nor loss is computed.
#[derive(Debug, Clone)]
pub struct LocalMim {
    cfg: LocalMimConfig,
    encoder: Backbone,
    stages: Vec<Head>,
    compute: Compute,
}

#[derive(Debug, Clone)]
struct Head {
    stage: Stage,
    norm: LayerNorm,
    decoder: Decoder,
}

/// The loss of one batch.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Sum over the live stages, a scalar to call `backward` on.
    pub total: Tensor,
    /// Each stage's own loss, a scalar; `None` for a dead stage.
    pub stages: Vec<Option<Tensor>>,
}

/// What one stage saw and said; for tests and pictures.
#[derive(Debug, Clone)]
pub struct StageOutput {
    /// The encoder's class token and visible patches after the stage's norm (B, 1 + K, D); a Swin's visible tokens alone.
    pub latent: Tensor,
    /// The prediction (B, L, outputs).
    pub pred: Tensor,
}

impl LocalMim {
    /// # Errors
    /// Numbers that do not fit together, a variable that is missing or has another shape.
    pub fn new(cfg: &LocalMimConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let eps = cfg.vit.norm_eps;
        let head = |(k, stage): (usize, &Stage)| {
            Ok(Head {
                stage: *stage,
                norm: LayerNorm::new(cfg.width(stage), eps, vb.pp("norm").pp(k))?,
                decoder: Decoder::new(cfg, stage, vb.pp("decoder").pp(k))?,
            })
        };
        Ok(Self {
            encoder: Backbone::encoder(&cfg.vit, vb.clone())?,
            stages: cfg
                .stages
                .iter()
                .enumerate()
                .map(head)
                .collect::<Result<_>>()?,
            cfg: cfg.clone(),
            compute: Compute::default(),
        })
    }

    /// The same, computing so.
    #[must_use]
    pub fn with_compute(self, compute: &Compute) -> Self {
        let head = |head: Head| Head {
            norm: head.norm.with_compute(compute),
            decoder: head.decoder.with_compute(compute),
            ..head
        };
        Self {
            encoder: self.encoder.with_compute(compute),
            stages: self.stages.into_iter().map(head).collect(),
            compute: compute.clone(),
            ..self
        }
    }

    /// The numbers of the model.
    pub fn config(&self) -> &LocalMimConfig {
        &self.cfg
    }

    /// `(B, C, H, W), masking -> loss`: encode the visible patches; for each live stage decode and compare with its
    /// target on the removed patches; sum.
    ///
    /// # Errors
    /// Shapes that do not fit, or no live stage.
    pub fn loss(&self, images: &Tensor, masking: &Masking) -> Result<Loss> {
        let live: Vec<&Head> = self.stages.iter().filter(|s| s.decoder.is_live()).collect();
        let stages: Vec<Stage> = live.iter().map(|s| s.stage).collect();
        let targets = self.cfg.targets(images, &stages, &self.compute)?;
        let outputs = self.decode(images, masking, &live)?;
        let mut losses = Vec::with_capacity(live.len());
        for ((head, output), target) in live.iter().zip(outputs).zip(targets) {
            let mask = self.mask(masking, &head.stage, &output.pred)?;
            losses.push(masked_mse(&output.pred, &target, &mask, &self.compute)?);
        }
        let Some(total) = losses.iter().cloned().map(Ok).reduce(|a, b| a? + b?) else {
            candle_core::bail!("no live stage: the weights of all decoders are plain tensors");
        };
        let mut losses = losses.into_iter();
        let stage = |s: &Head| s.decoder.is_live().then(|| losses.next()).flatten();
        Ok(Loss {
            total: total?,
            stages: self.stages.iter().map(stage).collect(),
        })
    }

    /// Latent and prediction of every stage, dead or alive.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn predict(&self, images: &Tensor, masking: &Masking) -> Result<Vec<StageOutput>> {
        self.decode(images, masking, &self.stages.iter().collect::<Vec<_>>())
    }

    fn decode(
        &self,
        images: &Tensor,
        masking: &Masking,
        heads: &[&Head],
    ) -> Result<Vec<StageOutput>> {
        let blocks: Vec<usize> = heads.iter().map(|h| h.stage.block).collect();
        let visible = &masking.ids_keep;
        let features = self.encoder.visible_features(images, visible, &blocks)?;
        heads
            .iter()
            .zip(features)
            .map(|(head, tokens)| {
                let latent = head.norm.forward(&self.decoded(tokens)?)?;
                let pred = head.decoder.forward(&latent, &masking.ids_restore)?;
                Ok(StageOutput { latent, pred })
            })
            .collect()
    }

    /// `(B, P + K, D) -> (B, 1 + K, D)`: decoders see the class token and the patches, no distillation token or registers.
    fn decoded(&self, tokens: Tensor) -> Result<Tensor> {
        let prefix = self.cfg.vit.prefix_tokens();
        if prefix <= 1 {
            return Ok(tokens);
        }
        let patches = tokens.narrow(1, prefix, tokens.dim(1)? - prefix)?;
        Tensor::cat(&[&tokens.narrow(1, 0, 1)?, &patches], 1)
    }

    fn mask(&self, masking: &Masking, stage: &Stage, pred: &Tensor) -> Result<Tensor> {
        let mask = masking.on_grid(self.cfg.side(), stage.scale);
        let shape = (masking.batch, mask.len() / masking.batch);
        Tensor::from_vec(mask, shape, pred.device())?.to_dtype(pred.dtype())
    }
}

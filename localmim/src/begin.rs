//! Continued pretraining: a model's first weights from a checkpoint.
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use vit::{
    resample_pos_embed, sincos_2d, Checkpoint, Head, LoadOptions, Pool, PosEmbed, Resample,
    VitConfig,
};

use crate::{Error, LocalMimConfig};

/// What a model's first weights are, by the names of its variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Begun {
    /// From the checkpoint.
    pub taken: Vec<String>,
    /// As they were: drawn anew.
    pub new: Vec<String>,
    /// What the checkpoint has for an encoder or its pretraining and the model has no use for.
    pub left: Vec<String>,
}

impl LocalMimConfig {
    /// The encoder of a checkpoint as one that pretrains on square images of `image_size` pixels: without head, pooling and
    /// dropout. Its position table stays the fixed sin-cos one where the checkpoint has that one for this very grid; any other
    /// becomes a variable, and [`begin`](LocalMimConfig::begin) resamples it. Rotary positions stay what they are.
    ///
    /// # Errors
    /// A position table that cannot be read.
    pub fn encoder_of(checkpoint: &Checkpoint, image_size: usize) -> Result<VitConfig, Error> {
        let stored = checkpoint.config();
        let cfg = VitConfig {
            pool: match stored.swin {
                Some(_) => Pool::Avg,
                None => Pool::default(),
            },
            fc_norm: false,
            num_classes: 0,
            drop_rate: 0.0,
            drop_path_rate: 0.0,
            ..stored.with_image((image_size, image_size))
        };
        let pos_embed = match stored.pos_embed {
            rotary @ PosEmbed::Rope { .. } => rotary,
            _ if cfg.grid() == stored.grid() && checkpoint.has_sincos_table()? => PosEmbed::SinCos,
            _ => PosEmbed::Learnt,
        };
        Ok(VitConfig { pos_embed, ..cfg })
    }

    /// Puts a checkpoint's weights in the places of the model's own first ones in `vars`: the encoder, its final norm as the
    /// last stage's, and the decoders, each whole and with its norm or not at all. A decoder fits if its shapes do, if its
    /// position table is the fixed one, and, where the model `of` which it is a part is known, if it had the same stage and
    /// target there.
    ///
    /// # Errors
    /// A checkpoint of another architecture than [`encoder_of`](LocalMimConfig::encoder_of) gave, a tensor that cannot be read.
    pub fn begin(
        &self,
        vars: &VarMap,
        checkpoint: &Checkpoint,
        of: Option<&LocalMimConfig>,
        device: &Device,
    ) -> Result<Begun, Error> {
        let options = LoadOptions {
            image: Some(self.vit.image()),
            channels: Some(self.vit.in_chans),
            head: Head::Drop,
            dtype: DType::F32,
            device: device.clone(),
        };
        let mut from = checkpoint.load(&options)?.tensors;
        let last = self.stages.len().saturating_sub(1);
        for kind in ["weight", "bias"] {
            if let Some(norm) = from.remove(&format!("norm.{kind}")) {
                from.insert(format!("norm.{last}.{kind}"), norm);
            }
        }
        match self.vit.pos_embed {
            PosEmbed::SinCos => drop(from.remove("pos_embed")),
            PosEmbed::Learnt if self.vit.swin.is_none() && !from.contains_key("pos_embed") => {
                let own = checkpoint.config().grid();
                let table = sincos_2d(self.vit.embed_dim, own, device)?;
                let table = resample_pos_embed(&table, 1, own, self.vit.grid(), Resample::Plain)?;
                from.insert("pos_embed".into(), table);
            }
            PosEmbed::Learnt | PosEmbed::Rope { .. } => {}
        }
        let vars = vars.data().lock().unwrap_or_else(|e| e.into_inner());
        let mut decoders = checkpoint.decoders()?;
        for (k, stage) in self.stages.iter().enumerate() {
            let start = format!("decoder.{k}.");
            let same =
                of.is_none_or(|of| of.target == self.target && of.stages.get(k) == Some(stage));
            let fits = vars.iter().all(|(name, var)| {
                !name.starts_with(&start)
                    || decoders
                        .get(name)
                        .is_some_and(|t| same_shape(t, var.dims()))
            });
            let table = format!("{start}pos_embed");
            let own = (self.decoder_embed_dim, checkpoint.config().grid());
            let placed = match decoders.get(&table) {
                Some(table) => is_sincos(table, own)?,
                None => true,
            };
            if !(same && fits && placed) {
                continue;
            }
            decoders.remove(&table);
            let norm = format!("norm.{k}.");
            let taken: Vec<String> = (decoders.keys())
                .filter(|name| vars.contains_key(*name))
                .filter(|name| name.starts_with(&start) || name.starts_with(&norm))
                .cloned()
                .collect();
            for name in taken {
                if let Some(tensor) = decoders.remove(&name) {
                    from.insert(name, tensor);
                }
            }
        }
        let mut begun = Begun::default();
        for (name, var) in vars.iter() {
            match from.remove(name) {
                Some(tensor) if same_shape(&tensor, var.dims()) => {
                    var.set(&tensor.reshape(var.shape())?.to_device(device)?)?;
                    begun.taken.push(name.clone());
                }
                Some(tensor) => {
                    return Err(Error::Config(format!(
                        "'{name}' has shape {:?} in the checkpoint, {:?} in the model",
                        tensor.dims(),
                        var.dims()
                    )))
                }
                None => begun.new.push(name.clone()),
            }
        }
        begun.left = BTreeMap::into_keys(from)
            .chain(decoders.into_keys())
            .collect();
        for names in [&mut begun.taken, &mut begun.new, &mut begun.left] {
            names.sort();
        }
        Ok(begun)
    }
}

/// Whether a decoder's position table is the fixed one of this width and grid, as ours are; up to the rounding of bf16.
fn is_sincos(table: &Tensor, (dim, grid): (usize, (usize, usize))) -> Result<bool, Error> {
    let fixed = sincos_2d(dim, grid, table.device())?;
    if table.dims() != fixed.dims() {
        return Ok(false);
    }
    let far = (table - fixed)?.abs()?.flatten_all()?.max(0)?;
    Ok(far.to_scalar::<f32>()? < 4e-3)
}

/// A linear layer is stored as such or as a 1 x 1 convolution.
fn same_shape(tensor: &Tensor, dims: &[usize]) -> bool {
    let trimmed = |mut dims: &[usize]| {
        while let [rest @ .., 1] = dims {
            dims = rest;
        }
        dims.to_vec()
    };
    trimmed(tensor.dims()) == trimmed(dims)
}

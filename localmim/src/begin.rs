//! Continued pretraining: a model's first weights from a checkpoint.
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use vit::{
    resample_pos_embed, sincos_2d, Checkpoint, Family, Head, LoadOptions, Pool, PosEmbed, Resample,
    VitConfig,
};

use crate::{Error, LocalMimConfig, Stage, Target};

/// What a model's first weights are, by the names of its variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Begun {
    /// From the checkpoint.
    pub taken: Vec<String>,
    /// As they were: drawn anew.
    pub new: Vec<String>,
    /// What the checkpoint has for an encoder or its pretraining and the model has no use for.
    pub left: Vec<String>,
    /// Whether decoders were taken of which nothing tells how many heads they had: the model's number is assumed.
    pub heads_assumed: bool,
}

impl LocalMimConfig {
    /// The encoder of a checkpoint as one that pretrains on square images of `image_size` pixels: without head, pooling and
    /// dropout. Its position table stays the fixed sin-cos one where the checkpoint has that one for this very grid, or for
    /// any grid if images grow (`grows`): it is then computed for each size. Any other becomes a variable, and
    /// [`begin`](LocalMimConfig::begin) resamples it. Rotary positions stay what they are.
    ///
    /// # Errors
    /// A position table that cannot be read.
    pub fn encoder_of(
        checkpoint: &Checkpoint,
        image_size: usize,
        grows: bool,
    ) -> Result<VitConfig, Error> {
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
        let fixed = || {
            Ok::<bool, Error>(
                (grows || cfg.grid() == stored.grid()) && checkpoint.has_sincos_table()?,
            )
        };
        let pos_embed = match stored.pos_embed {
            rotary @ PosEmbed::Rope { .. } => rotary,
            _ if fixed()? => PosEmbed::SinCos,
            _ => PosEmbed::Learnt,
        };
        Ok(VitConfig { pos_embed, ..cfg })
    }

    /// Puts a checkpoint's weights in the places of the model's own first ones in `vars`: the encoder, its final norm as the
    /// last stage's, and the decoders, each whole and with its norm or not at all. A decoder is taken if it has the very
    /// tensors that the model's needs, as many heads, and the fixed position table. Whose it is:
    ///
    /// - Where the model `of` which it is a part is known, that of the same block and scale, if the target is the same.
    /// - MAE's is behind the last block, at scale 1, for pixels.
    /// - Of LocalMIM's files, which do not tell blocks, those of the same place in the order, if there are as many.
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
        let heads = match of {
            Some(of) => Some(of.decoder_num_heads),
            None => checkpoint.decoder_heads(),
        };
        let alike = heads.is_none_or(|heads| heads == self.decoder_num_heads);
        let number =
            |name: &String| Some(name.strip_prefix("decoder.")?.split_once('.')?.0.to_owned());
        let count = decoders
            .keys()
            .filter_map(number)
            .collect::<BTreeSet<_>>()
            .len();
        let mut heads_assumed = false;
        for (k, stage) in self.stages.iter().enumerate().filter(|_| alike) {
            let Some(j) = self.counterpart((k, stage), checkpoint, of, count) else {
                continue;
            };
            let (theirs, ours) = (format!("decoder.{j}."), format!("decoder.{k}."));
            let table = format!("{theirs}pos_embed");
            let placed = match decoders.get(&table) {
                Some(table) => self.is_sincos(stage, table, checkpoint.config())?,
                None => true,
            };
            let mut whole = of_part(&decoders, &theirs);
            whole.retain(|(_, name, _)| *name != table);
            let mut norm = Vec::new();
            if k != last {
                norm = of_part(&decoders, &format!("norm.{j}."));
            }
            let fits = |found: &[(String, String, Vec<usize>)], start: &str| {
                let needed = vars.iter().filter(|(name, _)| name.starts_with(start));
                needed.clone().count() == found.len()
                    && found.iter().all(|(rest, _, shape)| {
                        vars.get(&format!("{start}{rest}"))
                            .is_some_and(|var| same_shape(shape, var.dims()))
                    })
            };
            let norm_fits = k == last || fits(&norm, &format!("norm.{k}."));
            if !(placed && fits(&whole, &ours) && norm_fits) {
                continue;
            }
            decoders.remove(&table);
            for (parts, start) in [(whole, ours), (norm, format!("norm.{k}."))] {
                for (rest, name, _) in parts {
                    if let Some(tensor) = decoders.remove(&name) {
                        from.insert(format!("{start}{rest}"), tensor);
                    }
                }
            }
            heads_assumed |= heads.is_none();
        }
        let mut begun = Begun {
            heads_assumed,
            ..Begun::default()
        };
        for (name, var) in vars.iter() {
            match from.remove(name) {
                Some(tensor) if same_shape(tensor.dims(), var.dims()) => {
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

    /// Whether a stage's position table is the fixed one, as ours are, of its decoder's width and the grid of a checkpoint; up to the
    /// rounding of bf16. A Swin's has no row of a class token.
    fn is_sincos(&self, stage: &Stage, table: &Tensor, of: &VitConfig) -> Result<bool, Error> {
        let (dim, own) = (self.decoder_dim(stage), self.place(stage));
        let grid = own.map_or(of.grid(), |place| of.stage_grid(place));
        let mut fixed = sincos_2d(dim, grid, table.device())?;
        if own.is_some() {
            fixed = fixed.narrow(1, 1, grid.0 * grid.1)?;
        }
        if table.dims() != fixed.dims() {
            return Ok(false);
        }
        let far = (table - fixed)?.abs()?.flatten_all()?.max(0)?;
        Ok(far.to_scalar::<f32>()? < 4e-3)
    }

    /// The number of that of the checkpoint's `count` decoders which stage `k` may have, by what is known of it but its
    /// tensors.
    fn counterpart(
        &self,
        (k, stage): (usize, &Stage),
        checkpoint: &Checkpoint,
        of: Option<&LocalMimConfig>,
        count: usize,
    ) -> Option<usize> {
        let last = k + 1 == self.stages.len();
        match of {
            Some(of) if of.target != self.target => None,
            Some(of) => of.stages.iter().position(|other| other == stage),
            None if matches!(checkpoint.family(), Family::Mae | Family::HfVitMae) => {
                let pixels = matches!(self.target, Target::Pixel { .. });
                (last && stage.scale == 1.0 && pixels).then_some(0)
            }
            None => (count == self.stages.len()).then_some(k),
        }
    }
}

/// The tensors whose names begin so: how these go on, the names, the shapes.
fn of_part(tensors: &BTreeMap<String, Tensor>, start: &str) -> Vec<(String, String, Vec<usize>)> {
    let named = tensors.iter().filter_map(|(name, tensor)| {
        let rest = name.strip_prefix(start)?;
        Some((rest.to_owned(), name.clone(), tensor.dims().to_vec()))
    });
    named.collect()
}

/// A linear layer is stored as such or as a 1 x 1 convolution.
fn same_shape(stored: &[usize], dims: &[usize]) -> bool {
    let trimmed = |mut dims: &[usize]| {
        while let [rest @ .., 1] = dims {
            dims = rest;
        }
        dims.to_vec()
    };
    trimmed(stored) == trimmed(dims)
}

//! Checkpoints out: a folder that timm or transformers loads.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{json, Value};

use super::load::Pretrained;
use super::{preprocess, save_eva, save_hf};
use crate::{sincos_2d, Activation, Error, Pool, PosEmbed, VitConfig};

/// Whose layout to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `timm.create_model("local-dir:FOLDER", pretrained=True)`
    Timm,
    /// `transformers.AutoModel.from_pretrained("FOLDER")`
    HuggingFace,
}

impl Layout {
    /// Whether the layout has such an architecture: to be asked before hours of training.
    ///
    /// # Errors
    /// [`Error::Layout`] with what it lacks and what to do.
    pub fn check(self, cfg: &VitConfig) -> Result<(), Error> {
        match self {
            Self::Timm if cfg.pool == Pool::TokenAvg => Err(Error::Layout {
                layout: "timm",
                reason:
                    "its head sees class token and mean of the patches side by side; drop the head"
                        .into(),
            }),
            Self::Timm => save_eva::check(cfg),
            Self::HuggingFace => save_hf::check(cfg),
        }
    }
}

impl Pretrained {
    /// Writes config.json, preprocessor_config.json (Hugging Face) and model.safetensors into the new folder `folder`, all
    /// of them or none, and returns what the reader will do otherwise than we, in sentences for a person.
    ///
    /// # Errors
    /// [`Error::Layout`] when the layout has no such architecture, [`Error::Write`] (also when `folder`
    /// holds something), a `dtype` that is no f32, f16, bf16.
    pub fn save(&self, folder: &Path, layout: Layout, dtype: DType) -> Result<Vec<String>, Error> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::Config(format!(
                "cannot save as {dtype:?}; f32, f16 or bf16"
            )));
        }
        let (files, tensors, notes) = match layout {
            Layout::Timm => self.timm()?,
            Layout::HuggingFace => save_hf::convert(self, dtype)?,
        };
        let mut out = BTreeMap::new();
        for (name, tensor) in tensors {
            let tensor = tensor.to_dtype(dtype)?;
            if dtype == DType::F16 && !finite(&tensor)? {
                return Err(Error::Layout {
                    layout: "f16",
                    reason: format!("tensor '{name}' has numbers beyond 65504; use bf16 or f32"),
                });
            }
            out.insert(name, tensor);
        }
        write_folder(folder, |new| {
            for (name, json) in files {
                crate::write_atomic(&new.join(name), format!("{json:#}\n").as_bytes())?;
            }
            let metadata = ("format", "pt".to_owned());
            crate::save_atomic(&new.join("model.safetensors"), &out, metadata)
        })?;
        Ok(notes)
    }

    /// Writes one safetensors file that [`Checkpoint::open`](crate::Checkpoint::open) loads as it is: all tensors under
    /// timm's names, and under the metadata key `vitfreeze` [`Pretrained::metadata`].
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn save_file(&self, path: &Path) -> Result<(), Error> {
        let json = self.metadata()?;
        crate::save_atomic(path, &self.tensors, ("vitfreeze", json.to_string()))
    }

    /// All but the tensors: the [`VitConfig`] as JSON with `labels` (names of the classes) and `preprocess` (`crop_pct`,
    /// `squash`, `floor_margin`, `interpolation`, `mean`, `std`) beside its own keys. A file that tells it has an
    /// architecture that is read and not inferred; one that its tensors contradict is an error.
    ///
    /// # Errors
    /// None of a config that is valid.
    pub fn metadata(&self) -> Result<Value, Error> {
        let fail = |e: serde_json::Error| Error::Config(e.to_string());
        let mut json = serde_json::to_value(self.cfg).map_err(fail)?;
        json["labels"] = serde_json::to_value(&self.labels).map_err(fail)?;
        json["preprocess"] = preprocess::to_ours(&self.preprocess);
        Ok(json)
    }

    /// The same model with its position table, if it has one, as a tensor that can train, also where it was the fixed one.
    ///
    /// # Errors
    /// An error of candle.
    pub fn with_learnt_table(self) -> Result<Self, Error> {
        Ok(Self {
            tensors: self.with_table()?,
            cfg: VitConfig {
                pos_embed: match self.cfg.pos_embed {
                    PosEmbed::Learnt | PosEmbed::SinCos => PosEmbed::Learnt,
                    rotary @ PosEmbed::Rope { .. } => rotary,
                },
                ..self.cfg
            },
            ..self
        })
    }

    /// All tensors, the position table among them even where it is fixed.
    pub(super) fn with_table(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut tensors = self.tensors.clone();
        if self.cfg.pos_embed == PosEmbed::SinCos {
            if let Some(token) = self.tensors.get("cls_token") {
                let table = sincos_2d(self.cfg.embed_dim, self.cfg.grid(), token.device())?;
                let zeros = table.narrow(1, 0, 1)?;
                let zeros = zeros.repeat((1, self.cfg.embedded_prefix(), 1))?;
                let table = table.narrow(1, 1, self.cfg.patches())?;
                let table = Tensor::cat(&[&zeros, &table], 1)?.to_dtype(token.dtype())?;
                tensors.insert("pos_embed".into(), table);
            }
        }
        Ok(tensors)
    }

    fn timm(&self) -> Result<Files, Error> {
        let cfg = &self.cfg;
        Layout::Timm.check(cfg)?;
        let rotary = cfg.rope_theta().is_some();
        let swin = cfg.swin.map(|swin| super::swin::to_timm(self, &swin));
        // A model function that has what model_args cannot say: the classes of norm, MLP and model.
        let (architecture, eps) = match () {
            () if swin.is_some() => ("swin_tiny_patch4_window7_224", 1e-5),
            () if rotary => (save_eva::ARCHITECTURE, 1e-5),
            () if cfg.dist_token => ("deit_base_distilled_patch16_224", 1e-6),
            () if cfg.activation == Activation::SwiGlu => ("vit_giant_patch14_dinov2", 1e-6),
            () if cfg.pre_norm => ("vit_base_patch16_clip_224", 1e-5),
            () => ("vit_base_patch16_224", 1e-6),
        };
        let (height, width) = cfg.image();
        let pool = match cfg.pool {
            Pool::Avg => "avg",
            _ => "token",
        };
        let mut args = json!({
            "img_size": [height, width],
            "patch_size": cfg.patch_size,
            "embed_dim": cfg.embed_dim,
            "mlp_ratio": ratio(cfg),
            "qkv_bias": cfg.qkv_bias,
        });
        if swin.is_none() {
            let of_vits = json!({
                "depth": cfg.depth,
                "num_heads": cfg.num_heads,
                "init_values": cfg.init_values,
                "global_pool": pool,
            });
            extend(&mut args, of_vits);
        }
        let own = match &swin {
            Some((swin, _)) => swin.clone(),
            None if rotary => save_eva::args(cfg),
            None => json!({
                "no_embed_class": cfg.no_embed_class,
                "reg_tokens": cfg.reg_tokens,
                "pre_norm": cfg.pre_norm,
                "fc_norm": cfg.fc_norm,
            }),
        };
        extend(&mut args, own);
        if cfg.in_chans != 3 {
            args["in_chans"] = json!(cfg.in_chans);
        }
        match cfg.activation {
            Activation::GeluTanh => args["act_layer"] = json!("gelu_tanh"),
            Activation::QuickGelu => args["act_layer"] = json!("quick_gelu"),
            Activation::Gelu | Activation::SwiGlu => {}
        }
        let mut config = json!({
            "architecture": architecture,
            "num_classes": cfg.num_classes,
            "num_features": cfg.features(),
            "global_pool": pool,
            "model_args": args,
            "pretrained_cfg": {
                "tag": "vitfreeze",
                "custom_load": false,
                "num_classes": cfg.num_classes,
                "pool_size": null,
                "first_conv": "patch_embed.proj",
                "classifier": match (swin.is_some(), cfg.dist_token) {
                    (true, _) => json!("head.fc"),
                    (_, true) => json!(["head", "head_dist"]),
                    _ => json!("head"),
                },
            },
        });
        let mut notes = preprocess::to_timm(&self.preprocess, (height, width), &mut config);
        if cfg.num_classes > 0 && self.labels.len() == cfg.num_classes {
            config["label_names"] = self.labels.values().cloned().collect();
        }
        if cfg.norm_eps != eps {
            notes.push(format!(
                "timm's model adds {eps:e} to variances, this one was trained with {:e}: numbers differ where variances \
                 are that small",
                cfg.norm_eps
            ));
        }
        let tensors = match swin {
            Some((_, tensors)) => tensors,
            None if rotary => save_eva::rename(cfg, self.tensors.clone())?,
            None => self.with_table()?,
        };
        Ok((vec![("config.json", config)], tensors, notes))
    }
}

fn cannot(folder: &Path, error: &io::Error) -> Error {
    Error::Write {
        path: folder.to_owned(),
        reason: error.to_string(),
    }
}

/// Fills a new folder and gives it its name: there is all of it or nothing.
fn write_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let fail = |e: io::Error| cannot(folder, &e);
    if folder.file_name().is_none() {
        return Err(fail(io::Error::other("give the name of a new folder")));
    }
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(fail(io::Error::other(
            "is there already, and not empty; choose another folder",
        )));
    }
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let staged = crate::Staged::beside(folder)?;
    fs::create_dir(staged.place()).map_err(fail)?;
    fill(&staged.place())?;
    staged.commit()
}

/// Files beside the tensors, tensors, notes.
pub(super) type Files = (
    Vec<(&'static str, Value)>,
    BTreeMap<String, Tensor>,
    Vec<String>,
);

/// A ratio of which timm's and transformers' `int(dim * ratio)` makes the hidden width.
pub(super) fn ratio(cfg: &VitConfig) -> f64 {
    ratio_of(cfg.mlp_hidden(), cfg.embed_dim)
}

/// The same of these widths, and of both times 2, 4 and 8, as a Swin's stages have them.
pub(super) fn ratio_of(hidden: usize, dim: usize) -> f64 {
    let exact = hidden as f64 / dim as f64;
    match (dim as f64 * exact) as usize == hidden {
        true => exact,
        false => (hidden as f64 + 1.0 / 16.0) / dim as f64,
    }
}

/// Puts the keys of one object into another.
pub(super) fn extend(all: &mut Value, more: Value) {
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
    }
}

fn finite(tensor: &Tensor) -> Result<bool, Error> {
    let zero = (tensor.to_dtype(DType::F32)?.flatten_all()? * 0.0)?.sum_all()?;
    Ok(zero.to_scalar::<f32>()? == 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In every stage of a Swin too.
    #[test]
    fn a_ratio_leads_back_to_the_hidden_width() {
        for dim in 1..200 {
            for hidden in 1..800 {
                let ratio = ratio_of(hidden, dim);
                for scale in [1, 2, 4, 8] {
                    let width = ((scale * dim) as f64 * ratio) as usize;
                    assert_eq!(width, scale * hidden, "{hidden} of {dim}, {scale} times");
                }
            }
        }
    }
}

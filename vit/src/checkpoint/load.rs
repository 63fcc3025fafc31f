//! From a checkpoint's tensors to a model's, under timm's names.
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var, D};
use candle_nn::{VarBuilder, VarMap};
use rayon::prelude::*;

use super::family::{Family, Recipe};
use super::{adapt_input_channels, Checkpoint, Preprocess, StoredType};
use crate::error::Mismatch;
use crate::init;
use crate::record::{variables, Variable};
use crate::{resample_pos_embed, sincos_2d, Backbone, Error, PosEmbed, Resample, Vit, VitConfig};

/// What becomes of a checkpoint's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Head {
    /// As the checkpoint has it, or none if it has none.
    #[default]
    Keep,
    /// No head: features.
    Drop,
    /// A new one with so many outputs, drawn from this seed as [`seeded`](crate::seeded) does.
    New {
        /// Number of classes.
        classes: usize,
        /// Seed of its weights.
        seed: u64,
    },
}

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Height and width of the images, where they are to differ from the checkpoint's: its position table is resampled.
    pub image: Option<(usize, usize)>,
    /// Channels of the images, where there are to be others than the checkpoint's: its patch embedding is adapted
    /// ([`adapt_input_channels`]).
    pub channels: Option<usize>,
    /// The head.
    pub head: Head,
    /// Type of the loaded numbers.
    pub dtype: DType,
    /// Where they go.
    pub device: Device,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            image: None,
            channels: None,
            head: Head::Keep,
            dtype: DType::F32,
            device: Device::Cpu,
        }
    }
}

/// The weights of a model, complete and checked.
#[derive(Debug, Clone)]
pub struct Pretrained {
    /// The architecture.
    pub cfg: VitConfig,
    /// Every variable of it under timm's names.
    pub tensors: BTreeMap<String, Tensor>,
    /// Names of the classes, as far as they are known.
    pub labels: BTreeMap<usize, String>,
    /// How images become the model's input.
    pub preprocess: Preprocess,
}

impl Pretrained {
    /// The model on plain tensors: nothing trains.
    ///
    /// # Errors
    /// A Swin; an error of candle.
    pub fn model(&self) -> Result<Vit, Error> {
        Ok(Vit::new(&self.cfg, self.plain())?)
    }

    /// The same of any kind.
    ///
    /// # Errors
    /// An error of candle.
    pub fn backbone(&self) -> Result<Backbone, Error> {
        Ok(Backbone::new(&self.cfg, self.plain())?)
    }

    fn plain(&self) -> VarBuilder<'static> {
        let (dtype, device) = self.place();
        let tensors = self.tensors.clone().into_iter().collect();
        VarBuilder::from_tensors(tensors, dtype, &device)
    }

    /// The weights as variables: `Vit::new(&pretrained.cfg, VarBuilder::from_varmap(&vars, ..))` trains them.
    ///
    /// # Errors
    /// An error of candle.
    pub fn vars(&self) -> Result<VarMap, Error> {
        let vars = VarMap::new();
        {
            let mut map = vars.data().lock().unwrap_or_else(|e| e.into_inner());
            for (name, tensor) in &self.tensors {
                map.insert(name.clone(), Var::from_tensor(tensor)?);
            }
        }
        Ok(vars)
    }

    pub(crate) fn place(&self) -> (DType, Device) {
        let first = self.tensors.values().next();
        first.map_or((DType::F32, Device::Cpu), |t| {
            (t.dtype(), t.device().clone())
        })
    }
}

impl Checkpoint {
    /// Loads the weights: renamed, resampled to another image size where asked, each tensor finite and of the right shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with everything that is missing, unexpected or mis-shaped; a tensor that cannot be read or has
    /// NaN or infinity in it, with file and name.
    pub fn load(&self, options: &LoadOptions) -> Result<Pretrained, Error> {
        let stored = self.with_head(options.head);
        let needed = variables(&stored)?;
        self.compare(&needed, options.head)?;
        let mut cfg = stored;
        if let Some(image) = options.image {
            cfg = cfg.with_image(image);
        }
        if let Head::New { classes, .. } = options.head {
            cfg.num_classes = classes;
        }
        cfg.in_chans = options.channels.unwrap_or(cfg.in_chans);
        cfg.validate()?;
        let tensors: Result<BTreeMap<String, Tensor>, Error> = needed
            .par_iter()
            .map(|(name, _)| {
                let mut tensor = self.make(&self.named.recipes[name])?;
                if name == "pos_embed" && cfg.pos_embed == PosEmbed::Learnt {
                    let prefix = cfg.embedded_prefix();
                    let how = self.resampling();
                    tensor = resample_pos_embed(&tensor, prefix, stored.grid(), cfg.grid(), how)?;
                }
                if let Some(swin) = &cfg.swin {
                    tensor = swin.fit_table(name, tensor, (&stored, &cfg))?;
                }
                if name == "patch_embed.proj.weight" {
                    tensor = adapt_input_channels(&tensor, cfg.in_chans)?;
                }
                let tensor = tensor.to_device(&options.device)?.to_dtype(options.dtype)?;
                Ok((name.clone(), tensor))
            })
            .collect();
        let mut tensors = tensors?;
        if let Head::New { seed, .. } = options.head {
            tensors.extend(new_head(&cfg, seed, options)?);
        }
        Ok(Pretrained {
            cfg,
            tensors,
            labels: match options.head {
                Head::Keep => self.description.labels.clone(),
                _ => BTreeMap::new(),
            },
            preprocess: self.prepared(cfg.image()).in_channels(cfg.in_chans),
        })
    }

    /// The decoders of masked pretraining and the norms before them, as f32 on the CPU under LocalMIM's names
    /// (`decoder.0.embed.weight`, `norm.0.weight`), where it has any: those of LocalMIM (of a Swin with position tables, `decoder.0.pos_embed`) and of our own training states, and
    /// MAE's and ViTMAE's, which is `decoder.0` and has its position table, `decoder.0.pos_embed`.
    ///
    /// # Errors
    /// A tensor that cannot be read or has NaN or infinity in it, with file and name.
    pub fn decoders(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let recipes = self.named.decoders.iter();
        recipes
            .map(|(name, recipe)| Ok((name.clone(), self.make(recipe)?)))
            .collect()
    }

    /// Whether its position table is the fixed one, [`sincos_2d`]: by its architecture, or because the stored one is that, up
    /// to the rounding of its type.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub fn has_sincos_table(&self) -> Result<bool, Error> {
        let cfg = &self.cfg;
        if cfg.pos_embed == PosEmbed::SinCos {
            return Ok(true);
        }
        let alone = cfg.prefix_tokens() == 1 && cfg.embedded_prefix() == 1;
        let stored = self.named.recipes.get("pos_embed");
        let (Some(recipe), true) = (stored, alone && cfg.embed_dim.is_multiple_of(4)) else {
            return Ok(false);
        };
        let narrow = |name: &&String| match self.tensors[*name].dtype {
            StoredType::Bf16 => 4e-3,
            StoredType::F16 => 1e-3,
            _ => 1e-5f32,
        };
        let rounding = recipe.sources().iter().map(narrow).fold(0.0, f32::max);
        let table = self.make(recipe)?;
        let fixed = sincos_2d(cfg.embed_dim, cfg.grid(), table.device())?;
        if table.dims() != fixed.dims() {
            return Ok(false);
        }
        let far = (table - fixed)?.abs()?.flatten_all()?.max(0)?;
        Ok(far.to_scalar::<f32>()? <= rounding)
    }

    /// Whether the tensors are those that the architecture needs, head included.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with everything that is missing, unexpected or mis-shaped.
    pub fn check(&self) -> Result<(), Error> {
        self.compare(&variables(&self.cfg)?, Head::Keep)
    }

    /// The architecture of what the checkpoint has to give: without a head unless that is kept.
    fn with_head(&self, head: Head) -> VitConfig {
        match head {
            Head::Keep => self.cfg,
            _ => VitConfig {
                num_classes: 0,
                ..self.cfg
            },
        }
    }

    /// As timm for what timm loads, as transformers for its own, as MAE's code for the rest.
    fn resampling(&self) -> Resample {
        match self.named.family {
            Family::Timm | Family::Dino | Family::Dinov2 => Resample::Antialias,
            Family::HfDinov2 if self.cfg.reg_tokens > 0 => Resample::Antialias,
            _ => Resample::Plain,
        }
    }

    fn compare(&self, needed: &BTreeMap<String, Variable>, head: Head) -> Result<(), Error> {
        let mut mismatch = Mismatch {
            origin: self.origin.clone(),
            unexpected: self.named.unexpected.clone(),
            ..Mismatch::default()
        };
        for (name, Variable { shape, .. }) in needed {
            match self.named.recipes.get(name) {
                None => mismatch.missing.push(name.clone()),
                Some(recipe) => self.check_shape(recipe, shape, &mut mismatch),
            }
        }
        for (name, recipe) in &self.named.recipes {
            let is_head = name.starts_with("head.") || name.starts_with("head_dist.");
            let left_out = is_head && head != Head::Keep;
            if !needed.contains_key(name) && !left_out {
                let sources = recipe.sources().into_iter().cloned();
                mismatch.unexpected.extend(sources);
            }
        }
        match mismatch.is_empty() {
            true => Ok(()),
            false => Err(Error::Mismatch(Box::new(mismatch))),
        }
    }

    fn check_shape(&self, recipe: &Recipe, needed: &[usize], mismatch: &mut Mismatch) {
        let mut wrong = |name: &String, has: &[usize], needs: &[usize]| {
            if has != needs {
                let names = (name.clone(), has.to_vec(), needs.to_vec());
                mismatch.misshaped.push(names);
            }
        };
        let shape = |name: &String| self.tensors.get(name).map_or(&[][..], |t| &t.shape);
        match recipe {
            Recipe::Copy(name)
            | Recipe::ByColumn(name)
            | Recipe::AddFirstRow { token: name, .. } => {
                wrong(name, shape(name), needed);
            }
            Recipe::WithoutFirstRow(name) => {
                let mut needs = needed.to_vec();
                if let Some(rows) = needs.get_mut(1) {
                    *rows += 1;
                }
                wrong(name, shape(name), &needs);
            }
            Recipe::Third(name, _) => {
                let mut needs = needed.to_vec();
                if let Some(rows) = needs.first_mut() {
                    *rows *= 3;
                }
                wrong(name, shape(name), &needs);
            }
            Recipe::Stack(names) => {
                let mut needs = needed.to_vec();
                if let Some(rows) = needs.first_mut() {
                    *rows /= names.len();
                }
                for name in names {
                    wrong(name, shape(name), &needs);
                }
            }
        }
    }

    fn make(&self, recipe: &Recipe) -> Result<Tensor, Error> {
        let get = |name: &String| {
            let tensor = &self.tensors[name];
            self.sources[tensor.file].load(name, tensor)
        };
        Ok(match recipe {
            Recipe::Copy(name) => get(name)?,
            Recipe::Stack(names) => {
                let parts: Result<Vec<Tensor>, Error> = names.iter().map(get).collect();
                Tensor::cat(&parts?, 0)?
            }
            Recipe::AddFirstRow { token, table } => (get(token)? + get(table)?.narrow(1, 0, 1)?)?,
            Recipe::Third(name, part) => {
                let whole = get(name)?;
                let rows = whole.dim(0)? / 3;
                whole.narrow(0, part * rows, rows)?.contiguous()?
            }
            Recipe::ByColumn(name) => {
                let whole = get(name)?;
                let quarters = whole.chunk(4, D::Minus1)?;
                match &quarters[..] {
                    [a, b, c, d] => Tensor::cat(&[a, c, b, d], D::Minus1)?,
                    _ => whole,
                }
            }
            Recipe::WithoutFirstRow(name) => {
                let table = get(name)?;
                table.narrow(1, 1, table.dim(1)? - 1)?.contiguous()?
            }
        })
    }
}

/// Head variables of `cfg`, drawn afresh.
fn new_head(
    cfg: &VitConfig,
    seed: u64,
    options: &LoadOptions,
) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut head = variables(cfg)?;
    head.retain(|name, _| name.starts_with("head.") || name.starts_with("head_dist."));
    let draw = |(name, Variable { shape, law }): (String, Variable)| {
        let tensor = init::draw(
            seed,
            &name,
            shape.into(),
            law,
            options.dtype,
            &options.device,
        )?;
        Ok((name, tensor))
    };
    head.into_iter().map(draw).collect()
}

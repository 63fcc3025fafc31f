//! Checkpoints of every family, in: reading, recognising, renaming, checking.
mod channels;
mod describe;
mod family;
mod files;
mod hf_names;
mod infer;
mod json;
mod keys;
mod load;
mod pickle;
mod pooling;
mod preprocess;
mod safetensors;
mod save;
mod save_eva;
mod save_hf;
mod signature;
mod swin;
mod table;
mod torch;

use std::collections::BTreeMap;
use std::path::Path;

pub use channels::adapt_input_channels;
pub use describe::Hints;
pub use family::Family;
#[cfg(feature = "hub")]
pub(crate) use files::{is_weights, shard_names, WEIGHTS};
pub use load::{Head, LoadOptions, Pretrained};
pub(crate) use preprocess::to_ours;
pub use preprocess::{Filter, Preprocess};
pub use save::Layout;
pub(crate) use table::Source;
pub use table::{StoredTensor, StoredType};

use crate::{Error, VitConfig};
use describe::Description;
use family::Named;

/// The header of a lone safetensors file, checked.
pub(crate) fn header(source: &Source) -> Result<safetensors::Header, Error> {
    safetensors::read(source, 0)
}

/// A checkpoint whose headers have been read, recognised and checked; the numbers stay in the files until
/// [`Checkpoint::load`].
///
/// ```no_run
/// # fn main() -> Result<(), vit::Error> {
/// let checkpoint = vit::Checkpoint::open("vit_base_patch16_224.safetensors")?;
/// println!("{}, {} blocks", checkpoint.family(), checkpoint.config().depth);
/// let pretrained = checkpoint.load(&vit::LoadOptions::default())?;
/// let model = pretrained.model()?; // plain tensors; pretrained.vars()? for variables that train
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    /// What the user asked for.
    origin: String,
    sources: Vec<Source>,
    tensors: BTreeMap<String, StoredTensor>,
    named: Named,
    cfg: VitConfig,
    /// Why its pooling is assumed, where it is.
    pool_note: Option<&'static str>,
    description: Description,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens a file (`.safetensors`, `.pth`, `.pt`, `.bin`, or the `.index.json` of shards), a folder that holds one, or,
    /// with the feature `hub`, `hf://org/name[/file][@revision]`.
    ///
    /// # Errors
    /// A file that is missing, damaged or hostile, no Vision Transformer in it, an architecture that cannot be told.
    pub fn open(origin: &str) -> Result<Self, Error> {
        Self::open_with(origin, &Hints::default())
    }

    /// The same with what no file tells.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(origin: &str, hints: &Hints) -> Result<Self, Error> {
        if origin.starts_with("hf://") {
            #[cfg(feature = "hub")]
            {
                let path =
                    crate::Hub::from_env()?.fetch(origin, std::sync::Arc::new(|_, _, _| {}))?;
                return Self::open_path(origin, &path, hints);
            }
            #[cfg(not(feature = "hub"))]
            return Err(Error::Unknown {
                origin: origin.to_owned(),
                reason: "candle-vit was built without the feature 'hub'; build it in, or download the files and give the folder".into(),
            });
        }
        Self::open_path(origin, Path::new(origin), hints)
    }

    /// The same from a path, which messages call `origin`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_path(origin: &str, path: &Path, hints: &Hints) -> Result<Self, Error> {
        let files::Read {
            sources,
            tensors,
            description,
        } = files::read(path)?;
        let unknown = |reason: String| Error::Unknown {
            origin: origin.to_owned(),
            reason,
        };
        let Some(named) = family::recognise(&tensors) else {
            let names: Vec<String> = tensors.keys().cloned().collect();
            return Err(unknown(match names.is_empty() {
                true => "no tensors in it; if it is a whole model saved by torch.save, save its state_dict".into(),
                false => format!(
                    "no Vision Transformer: no patch embedding among its {} tensors ({})",
                    names.len(),
                    crate::error::some(&names)
                ) + &crate::error::look_alikes(names.iter()),
            }));
        };
        if let Some(reason) = swin::unsupported(&named) {
            return Err(unknown(reason));
        }
        let shape =
            |(name, recipe): (&String, &family::Recipe)| (name.clone(), recipe.shape(&tensors));
        let is_swin = swin::is_family(named.family);
        // A Swin's decoders tell the size of the images.
        let decoders = named.decoders.iter().filter(|_| is_swin);
        let shapes = named.recipes.iter().chain(decoders).map(shape).collect();
        let told = hints.pool.or(description.hints.pool).is_some();
        let overridden = hints.over(&description.hints);
        let hints = hints.clone().or(description.hints.clone());
        let inferred = match is_swin {
            true => swin::infer(&shapes, named.family, &hints),
            false => infer::infer(&shapes, named.family, &hints),
        };
        let (cfg, mut notes) = inferred
            .map_err(|reason| unknown(reason + &crate::error::look_alikes(tensors.keys())))?;
        let contradiction = description.claims.iter().find_map(|c| c.contradicts(&cfg));
        if let Some(reason) = contradiction {
            return Err(unknown(reason));
        }
        notes.extend(description.notes.iter().cloned());
        notes.extend(overridden);
        if named.family == Family::LocalMimSwin {
            notes.push(swin::BY_ROW.into());
        }
        if let (Family::HfSwin, Some(why)) = (named.family, swin::differs_in_transformers(&cfg)) {
            notes.push(format!("{why}; computed here as timm does"));
        }
        #[cfg(feature = "hub")]
        if origin.starts_with("hf://") {
            notes.extend(crate::hub::note_of_root(path));
        }
        let last = description.labels.keys().last();
        if let Some(last) = last.filter(|n| cfg.num_classes > 0 && **n >= cfg.num_classes) {
            notes.push(format!(
                "the files name class {last}, the head has {} outputs, counted from 0; names may belong to other outputs",
                cfg.num_classes
            ));
        }
        let mut checkpoint = Self {
            origin: origin.to_owned(),
            sources,
            tensors,
            named,
            cfg,
            pool_note: None,
            description,
            notes,
        };
        if !told {
            let (pool, note) = pooling::assume(&checkpoint);
            checkpoint.cfg.pool = pool;
            checkpoint.pool_note = note;
        }
        Ok(checkpoint)
    }

    /// Who named its tensors.
    pub fn family(&self) -> Family {
        self.named.family
    }

    /// What to say before features are pooled as [`Checkpoint::config`] has it, where that is an assumption.
    pub fn pool_note(&self) -> Option<&'static str> {
        self.pool_note
    }

    /// The architecture, head included.
    pub fn config(&self) -> &VitConfig {
        &self.cfg
    }

    /// What had to be assumed and what its files say that is not heeded, in sentences for a person.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// All tensors of all its files by their own names.
    pub fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// Tensors that loading leaves out: those that belong to the model's training (decoders, projection heads, mask
    /// tokens, poolers), and other networks and optimiser states.
    pub fn unused(&self) -> Vec<&str> {
        let lists = [&self.named.beside, &self.named.outside];
        lists.into_iter().flatten().map(String::as_str).collect()
    }

    /// Of a training state of ours, the run's numbers as JSON.
    pub fn run(&self) -> Option<&str> {
        self.description.run.as_deref()
    }

    /// Attention heads of ViTMAE's decoder, where config.json tells.
    pub fn decoder_heads(&self) -> Option<usize> {
        self.description.decoder_heads
    }

    /// Names of the classes, as far as config.json has them.
    pub fn labels(&self) -> &BTreeMap<usize, String> {
        &self.description.labels
    }

    /// How images become the model's input.
    pub fn preprocess(&self) -> Preprocess {
        self.prepared(self.cfg.image())
    }

    /// The same for images of this size, where no file tells.
    fn prepared(&self, image: (usize, usize)) -> Preprocess {
        let told = self.description.preprocess.clone();
        let told = told.unwrap_or_else(|| Preprocess::usual(image));
        told.in_channels(self.cfg.in_chans)
    }

    /// timm's architecture or Hugging Face's model type, where config.json tells.
    pub fn name(&self) -> Option<&str> {
        self.description.name.as_deref()
    }

    /// The numbers of one stored tensor as f32, in row-major order, NaN included.
    ///
    /// # Errors
    /// No such tensor, a type that is no float, a file that cannot be read.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, Error> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Error::Unknown {
                origin: self.origin.clone(),
                reason: format!("no tensor '{name}'"),
            });
        };
        self.sources[tensor.file].values(name, tensor)
    }
}

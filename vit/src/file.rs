//! Writing so that a file is either the old one or the new one, never half of each.
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::checkpoint::{to_ours, Source};
use crate::{Error, PosEmbed, Preprocess, VitConfig};

/// Writes tensors and one metadata entry to `path`, as [`Staged`] tells. If writing fails, `path` is as it was.
///
/// # Errors
/// [`Error::Write`] with the path and what the system said (no space left, no permission, ...).
pub fn save_atomic(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: (&str, String),
) -> Result<(), Error> {
    Staged::new(path, tensors, metadata)?.commit()
}

/// Writes these bytes to `path`, as [`Staged`] tells. If writing fails, `path` is as it was.
///
/// # Errors
/// [`Error::Write`], as [`save_atomic`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let staged = Staged::beside(path)?;
    fs::write(staged.place(), bytes).map_err(|e| staged.error(&e))?;
    staged.commit()
}

/// A file, or a folder, that does not have its name yet: [`commit`](Staged::commit) flushes it to disk, renames it over
/// `path` and flushes the folder around it; dropping it leaves `path` as it was. For what is large, or must be written now
/// and may turn out not to be wanted.
///
/// It lives in a folder `.<name>.saving` beside `path`. What a killed process leaves there is removed by the next one that
/// writes to `path`, so half-written files never pile up.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    folder: PathBuf,
}

impl Staged {
    /// Makes room for it; write to [`place`](Staged::place).
    ///
    /// # Errors
    /// [`Error::Write`]. Also where `path` is a device, a pipe or the like: they are not replaced.
    pub fn beside(path: &Path) -> Result<Self, Error> {
        // From here on whatever fails is removed by `drop`.
        let staged = Self::at(path);
        let make = || -> io::Result<()> {
            if fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
                return Err(io::Error::other("is no regular file; name another one"));
            }
            if staged.folder.exists() {
                fs::remove_dir_all(&staged.folder)?;
            }
            fs::create_dir(&staged.folder)
        };
        make().map_err(|e| staged.error(&e))?;
        Ok(staged)
    }

    fn at(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self {
            path: path.to_owned(),
            folder: path.with_file_name(format!(".{name}.saving")),
        }
    }

    /// Removes what a killed process has left beside `path`: for who finds `path` as it should be, and does not write it.
    pub fn sweep(path: &Path) {
        drop(Self::at(path));
    }

    /// Writes tensors and one metadata entry, flushed to disk.
    ///
    /// # Errors
    /// [`Error::Write`], as [`save_atomic`].
    pub fn new(
        path: &Path,
        tensors: &BTreeMap<String, Tensor>,
        metadata: (&str, String),
    ) -> Result<Self, Error> {
        let staged = Self::beside(path)?;
        let metadata = HashMap::from([(metadata.0.to_owned(), metadata.1)]);
        let write = || -> io::Result<()> {
            let (file, sample) = (staged.place(), staged.folder.join("sample"));
            safetensors::serialize_to_file(tensors, Some(metadata), &file)
                .map_err(io::Error::other)?;
            // safetensors makes files that their owner alone may read; a new file's permissions follow the user's umask.
            let permissions = File::create(&sample)?.metadata()?.permissions();
            fs::set_permissions(&file, permissions)?;
            flush(&file)
        };
        write().map_err(|e| staged.error(&e))?;
        Ok(staged)
    }

    /// Where it is until it has its name: to be made there as a file or a folder.
    pub fn place(&self) -> PathBuf {
        self.folder.join("new")
    }

    /// Gives it its name, instead of an older file or an empty folder.
    ///
    /// # Errors
    /// [`Error::Write`], as [`save_atomic`].
    pub fn commit(self) -> Result<(), Error> {
        let rename = || {
            flush(&self.place())?;
            fs::rename(self.place(), &self.path)?;
            match self.path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => flush(parent),
                _ => flush(Path::new(".")),
            }
        };
        rename().map_err(|e| self.error(&e))
    }

    fn error(&self, error: &io::Error) -> Error {
        Error::Write {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Makes sure that a file, or a folder's list of names, is on the disk.
fn flush(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes an encoder under timm's names, so that `timm.create_model(.., num_classes=0)` loads it with nothing missing and
/// nothing unexpected: `pos_embed` included, `norm` the final norm. The metadata key `vitfreeze` holds the [`VitConfig`]
/// as JSON, and beside its own keys `preprocess`: ImageNet's mean and deviation are what such encoders are pretrained with
/// unless told otherwise, see [`save_encoder_prepared`].
///
/// # Errors
/// [`Error::Write`].
pub fn save_encoder(
    path: &Path,
    cfg: &VitConfig,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), Error> {
    let usual = Preprocess::usual(cfg.image()).in_channels(cfg.in_chans);
    save_encoder_prepared(path, cfg, &usual, tensors)
}

/// The same of an encoder that was pretrained on images prepared so.
///
/// # Errors
/// [`Error::Write`].
pub fn save_encoder_prepared(
    path: &Path,
    cfg: &VitConfig,
    preprocess: &Preprocess,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), Error> {
    // A fixed table is written like a learnt one, and read as one.
    let cfg = &VitConfig {
        pos_embed: match tensors.contains_key("pos_embed") {
            true => PosEmbed::Learnt,
            false => cfg.pos_embed,
        },
        ..*cfg
    };
    let mut json = serde_json::to_value(cfg).map_err(|e| Error::Config(e.to_string()))?;
    json["preprocess"] = to_ours(preprocess);
    save_atomic(path, tensors, ("vitfreeze", json.to_string()))
}

impl VitConfig {
    /// The architecture that [`save_encoder`] wrote into a file's metadata. Reads the header only.
    ///
    /// # Errors
    /// [`Error::Read`]: no such file, no safetensors file, or one without that metadata.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let source = Source::open(path)?;
        let header = crate::checkpoint::header(&source)?;
        let text = header.metadata.get("vitfreeze");
        let text = text.ok_or_else(|| source.error("no metadata 'vitfreeze'"))?;
        let cfg: Self = serde_json::from_str(text)
            .map_err(|e| source.error(format!("metadata 'vitfreeze': {e}")))?;
        cfg.validate()?;
        Ok(cfg)
    }
}

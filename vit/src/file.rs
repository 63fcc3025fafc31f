//! Writing safetensors so that a file is either the old one or the new one, never half of each.
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::checkpoint::{to_ours, Source};
use crate::{Error, Preprocess, VitConfig};

/// Writes tensors and one metadata entry to `path`: into a temporary file, flushed to disk, then renamed over `path`, then
/// the folder flushed. If writing fails, `path` is as it was and the temporary file is gone.
///
/// The temporary file lives in a folder `.<name>.saving` beside `path`. What a killed process leaves there is removed by
/// the next save, so half-written files never pile up.
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

/// A file that is on disk in full, and does not have its name yet: [`commit`](Staged::commit) gives it the name, dropping
/// it leaves `path` as it was. For a state that must be written now and may turn out not to be wanted.
///
/// Where and how is told at [`save_atomic`].
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    folder: PathBuf,
}

impl Staged {
    /// Writes the file, flushed to disk, under its temporary name.
    ///
    /// # Errors
    /// [`Error::Write`], as [`save_atomic`].
    pub fn new(
        path: &Path,
        tensors: &BTreeMap<String, Tensor>,
        metadata: (&str, String),
    ) -> Result<Self, Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // From here on whatever fails is removed by `drop`.
        let staged = Self {
            path: path.to_owned(),
            folder: path.with_file_name(format!(".{name}.saving")),
        };
        let (file, sample) = (staged.file(), staged.folder.join("sample"));
        let metadata = HashMap::from([(metadata.0.to_owned(), metadata.1)]);
        let write = || -> std::io::Result<()> {
            if staged.folder.exists() {
                fs::remove_dir_all(&staged.folder)?;
            }
            fs::create_dir(&staged.folder)?;
            safetensors::serialize_to_file(tensors, Some(metadata), &file)
                .map_err(std::io::Error::other)?;
            // safetensors makes files that their owner alone may read; a new file's permissions follow the user's umask.
            let permissions = File::create(&sample)?.metadata()?.permissions();
            fs::set_permissions(&file, permissions)?;
            flush(&file)
        };
        write().map_err(|e| staged.error(&e))?;
        Ok(staged)
    }

    /// Gives the file its name, in the place of an older one.
    ///
    /// # Errors
    /// [`Error::Write`], as [`save_atomic`].
    pub fn commit(self) -> Result<(), Error> {
        let rename = || {
            fs::rename(self.file(), &self.path)?;
            match self.path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => flush(parent),
                _ => flush(Path::new(".")),
            }
        };
        rename().map_err(|e| self.error(&e))
    }

    fn file(&self) -> PathBuf {
        self.folder.join("file")
    }

    fn error(&self, error: &std::io::Error) -> Error {
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

fn flush(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes an encoder under timm's names, so that `timm.create_model(.., num_classes=0)` loads it with nothing missing and
/// nothing unexpected: `pos_embed` included, `norm` the final norm. The metadata key `vitfreeze` holds the [`VitConfig`]
/// as JSON, and beside its own keys `preprocess`: this is for encoders pretrained with ImageNet's mean and deviation.
///
/// # Errors
/// [`Error::Write`].
pub fn save_encoder(
    path: &Path,
    cfg: &VitConfig,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), Error> {
    let mut json = serde_json::to_value(cfg).map_err(|e| Error::Config(e.to_string()))?;
    json["preprocess"] = to_ours(&Preprocess::usual(cfg.image()));
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

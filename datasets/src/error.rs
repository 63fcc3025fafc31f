//! Everything that can go wrong, each in one line that says what, where and what to do.

use std::path::PathBuf;

/// What [`open`](crate::open) understands.
const FORMS: &str = "a folder of class folders, CIFAR's binary archive, the folder of ILSVRC2012_img_*.tar, WebDataset \
                     shards (*.tar), Parquet files (*.parquet) or a cache (vitfreeze data cache)";

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing at the path that names a dataset.
    #[error("{path}: no such file or folder", path = .0.display())]
    NotFound(PathBuf),

    /// The dataset folder does not exist.
    #[error("{path}: no such folder; expected the folder that holds train/<class>/<image>", path = .0.display())]
    NoSuchFolder(PathBuf),

    /// The dataset folder is a file.
    #[error("{path}: not a folder; expected one", path = .0.display())]
    NotAFolder(PathBuf),

    /// The folder holds other splits but not the one asked for.
    #[error("{path}: no split '{split}' here, only {found}; name one of these", path = .path.display())]
    NoSuchSplit {
        /// The dataset folder.
        path: PathBuf,
        /// The split asked for.
        split: String,
        /// The splits that are there.
        found: String,
    },

    /// The folder holds neither class folders nor images.
    #[error("{path}: no class folders and no images; expected one folder per class: {path}/<class>/<image>.jpg", path = .0.display())]
    NoClasses(PathBuf),

    /// There are class folders, but not one image in them.
    #[error("{path}: no images in its class folders; expected files ending in {endings}", path = .path.display())]
    NoImages {
        /// The folder that holds the class folders.
        path: PathBuf,
        /// What images end in.
        endings: String,
    },

    /// Some class folders are empty while others are not.
    #[error("{path}: no images in class folder {classes}; add images ({endings}) or remove it", path = .path.display())]
    EmptyClasses {
        /// The folder that holds the class folders.
        path: PathBuf,
        /// Names of the empty ones, shortened when there are many.
        classes: String,
        /// What images end in.
        endings: String,
    },

    /// A folder could not be listed.
    #[error("{path}: cannot be read: {source}", path = .path.display())]
    Io {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// An archive, shard or cache that is not what it should be.
    #[error("{path}: {reason}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },

    /// Nothing that could be a dataset.
    #[error("{path}: not a dataset; expected {FORMS}", path = .0.display())]
    NotADataset(PathBuf),

    /// The name of a class folder is not valid UTF-8.
    #[error("{path}: name is not valid UTF-8; rename it", path = .0.display())]
    NotUtf8(PathBuf),

    /// An image could not be read or decoded. The loader replaces such an image and goes on.
    #[error("{name}: {reason}")]
    Image {
        /// Path or other name of the image.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// An [`Image`](crate::Image) whose buffer does not fit its size, or that has no pixels.
    #[error("an image of {width} x {height} pixels with {bytes} bytes; expected at least one pixel and 3 bytes for each")]
    InvalidImage {
        /// Stated width.
        width: usize,
        /// Stated height.
        height: usize,
        /// Length of its buffer.
        bytes: usize,
    },

    /// A size, crop box, buffer length or setting that cannot be used.
    #[error("{0}")]
    InvalidArgument(String),

    /// Not one whole batch fits in the dataset.
    #[error("batch size {batch_size}{} is larger than the dataset of {len} images; choose a batch size of at most {}", of_ranks(*ranks), len / ranks)]
    BatchTooLarge {
        /// The batch size asked for.
        batch_size: usize,
        /// The processes that have one each.
        ranks: usize,
        /// Images in the dataset.
        len: usize,
    },

    /// More than one image in a hundred cannot be read.
    #[error(
        "{count} of {len} images cannot be read, more than 1 %; repair the dataset. First: {first}"
    )]
    TooManyBad {
        /// Distinct bad images seen so far.
        count: usize,
        /// Images in the dataset.
        len: usize,
        /// The first three with reasons, control characters escaped.
        first: String,
    },

    /// A loader thread could not be started.
    #[error("cannot start a loader thread: {0}; use fewer threads")]
    Spawn(std::io::Error),

    /// A source or transform panicked in a loader thread.
    #[error("panic in a loader thread at {name}: {message}; this is a bug")]
    WorkerPanic {
        /// The image that was being worked on.
        name: String,
        /// The panic's message.
        message: String,
    },
}

/// The first ten of `items`, and how many more there are.
pub(crate) fn first_ten<T: AsRef<str>>(items: &[T], separator: &str) -> String {
    first(10, items, separator)
}

/// The first `most` of `items`, and how many more there are.
pub(crate) fn first<T: AsRef<str>>(most: usize, items: &[T], separator: &str) -> String {
    let shown: Vec<&str> = items.iter().take(most).map(AsRef::as_ref).collect();
    let mut text = shown.join(separator);
    if items.len() > shown.len() {
        text += &format!("{separator}and {} more", items.len() - shown.len());
    }
    text
}

fn of_ranks(ranks: usize) -> String {
    match ranks {
        1 => String::new(),
        _ => format!(" of each of {ranks} processes"),
    }
}

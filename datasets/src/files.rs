//! Reading parts of files, within bounds.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::formats::is_image;
use crate::Error;

/// Larger image files are not read: no photo in a training set comes near.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;

/// Opens a file to read it. Pipes, sockets and devices are refused before they are opened: reading one may wait for ever.
pub fn open_file(path: &Path) -> io::Result<File> {
    let kind = std::fs::metadata(path)?;
    match kind.is_file() {
        true => File::open(path),
        false if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        false => Err(io::Error::other(
            "not a regular file but a pipe, socket or device; copy its contents to a file",
        )),
    }
}

/// What a file under a dataset's name really is, where its first bytes say something else, and what to do.
pub(crate) fn mistaken(path: &Path) -> Option<&'static str> {
    let mut head = Vec::new();
    let file = open_file(path).ok()?;
    file.take(256).read_to_end(&mut head).ok()?;
    let text = head.trim_ascii_start().to_ascii_lowercase();
    match &head[..] {
        _ if text.starts_with(b"version https://git-lfs") => Some(
            "a Git LFS pointer, not the file itself; fetch it with 'git lfs pull', or download it from its page",
        ),
        _ if text.starts_with(b"<!doctype") || text.starts_with(b"<html") => Some(
            "an HTML page, such as a login or an error; download the file again",
        ),
        [b'P', b'A', b'R', b'E', ..] => Some("an encrypted Parquet file, which is not read; decrypt it first"),
        [0x1f, 0x8b, ..] => Some("compressed with gzip; unpack it first (gunzip)"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("compressed with zstd; unpack it first (unzstd)"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive; unpack it, and name the folder"),
        _ => None,
    }
}

/// The `len` bytes of the file at `path` from `offset` on; what is wrong with it as text.
pub(crate) fn read_range(path: &Path, offset: u64, len: u64) -> Result<Vec<u8>, String> {
    if len > MAX_FILE_BYTES {
        return Err(format!("larger than {MAX_FILE_BYTES} bytes"));
    }
    let read = || {
        let mut file = open_file(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(len).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes: Vec<u8> =
        read().map_err(|e: io::Error| format!("{} cannot be read: {e}", path.display()))?;
    if bytes.len() as u64 != len {
        return Err(format!("{} has become shorter", path.display()));
    }
    Ok(bytes)
}

/// An error about the file or folder at `path`.
pub(crate) fn io_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

/// A file that is not what it should be.
pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// The folders in a folder, sorted, without the hidden ones.
pub(crate) fn subfolders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let entries = entries.filter(|e| !is_hidden(&e.file_name()));
    let mut folders: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

/// The files of a kind in a folder itself.
fn of_kind(folder: &Path, is_kind: impl Fn(&Path) -> bool) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let shown = entries.filter(|e| !is_hidden(&e.file_name()));
    shown
        .map(|e| e.path())
        .filter(move |path| is_kind(path) && path.is_file())
}

/// Whether a folder itself holds a file of this kind.
pub(crate) fn holds(folder: &Path, is_kind: impl Fn(&Path) -> bool) -> bool {
    of_kind(folder, is_kind).next().is_some()
}

/// Whether a folder, or a folder in it, holds a file named as an image.
pub(crate) fn holds_images(folder: &Path) -> bool {
    holds(folder, is_image) || subfolders(folder).iter().any(|f| holds(f, is_image))
}

/// The folder of the same name within `folder`, as archives unpack themselves, where that is all there is: `train/train/`.
pub(crate) fn looked_through(folder: PathBuf) -> PathBuf {
    // A name may be "." as well.
    let named = folder.file_name().map(ToOwned::to_owned);
    let named = named.or_else(|| Some(folder.canonicalize().ok()?.file_name()?.to_owned()));
    match &subfolders(&folder)[..] {
        [only] if only.file_name() == named.as_deref() && !holds(&folder, is_image) => only.clone(),
        _ => folder,
    }
}

/// How many files of this kind a folder itself holds.
pub(crate) fn count(folder: &Path, is_kind: impl Fn(&Path) -> bool) -> usize {
    of_kind(folder, is_kind).count()
}

/// Folders that systems and programs make on their own; copies, thumbnails and what was thrown away lie in them.
const OF_SYSTEMS: [&str; 12] = [
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "@Recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__pycache__",
    ".ipynb_checkpoints",
    ".Trash",
    ".Trashes",
    ".fseventsd",
];

/// Which folder of a system or program goes by this name. Trash has a user's number behind it: `.Trash-1000`.
pub(crate) fn of_system(name: &OsStr) -> Option<&'static str> {
    let name = name.to_str()?;
    let name = match name.split_once("-") {
        Some((".Trash", _)) => ".Trash",
        _ => name,
    };
    let mut known = OF_SYSTEMS.into_iter();
    known.find(|known| name.eq_ignore_ascii_case(known))
}

/// Whether nobody looks for data under this name: it begins with a dot, or a system made it.
pub(crate) fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || of_system(name).is_some()
}

/// Files at `root` (itself, or in it up to three folders deep) whose names end in `.extension`, sorted.
///
/// # Errors
/// What cannot be read, unless it is none of the dataset's: hidden, or a dangling link of another name. A
/// folder that cannot be listed may hold files, which would be missing without a word.
pub(crate) fn files_ending(root: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let walk = walkdir::WalkDir::new(root).max_depth(4).follow_links(true);
    // Who names a hidden folder means it.
    let shown = |e: &walkdir::DirEntry| e.depth() == 0 || !is_hidden(e.file_name());
    for entry in walk.into_iter().filter_entry(shown) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if e.loop_ancestor().is_some() => continue,
            Err(e) => {
                let path = e.path().unwrap_or(root);
                let name = path.file_name().unwrap_or_default();
                let dangling = e.io_error().map(io::Error::kind) == Some(io::ErrorKind::NotFound);
                let ours = path == root
                    || path.extension().is_some_and(|x| x == extension)
                    || !(dangling || is_hidden(name));
                if ours {
                    return Err(walk_error(root, e));
                }
                continue;
            }
        };
        let path = entry.path();
        if path.extension().is_some_and(|e| e == extension) && path.is_file() {
            files.push(entry.into_path());
        }
    }
    files.sort();
    Ok(files)
}

/// Why a walk below `root` stopped.
pub(crate) fn walk_error(root: &Path, error: walkdir::Error) -> Error {
    let path = error.path().unwrap_or(root).to_owned();
    let source = error
        .into_io_error()
        .unwrap_or_else(|| io::ErrorKind::Other.into());
    Error::Io { path, source }
}

/// Part of something that can be read, as a thing of its own.
pub(crate) struct Window<R> {
    inner: R,
    start: u64,
    len: u64,
    at: u64,
}

impl<R: Read + Seek> Window<R> {
    pub fn new(inner: R, start: u64, len: u64) -> Self {
        Self {
            inner,
            start,
            len,
            at: 0,
        }
    }
}

impl<R: Read + Seek> Read for Window<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        if left == 0 {
            return Ok(0);
        }
        self.inner.seek(SeekFrom::Start(self.start + self.at))?;
        let read = self.inner.read(&mut buffer[..left])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<R: Read + Seek> Seek for Window<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        // Beyond any file an addition to `start` would overflow.
        self.at = at
            .filter(|at| *at < 1 << 62)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

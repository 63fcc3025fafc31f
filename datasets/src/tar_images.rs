//! Images that stay in tar files: where each begins is found once, then they are read from there.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::files::{io_error, malformed, mistaken, open_file, read_range, Window};
use crate::listing::Others;
use crate::source::{decode_bands_named, decode_named, describe};
use crate::{Bands, Error, Image, Permit, Source};

/// A file within a tar.
pub(crate) struct Entry {
    pub name: String,
    /// Where its bytes begin in the file that holds the tar.
    pub offset: u64,
    pub size: u64,
}

/// What is in a tar.
pub(crate) struct Index {
    pub entries: Vec<Entry>,
    /// Files without bytes of their own or a name.
    pub others: Others,
    /// What looks odd.
    pub warnings: Vec<String>,
}

/// Lists the regular files of the tar in `len` bytes of `reader` from `start` on; `what` names it in messages.
///
/// # Errors
/// When it is damaged or cut off: what follows would be missing without a word.
pub(crate) fn index<R: Read + Seek>(
    reader: R,
    start: u64,
    len: u64,
    what: &str,
) -> Result<Index, String> {
    let mut archive = tar::Archive::new(Window::new(reader, start, len));
    let (mut entries, mut others) = (Vec::new(), Others::default());
    let (mut warnings, mut end) = (Vec::new(), 0);
    let cut = |n: usize, at: u64| {
        format!("{what}: cut off or damaged after {n} files at byte {at} of {len}; fetch it again")
    };
    let list = archive.entries_with_seek().map_err(|e| e.to_string())?;
    for entry in list {
        let entry = entry.map_err(|e| format!("{} ({e})", cut(entries.len(), end)))?;
        let (offset, size) = (entry.raw_file_position(), entry.size());
        end = offset.saturating_add(size);
        if end > len {
            return Err(cut(entries.len(), offset));
        }
        let bytes = entry.path_bytes();
        let example = || format!("{what}/{}", String::from_utf8_lossy(&bytes));
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let advice = "pack the files themselves (tar --dereference --hard-dereference)";
            others.add_lost("that are links in a tar".into(), example, advice);
        }
        if !kind.is_file() {
            continue;
        }
        match std::str::from_utf8(&bytes) {
            Ok(name) if others.add_if_hidden(Path::new(name)) => {}
            Ok(name) => entries.push(Entry {
                name: name.to_owned(),
                offset: start + offset,
                size,
            }),
            Err(_) => {
                let name = "whose name is not valid UTF-8".into();
                others.add_lost(name, example, "rename them");
            }
        }
    }
    // Two empty blocks end a tar. Without them it may have been cut between two files.
    if len < end.next_multiple_of(512) + 1024 && !entries.is_empty() {
        warnings.push(format!(
            "{what}: no end mark after {} files; it may have been cut off",
            entries.len()
        ));
    }
    Ok(Index {
        entries,
        others,
        warnings,
    })
}

/// [`index`] of a file on disk.
pub(crate) fn index_file(path: &Path) -> Result<Index, Error> {
    let file = open_file(path).map_err(io_error(path))?;
    let len = file.metadata().map_err(io_error(path))?.len();
    let what = path.display().to_string();
    if let Some(other) = mistaken(path) {
        return Err(malformed(path, other));
    }
    index(file, 0, len, &what).map_err(|reason| {
        let reason = reason.strip_prefix(&format!("{what}: ")).unwrap_or(&reason);
        malformed(path, reason)
    })
}

/// Images in tar files: [`open_ilsvrc`](crate::open_ilsvrc), [`open_webdataset`](crate::open_webdataset).
#[derive(Debug)]
pub struct TarImages {
    pub(crate) kind: &'static str,
    pub(crate) tars: Vec<PathBuf>,
    pub(crate) classes: Vec<String>,
    pub(crate) others: Vec<(String, usize)>,
    pub(crate) warnings: Vec<String>,
    pub(crate) max_pixels: u64,
    items: Vec<Item>,
    /// All names in one string: a million small allocations would be slow and large.
    names: String,
}

#[derive(Debug)]
struct Item {
    offset: u64,
    size: u64,
    /// Where in `names` its own ends.
    name_end: usize,
    tar: u32,
    label: u32,
}

impl TarImages {
    pub(crate) fn new(kind: &'static str, tars: Vec<PathBuf>) -> Self {
        Self {
            kind,
            tars,
            classes: vec![],
            others: vec![],
            warnings: vec![],
            max_pixels: crate::MAX_PIXELS,
            items: vec![],
            names: String::new(),
        }
    }

    pub(crate) fn push(&mut self, tar: usize, entry: &Entry, label: usize) {
        self.names.push_str(&entry.name);
        self.items.push(Item {
            offset: entry.offset,
            size: entry.size,
            name_end: self.names.len(),
            tar: tar as u32,
            label: label as u32,
        });
    }

    /// Notes what else is in the tars.
    pub(crate) fn count(&mut self, others: &Others) {
        self.warnings.extend(others.warnings());
        self.others = others.counts();
    }

    /// Refuses images of more pixels than this instead of [`MAX_PIXELS`](crate::MAX_PIXELS).
    pub fn with_max_pixels(mut self, max_pixels: u64) -> Self {
        self.max_pixels = max_pixels;
        self
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, String> {
        match self.items.get(index) {
            Some(item) => read_range(&self.tars[item.tar as usize], item.offset, item.size),
            None => Err(format!("there are only {} images", self.items.len())),
        }
    }
}

impl Source for TarImages {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        self.items.get(index).map_or(0, |item| item.label as usize)
    }

    fn read(&self, index: usize, permit: &mut Permit) -> Result<Image, Error> {
        let bytes = self.bytes(index);
        decode_named(bytes, self.max_pixels, permit, || self.name(index))
    }

    fn bands(&self, index: usize, channels: usize, permit: &mut Permit) -> Result<Bands, Error> {
        let (bytes, most) = (self.bytes(index), self.max_pixels);
        decode_bands_named(bytes, channels, most, permit, || self.name(index))
    }

    fn name(&self, index: usize) -> String {
        let end = |i: usize| self.items.get(i).map_or(0, |item| item.name_end);
        let start = index.checked_sub(1).map_or(0, end);
        let name = self.names.get(start..end(index)).unwrap_or_default();
        match self.items.get(index) {
            Some(item) => format!("{}/{name}", self.tars[item.tar as usize].display()),
            None => name.to_owned(),
        }
    }

    fn describe(&self) -> String {
        describe(self.kind, self)
    }

    fn other_files(&self) -> &[(String, usize)] {
        &self.others
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

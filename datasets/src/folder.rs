//! Images on disk, one folder per class.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::error::first_ten;
use crate::files::{open_file, walk_error, MAX_FILE_BYTES};
use crate::source::{decode_named, describe};
use crate::split::{candidates, choose, unnamed, SPLITS};
use crate::{Error, Image, Source, MAX_PIXELS};

/// Files that are taken for images. What they really hold is seen when they are decoded.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "jpe", "png", "webp", "bmp"];

/// `<dir>/<split>/<class>/.../<image>`, the layout of torchvision's `ImageFolder`, in the same order.
///
/// Validation images may be in `val`, `valid`, `validation` or `test`. Classes are the sorted names of the folders;
/// images are sorted within their class. What a file holds, its bytes say, not its name. Hidden files, and files beside
/// the class folders, are ignored. Links are followed, but not in circles.
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    classes: Vec<String>,
    /// The index after the last image of each class.
    class_ends: Vec<usize>,
    /// All paths below their class folders in one string: a million small allocations would be slow and large.
    paths: String,
    /// Where in `paths` each one ends.
    path_ends: Vec<usize>,
    warnings: Vec<String>,
    max_pixels: u64,
}

impl ImageFolder {
    /// Lists the images below `dir/split`, or below `dir` itself when it has no splits.
    pub fn open(dir: &Path, split: &str) -> Result<Self, Error> {
        let root = split_folder(dir, split)?;
        let classes = class_names(&root)?;
        if classes.is_empty() {
            return Err(Error::NoClasses(root));
        }
        let mut folder = Self {
            root,
            classes,
            class_ends: vec![],
            paths: String::new(),
            path_ends: vec![],
            warnings: vec![],
            max_pixels: MAX_PIXELS,
        };
        for class in &folder.classes {
            for path in image_paths(&folder.root.join(class), &mut folder.warnings)? {
                folder.paths.push_str(&path);
                folder.path_ends.push(folder.paths.len());
            }
            folder.class_ends.push(folder.path_ends.len());
        }
        folder.paths.shrink_to_fit();
        folder.path_ends.shrink_to_fit();
        folder.check_classes()?;
        Ok(folder)
    }

    /// Refuses images of more pixels than this instead of [`MAX_PIXELS`].
    pub fn with_max_pixels(mut self, max_pixels: u64) -> Self {
        self.max_pixels = max_pixels;
        self
    }

    /// The path of image `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        let start = index
            .checked_sub(1)
            .and_then(|i| self.path_ends.get(i))
            .copied()
            .unwrap_or(0);
        let end = self.path_ends.get(index).copied().unwrap_or(start);
        let class = self
            .classes
            .get(self.label(index))
            .map_or("", String::as_str);
        self.root.join(class).join(&self.paths[start..end])
    }

    fn check_classes(&self) -> Result<(), Error> {
        if self.path_ends.is_empty() {
            return Err(Error::NoImages(self.root.clone()));
        }
        let starts = [0].into_iter().chain(self.class_ends.iter().copied());
        let empty: Vec<&String> = (self.classes.iter().zip(starts).zip(&self.class_ends))
            .filter_map(|((class, start), &end)| (start == end).then_some(class))
            .collect();
        if empty.is_empty() {
            return Ok(());
        }
        Err(Error::EmptyClasses {
            path: self.root.clone(),
            classes: first_ten(&empty, ", "),
        })
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, String> {
        let read = || {
            let mut bytes = Vec::new();
            open_file(&self.path(index))?
                .take(MAX_FILE_BYTES + 1)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|e: std::io::Error| format!("cannot be read: {e}"))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(format!("larger than {MAX_FILE_BYTES} bytes"));
        }
        Ok(bytes)
    }
}

impl Source for ImageFolder {
    fn len(&self) -> usize {
        self.path_ends.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        self.class_ends.partition_point(|&end| end <= index)
    }

    fn image(&self, index: usize) -> Result<Image, Error> {
        decode_named(self.read(index), self.max_pixels, || self.name(index))
    }

    fn name(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn describe(&self) -> String {
        describe("ImageFolder", self)
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The folder that holds the class folders.
fn split_folder(dir: &Path, split: &str) -> Result<PathBuf, Error> {
    if !dir.exists() {
        return Err(Error::NoSuchFolder(dir.to_owned()));
    }
    if !dir.is_dir() {
        return Err(Error::NotAFolder(dir.to_owned()));
    }
    let names = candidates(split);
    if let Some(name) = names.into_iter().find(|name| dir.join(name).is_dir()) {
        return Ok(dir.join(name));
    }
    // Without this check "val" of a dataset that has only "train" would become a dataset of one class, "train".
    let found: Vec<&str> = SPLITS
        .into_iter()
        .filter(|name| dir.join(name).is_dir())
        .collect();
    if found.is_empty() {
        unnamed(dir, split)?;
        return Ok(dir.to_owned());
    }
    Ok(dir.join(choose(dir, split, &found)?))
}

/// Sorted names of the folders in `root`.
fn class_names(root: &Path) -> Result<Vec<String>, Error> {
    let fail = |source| Error::Io {
        path: root.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if is_hidden(&entry.file_name()) || !entry.path().is_dir() {
            continue;
        }
        names.push(
            entry
                .file_name()
                .into_string()
                .map_err(|_| Error::NotUtf8(entry.path()))?,
        );
    }
    names.sort_unstable();
    Ok(names)
}

/// Sorted paths of the images below `class`, relative to it, with `/` between parts.
///
/// A file whose name is not UTF-8 is left out with a warning.
fn image_paths(class: &Path, warnings: &mut Vec<String>) -> Result<Vec<String>, Error> {
    let mut paths = Vec::new();
    let walk = WalkDir::new(class).min_depth(1).follow_links(true);
    for entry in walk
        .into_iter()
        .filter_entry(|e| e.depth() == 0 || !is_hidden(e.file_name()))
    {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if e.loop_ancestor().is_some() => continue,
            Err(e) if e.path().and_then(Path::file_name).is_some_and(is_hidden) => continue,
            Err(e) => return Err(walk_error(class, e)),
        };
        if !entry.file_type().is_file() || !is_image(entry.path()) {
            continue;
        }
        let relative = entry.path().strip_prefix(class).unwrap_or(entry.path());
        let parts: Option<Vec<&str>> = relative.iter().map(OsStr::to_str).collect();
        match parts {
            Some(parts) => paths.push(parts.join("/")),
            None => warnings.push(format!(
                "left out {}: its name is not valid UTF-8; rename it",
                entry.path().display()
            )),
        }
    }
    // As torchvision: folder by folder, and in each the files by name.
    paths.sort_unstable_by(|a, b| {
        a.rsplit_once('/')
            .unwrap_or(("", a))
            .cmp(&b.rsplit_once('/').unwrap_or(("", b)))
    });
    Ok(paths)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or("");
    EXTENSIONS
        .iter()
        .any(|known| known.eq_ignore_ascii_case(extension))
}

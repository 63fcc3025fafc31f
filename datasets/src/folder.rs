//! Images on disk, one folder per class.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{first, first_ten};
use crate::files::{
    holds, holds_images, io_error, is_hidden, looked_through, malformed, open_file, subfolders,
    MAX_FILE_BYTES,
};
use crate::formats::{is_array, is_image, listed};
use crate::listing::{images, Others};
use crate::source::counted;
use crate::source::{decode_bands_named, decode_named, describe};
use crate::split::{
    choose, is_training, like_splits, split_folders, split_named, split_within, unnamed,
};
use crate::{Bands, Error, Image, Permit, Source, MAX_PIXELS};

/// `<dir>/<split>/<class>/.../<image>`, the layout of torchvision's `ImageFolder`, in the same order; or images alone,
/// `<dir>/<split>/<image>`, which have no labels.
///
/// Splits go by any usual name in any case (`Train`, `training_set`, `valid`, `test`), also with a word that all have
/// (`seg_train`, `seg_test`); a folder in one of the same name is looked through. Classes are the sorted names of the
/// folders; images are sorted within their class. What a file holds, its bytes say, not its name. What is not read is
/// counted. Links are followed, but not in circles.
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    /// Whether `root` is a part of the folder that was named.
    is_part: bool,
    classes: Vec<String>,
    /// The index after the last image of each class.
    class_ends: Vec<usize>,
    /// All paths below their class folders in one string: a million small allocations would be slow and large.
    paths: String,
    /// Where in `paths` each one ends.
    path_ends: Vec<usize>,
    others: Vec<(String, usize)>,
    warnings: Vec<String>,
    max_pixels: u64,
}

impl ImageFolder {
    /// Lists the images below `dir/split`, or below `dir` itself when it has no splits.
    pub fn open(dir: &Path, split: &str) -> Result<Self, Error> {
        let mut folder = Self {
            root: PathBuf::new(),
            is_part: false,
            classes: vec![],
            class_ends: vec![],
            paths: String::new(),
            path_ends: vec![],
            others: vec![],
            warnings: vec![],
            max_pixels: MAX_PIXELS,
        };
        folder.root = split_folder(dir, split, &mut folder.warnings)?;
        folder.is_part = folder.root != dir;
        let mut others = Others::default();
        folder.classes = class_names(&folder.root)?;
        let mut lists = Vec::new();
        for class in &folder.classes {
            lists.push(images(&folder.root.join(class), usize::MAX, &mut others)?);
        }
        leave_out_arrays(&mut lists, &mut others);
        for list in lists {
            folder.push(list);
            folder.class_ends.push(folder.path_ends.len());
        }
        let mut direct = [images(&folder.root, 1, &mut others)?];
        leave_out_arrays(&mut direct, &mut others);
        let [direct] = direct;
        if !folder.path_ends.is_empty() {
            folder.check_classes()?;
            let odd = folder.check_levels(dir)?;
            folder.warnings.extend(odd);
            for name in direct {
                let advice = "move them into the folder of their class";
                others.add_lost("beside the class folders".into(), || name, advice);
            }
        } else if !direct.is_empty() {
            (folder.classes, folder.class_ends) = (vec![], vec![]);
            folder.push(direct);
        } else if folder.classes.is_empty() {
            return Err(Error::NoClasses(folder.root));
        } else {
            return Err(Error::NoImages {
                path: folder.root,
                endings: listed(),
            });
        }
        folder.paths.shrink_to_fit();
        folder.path_ends.shrink_to_fit();
        folder.others = others.counts();
        folder.warnings.extend(others.warnings());
        Ok(folder)
    }

    fn push(&mut self, paths: Vec<String>) {
        for path in paths {
            self.paths.push_str(&path);
            self.path_ends.push(self.paths.len());
        }
    }

    /// Refuses images of more pixels than this instead of [`MAX_PIXELS`].
    pub fn with_max_pixels(mut self, max_pixels: u64) -> Self {
        self.max_pixels = max_pixels;
        self
    }

    /// The path of image `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root.join(self.class(index)).join(self.below(index))
    }

    /// The class folder of image `index`.
    fn class(&self, index: usize) -> &str {
        let class = self.classes.get(self.label(index));
        class.map_or("", String::as_str)
    }

    /// The path of image `index` below its class folder.
    fn below(&self, index: usize) -> &str {
        let start = index
            .checked_sub(1)
            .and_then(|i| self.path_ends.get(i))
            .copied()
            .unwrap_or(0);
        let end = self.path_ends.get(index).copied().unwrap_or(start);
        &self.paths[start..end]
    }

    fn check_classes(&self) -> Result<(), Error> {
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
            endings: listed(),
        })
    }

    /// Tells where classes look like something else: splits, or folders of another level.
    fn check_levels(&self, dir: &Path) -> Result<Vec<String>, Error> {
        let mut odd = Vec::new();
        // Where folders within the class folders are called as splits are.
        let mut splits: BTreeSet<PathBuf> = BTreeSet::new();
        let (mut in_split, mut direct) = (0, 0);
        let mut within: BTreeSet<(&str, &str)> = BTreeSet::new();
        for index in 0..self.len() {
            let (class, below) = (self.class(index), self.below(index));
            let (folders, _) = below.rsplit_once('/').unwrap_or_default();
            let mut place = PathBuf::new();
            let mut parts = std::iter::once(class).chain(folders.split('/'));
            let found = parts.any(|part| {
                place.push(part);
                split_named(part).is_some()
            });
            in_split += usize::from(found);
            if found && splits.len() < 100 {
                splits.insert(place);
            }
            match below.split_once('/') {
                Some((folder, _)) if within.len() < 100 => drop(within.insert((class, folder))),
                Some(_) => {}
                None => direct += 1,
            }
        }
        let names: Vec<String> = splits.iter().map(|s| s.display().to_string()).collect();
        let names = first(3, &names, ", ");
        if in_split == self.len() {
            let homes: BTreeSet<&Path> = splits.iter().filter_map(|s| s.parent()).collect();
            let homes: Vec<String> = homes
                .iter()
                .map(|h| self.root.join(h).display().to_string())
                .collect();
            let reason = format!(
                "the splits lie further down, in {names}; name the folder that holds them: {}",
                first(3, &homes, " or ").trim_end_matches('/')
            );
            return Err(malformed(dir, reason));
        }
        let root = self.root.display();
        if in_split > 0 {
            odd.push(format!(
                "{root}: {} in folders named like splits ({names}), read like all others",
                counted(in_split, "image", "images")
            ));
        }
        let several = within
            .iter()
            .zip(within.iter().skip(1))
            .any(|(a, b)| a.0 == b.0);
        match within.first() {
            Some((class, folder)) if direct == 0 && several => odd.push(format!(
                "{root}: no image lies in a class folder itself, only in folders within, such as {class}/{folder}; the \
                 class is taken to be {class}"
            )),
            _ => {}
        }
        let like_splits = like_splits(&self.classes);
        if !like_splits.is_empty() {
            odd.push(format!(
                "{root}: class folders are named like splits ({}), and read as classes; if they are splits, give the \
                 folder of one of them",
                first(3, &like_splits, ", ")
            ));
        }
        if let [only] = &self.classes[..] {
            odd.push(format!(
                "{root}: only one class folder, {only}; perhaps another folder was meant, above or below"
            ));
        }
        Ok(odd)
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, String> {
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

    fn read(&self, index: usize, permit: &mut Permit) -> Result<Image, Error> {
        decode_named(self.bytes(index), self.max_pixels, permit, || {
            self.name(index)
        })
    }

    fn bands(&self, index: usize, channels: usize, permit: &mut Permit) -> Result<Bands, Error> {
        let bytes = self.bytes(index);
        decode_bands_named(bytes, channels, self.max_pixels, permit, || {
            self.name(index)
        })
    }

    fn name(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn describe(&self) -> String {
        describe("ImageFolder", self)
    }

    fn other_files(&self) -> &[(String, usize)] {
        &self.others
    }

    fn counted_in(&self) -> Option<&Path> {
        self.is_part.then_some(&self.root)
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Arrays are images where there are no others.
fn leave_out_arrays(lists: &mut [Vec<String>], others: &mut Others) {
    let is_image = |path: &String| !is_array(Path::new(path));
    if !lists.iter().flatten().any(is_image) {
        return;
    }
    for list in lists {
        list.retain(|path| {
            let stays = is_image(path);
            if !stays {
                others.add_lost(
                    "that are arrays".into(),
                    || path.clone(),
                    "arrays are read where there are no images",
                );
            }
            stays
        });
    }
}

/// The folder that holds the class folders, or the images.
fn split_folder(dir: &Path, split: &str, warnings: &mut Vec<String>) -> Result<PathBuf, Error> {
    if !dir.exists() {
        return Err(Error::NoSuchFolder(dir.to_owned()));
    }
    if !dir.is_dir() {
        return Err(Error::NotAFolder(dir.to_owned()));
    }
    let mut dir = dir.to_owned();
    if split_folders(&dir).is_empty() {
        dir = looked_through(dir);
    }
    let dir = dir.as_path();
    let (splits, folders) = (split_folders(dir), subfolders(dir));
    let name = |path: &'_ PathBuf| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let names: Vec<String> = splits.iter().map(name).collect();
    let holds_image = |dir: &PathBuf| holds(dir, is_image);
    let beside = folders.iter().filter(|f| !splits.contains(f));
    let beside: Vec<String> = beside.filter(|f| holds_images(f)).map(name).collect();
    let learnt = |name: &String| split_within(name).is_some_and(is_training);
    // A folder of trains among those of cars and ships is a class.
    let one_kind = names.iter().all(learnt) || !names.iter().any(learnt);
    let flat = |dir: &PathBuf| holds_image(dir) && subfolders(dir).is_empty();
    if !splits.is_empty() && !beside.is_empty() && one_kind && splits.iter().all(flat) {
        unnamed(dir, split)?;
        warnings.push(format!(
            "{}: {} taken for a class and not for a split, since {} beside it",
            dir.display(),
            names.join(", "),
            first(3, &beside, ", ")
        ));
        return Ok(dir.to_owned());
    }
    if split_named(split).is_none() && dir.join(split).is_dir() {
        return Ok(looked_through(dir.join(split)));
    }
    if splits.is_empty() {
        unnamed(dir, split)?;
        return Ok(dir.to_owned());
    }
    let found: Vec<&str> = names.iter().map(String::as_str).collect();
    let chosen = choose(dir, split, &found)?;
    if names.iter().any(|name| split_named(name).is_none()) {
        warnings.push(format!(
            "{}: {} taken for splits and not for classes",
            dir.display(),
            first(10, &names, ", ")
        ));
    }
    let alike = names.iter().filter(|n| n.as_str() != chosen && learnt(n));
    let left: Vec<&String> = match is_training(split_within(chosen).unwrap_or_default()) {
        true => alike.chain(&beside).collect(),
        false => vec![],
    };
    if !left.is_empty() {
        warnings.push(format!(
            "{}: only {chosen} is read; there are more images in {}",
            dir.display(),
            first(3, &left, ", ")
        ));
    }
    Ok(looked_through(dir.join(chosen)))
}

/// Sorted names of the folders in `root`.
fn class_names(root: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(io_error(root))? {
        let entry = entry.map_err(io_error(root))?;
        let path = entry.path();
        if is_hidden(&entry.file_name()) || !path.is_dir() {
            continue;
        }
        names.push(
            entry
                .file_name()
                .into_string()
                .map_err(|_| Error::NotUtf8(path))?,
        );
    }
    names.sort_unstable();
    Ok(names)
}

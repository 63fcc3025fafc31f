//! What is in a folder of images: the images, and everything else by kind, so that no file is lost without being counted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use walkdir::WalkDir;

use crate::files::{is_hidden, of_system, walk_error};
use crate::formats::{extension, is_array, is_image, is_unread_image};
use crate::source::counted;
use crate::Error;

/// More kinds than this are not told apart: names come from outside.
const MAX_KINDS: usize = 100;

/// What has no ending, or an odd one.
const OTHER: &str = "of other kinds";

/// Files that are not read, counted by what they are.
#[derive(Debug, Default)]
pub(crate) struct Others(BTreeMap<String, Kind>);

#[derive(Debug)]
struct Kind {
    count: usize,
    example: String,
    /// What to do about it, if these may be images that are missed.
    advice: Option<&'static str>,
}

impl Others {
    /// Counts a file that nobody misses.
    pub fn add(&mut self, what: String) {
        self.add_many(what, 1);
    }

    /// Counts a hidden file or folder by its name.
    fn add_hidden(&mut self, name: &OsStr) {
        self.add(match of_system(name) {
            Some(name) => format!("made by the system or a program: {name}"),
            None => "hidden".into(),
        });
    }

    /// Whether a file, or a folder that it lies in, is hidden; then it is counted.
    pub fn add_if_hidden(&mut self, path: &Path) -> bool {
        // Parts such as `.` are no names.
        let mut names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let hidden = names.find(|name| is_hidden(name));
        if let Some(name) = hidden {
            self.add_hidden(name);
        }
        hidden.is_some()
    }

    /// Counts some that nobody misses.
    pub fn add_many(&mut self, what: String, many: usize) {
        self.count(what, many, String::new, None);
    }

    /// Counts one that may be an image.
    pub fn add_lost(
        &mut self,
        what: String,
        example: impl FnOnce() -> String,
        advice: &'static str,
    ) {
        self.count(what, 1, example, Some(advice));
    }

    fn count(
        &mut self,
        what: String,
        many: usize,
        example: impl FnOnce() -> String,
        advice: Option<&'static str>,
    ) {
        let full = self.0.len() >= MAX_KINDS && !self.0.contains_key(&what);
        let what = if full { OTHER.into() } else { what };
        let kind = self.0.entry(what).or_insert_with(|| Kind {
            count: 0,
            example: example(),
            advice,
        });
        kind.count += many;
    }

    /// Adds what another part of the dataset holds.
    pub fn merge(&mut self, other: Self) {
        for (what, kind) in other.0 {
            match self.0.get_mut(&what) {
                Some(same) => same.count += kind.count,
                None => drop(self.0.insert(what, kind)),
            }
        }
    }

    /// What there is and how many.
    pub fn counts(&self) -> Vec<(String, usize)> {
        self.0
            .iter()
            .map(|(what, kind)| (what.clone(), kind.count))
            .collect()
    }

    /// A line for each kind that may be missed.
    pub fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().filter_map(|(what, kind)| {
            let (count, example) = (
                counted(kind.count, "file", "files"),
                kind.example.escape_debug(),
            );
            let advice = kind.advice?;
            Some(format!(
                "left out {count} {what}, such as {example}; {advice}"
            ))
        })
    }

    /// Counts a file that is not read as an image because of its name.
    pub fn add_named(&mut self, path: &Path) {
        if is_unread_image(path) {
            let what = format!("of the format .{}, which is not read", extension(path));
            self.add_lost(
                what,
                || path.display().to_string(),
                "convert them to JPEG or PNG",
            );
        } else {
            let ending = extension(path);
            let plain = (1..=10).contains(&ending.len())
                && ending.bytes().all(|b| b.is_ascii_alphanumeric());
            self.add(if plain {
                format!("ending in .{ending}")
            } else {
                OTHER.into()
            });
        }
    }
}

/// What a walk comes upon, hidden files and pipes apart.
enum Found {
    File(PathBuf),
    /// A link to nowhere.
    Dead(PathBuf),
    Failed(walkdir::Error),
}

/// Goes through `folder`, at most `depth` folders deep.
fn walk(
    folder: &Path,
    depth: usize,
    others: &mut Others,
    mut each: impl FnMut(Found, &mut Others) -> Result<(), Error>,
) -> Result<(), Error> {
    let walk = WalkDir::new(folder)
        .min_depth(1)
        .max_depth(depth)
        .follow_links(true);
    let mut walk = walk.into_iter();
    while let Some(entry) = walk.next() {
        match entry {
            Ok(entry) if is_hidden(entry.file_name()) => {
                others.add_hidden(entry.file_name());
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
            }
            Ok(entry) if entry.file_type().is_dir() => {}
            Ok(entry) if entry.file_type().is_file() => {
                each(Found::File(entry.into_path()), others)?;
            }
            Ok(entry) => {
                let what = "of the kind pipe, socket or device".into();
                let example = || entry.path().display().to_string();
                others.add_lost(what, example, "remove them");
            }
            Err(e) if e.loop_ancestor().is_some() => {}
            Err(e) => {
                let missing = e.io_error().map(std::io::Error::kind) == Some(ErrorKind::NotFound);
                match e.path().map(Path::to_owned) {
                    Some(path) if path.file_name().is_some_and(is_hidden) => {
                        others.add_hidden(path.file_name().unwrap_or_default());
                    }
                    Some(path) if missing && path != folder => each(Found::Dead(path), others)?,
                    _ => each(Found::Failed(e), others)?,
                }
            }
        }
    }
    Ok(())
}

fn add_dead(others: &mut Others, path: &Path) {
    let advice = "their targets are missing; repair or remove them";
    others.add_lost(
        "behind dead links".into(),
        || path.display().to_string(),
        advice,
    );
}

/// Sorted paths of the images below `folder` (at most `depth` folders deep), relative to it, with `/` between parts.
///
/// A link to nowhere that is named as an image is one that cannot be read, as if it had just vanished.
pub(crate) fn images(
    folder: &Path,
    depth: usize,
    others: &mut Others,
) -> Result<Vec<String>, Error> {
    let mut paths = Vec::new();
    walk(folder, depth, others, |found, others| {
        let path = match found {
            Found::File(path) | Found::Dead(path) if is_image(&path) || is_array(&path) => path,
            Found::File(path) => {
                others.add_named(&path);
                return Ok(());
            }
            Found::Dead(path) => {
                add_dead(others, &path);
                return Ok(());
            }
            Found::Failed(e) => return Err(walk_error(folder, e)),
        };
        let relative = path.strip_prefix(folder).unwrap_or(&path);
        let parts: Option<Vec<&str>> = relative.iter().map(OsStr::to_str).collect();
        match parts {
            Some(parts) => paths.push(parts.join("/")),
            None => {
                let what = "whose name is not valid UTF-8".into();
                others.add_lost(what, || path.display().to_string(), "rename them");
            }
        }
        Ok(())
    })?;
    // As torchvision: folder by folder, and in each the files by name.
    paths.sort_unstable_by(|a, b| {
        a.rsplit_once('/')
            .unwrap_or(("", a))
            .cmp(&b.rsplit_once('/').unwrap_or(("", b)))
    });
    Ok(paths)
}

/// Counts the files below `folder` that lie beside `archives`, which are read; nothing if it is no folder.
pub(crate) fn count_beside(
    folder: &Path,
    archives: &[PathBuf],
    others: &mut Others,
) -> Result<(), Error> {
    if !folder.is_dir() {
        return Ok(());
    }
    let kind = archives.first().map(|path| extension(path));
    let archives: BTreeSet<&Path> = archives.iter().map(PathBuf::as_path).collect();
    walk(folder, usize::MAX, others, |found, others| {
        match found {
            Found::File(path) if archives.contains(path.as_path()) => {}
            Found::File(path) if is_image(&path) || is_unread_image(&path) => {
                let advice = "if these are meant, name a folder that holds them alone";
                others.add_lost(
                    "named as images, beside the archives".into(),
                    || path.display().to_string(),
                    advice,
                );
            }
            Found::File(path) if kind.as_ref() == Some(&extension(&path)) => {
                let kind = extension(&path);
                others.add(format!("ending in .{kind}, of no or another split"));
            }
            Found::File(path) => others.add_named(&path),
            Found::Dead(path) => add_dead(others, &path),
            // Where archives might lie the search for them has failed already.
            Found::Failed(_) => others.add("in folders that cannot be listed".into()),
        }
        Ok(())
    })
}

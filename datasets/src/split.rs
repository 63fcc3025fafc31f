//! Which part of a dataset: the names it goes by.

use std::path::{Path, PathBuf};

use crate::Error;

/// Names under which datasets keep their parts.
pub(crate) const SPLITS: [&str; 5] = ["train", "val", "valid", "validation", "test"];

/// The names that may stand for `split`, best first: validation data goes by several.
pub(crate) fn candidates(split: &str) -> Vec<&str> {
    let mut names = vec![split];
    if split == "val" {
        names.extend(["valid", "validation", "test"]);
    }
    names
}

/// The files of `split`: those that have its name in theirs or in a folder of theirs below `root`.
///
/// If no file has the name of any split, they are all the data there is.
pub(crate) fn files_of(
    root: &Path,
    split: &str,
    files: Vec<PathBuf>,
) -> Result<Vec<PathBuf>, Error> {
    let words = |path: &PathBuf| -> Vec<String> {
        let below = path.strip_prefix(root).unwrap_or(path).to_string_lossy();
        let words = below.split(|c: char| !c.is_ascii_alphanumeric());
        words.map(str::to_ascii_lowercase).collect()
    };
    let words: Vec<Vec<String>> = files.iter().map(words).collect();
    let has = |name: &str| words.iter().any(|w| w.iter().any(|w| w == name));
    let found: Vec<&str> = SPLITS.into_iter().filter(|name| has(name)).collect();
    if found.is_empty() {
        return Ok(files);
    }
    let Some(name) = candidates(split).into_iter().find(|name| has(name)) else {
        return Err(Error::NoSuchSplit {
            path: root.to_owned(),
            split: split.to_owned(),
            found: found.join(", "),
        });
    };
    let chosen = files.into_iter().zip(words);
    let chosen = chosen.filter(|(_, words)| words.iter().any(|w| w == name));
    Ok(chosen.map(|(file, _)| file).collect())
}

//! Which part of a dataset: the names it goes by.

#[cfg(feature = "parquet")]
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[cfg(feature = "parquet")]
use crate::files::malformed;
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

/// An error if shards named as Hugging Face does, `train-00000-of-00002.parquet`, are not all there.
#[cfg(feature = "parquet")]
pub(crate) fn check_shards(root: &Path, files: &[PathBuf]) -> Result<(), Error> {
    // What comes before the number, how many there are, what comes after: numbers that are there.
    let mut sets: BTreeMap<(String, usize, String), BTreeSet<usize>> = BTreeMap::new();
    for file in files {
        let Some(path) = file.to_str() else { continue };
        let Some((before, after)) = path.rsplit_once("-of-") else {
            continue;
        };
        let (Some((prefix, number)), Some((count, suffix))) =
            (before.rsplit_once('-'), after.split_once(['-', '.']))
        else {
            continue;
        };
        if let (Ok(number), Ok(count)) = (number.parse(), count.parse()) {
            // Behind the count there may be a hash, another for each shard: train-00000-of-00002-0a1b2c.parquet.
            let hashed = if after.as_bytes().get(after.len() - suffix.len() - 1) == Some(&b'-') {
                "-*.parquet".to_owned()
            } else {
                format!(".{suffix}")
            };
            let set = sets.entry((prefix.to_owned(), count, hashed));
            set.or_default().insert(number);
        }
    }
    for ((prefix, count, suffix), there) in &sets {
        let missing = (0..*count).filter(|n| !there.contains(n));
        let name = |n| format!("{prefix}-{n:05}-of-{count:05}{suffix}");
        // The count is a name's: it may be anything.
        let shown: Vec<String> = missing.take(10).map(name).collect();
        if !shown.is_empty() {
            let all = count.saturating_sub(there.len());
            let reason = format!(
                "{all} of {count} shards are missing; fetch them: {}",
                shown.join(", ")
            );
            return Err(malformed(root, reason));
        }
    }
    Ok(())
}

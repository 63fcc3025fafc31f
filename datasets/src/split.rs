//! Which part of a dataset: the names it goes by, and whether its files are all there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::first_ten;
use crate::files::{files_ending, malformed};
use crate::Error;

/// Names under which datasets keep their parts.
pub(crate) const SPLITS: [&str; 5] = ["train", "val", "valid", "validation", "test"];

/// More shards than any dataset has.
const MAX_SHARDS: usize = 1 << 20;

/// The names that may stand for `split`, best first: validation data goes by several.
pub(crate) fn candidates(split: &str) -> Vec<&str> {
    let mut names = vec![split];
    if split == "val" {
        names.extend(["valid", "validation", "test"]);
    }
    names
}

/// The name of `found` that `split` means; an error that lists them if it means none.
pub(crate) fn choose<'a>(path: &Path, split: &str, found: &[&'a str]) -> Result<&'a str, Error> {
    let names = candidates(split);
    let name = names
        .iter()
        .find_map(|name| found.iter().find(|f| *f == name));
    name.copied().ok_or_else(|| Error::NoSuchSplit {
        path: path.to_owned(),
        split: split.to_owned(),
        found: found.join(", "),
    })
}

/// What has no splits is the whole of any of them. An error for a name that is none.
pub(crate) fn unnamed(path: &Path, split: &str) -> Result<(), Error> {
    if SPLITS.contains(&split) {
        return Ok(());
    }
    Err(Error::NoSuchSplit {
        path: path.to_owned(),
        split: split.to_owned(),
        found: format!(
            "one part without a name, which {} all mean",
            SPLITS.join(", ")
        ),
    })
}

/// `path` itself if it is a file, else the files in it that end in `.extension`.
pub(crate) fn files_at(path: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    match path.is_dir() {
        true => files_ending(path, extension),
        false => Ok(vec![path.to_owned()]),
    }
}

/// The files of `split`: those that have its name in theirs or in a folder of theirs below `root`, in the order given.
///
/// `val` also finds `valid`, `validation` and `test`. If no file has the name of any split, they are all the data there is.
///
/// # Errors
/// No such split; some of a numbered set of files (`train-00003-of-00014.parquet`) missing.
pub fn files_of(root: &Path, split: &str, files: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let words = |path: &PathBuf| -> Vec<String> {
        let below = path.strip_prefix(root).unwrap_or(path);
        // The root itself is a file then; the folders it lies in say nothing.
        let below = match below.as_os_str().is_empty() {
            true => Path::new(path.file_name().unwrap_or_default()),
            false => below,
        };
        let below = below.to_string_lossy();
        let words = below.split(|c: char| !c.is_ascii_alphanumeric());
        words.map(str::to_ascii_lowercase).collect()
    };
    let words: Vec<Vec<String>> = files.iter().map(words).collect();
    let has = |name: &str| words.iter().any(|w| w.iter().any(|w| w == name));
    let found: Vec<&str> = SPLITS.into_iter().filter(|name| has(name)).collect();
    let chosen: Vec<PathBuf> = if found.is_empty() {
        unnamed(root, split)?;
        files
    } else {
        let name = choose(root, split, &found)?;
        let files = files.into_iter().zip(words);
        let files = files.filter(|(_, words)| words.iter().any(|w| w == name));
        files.map(|(file, _)| file).collect()
    };
    // Who names one file means that one.
    if chosen.iter().any(|file| file != root) {
        all_there(root, &chosen)?;
    }
    Ok(chosen)
}

/// An error if files of a set are missing that is numbered as `NAME-00003-of-00014`, or if there are two such sets.
fn all_there(root: &Path, files: &[PathBuf]) -> Result<(), Error> {
    let mut sets: BTreeMap<PathBuf, BTreeMap<&str, BTreeSet<usize>>> = BTreeMap::new();
    for file in files {
        let name = file.file_name().and_then(|n| n.to_str());
        if let Some((before, number, total)) = name.and_then(numbered) {
            let set = sets.entry(file.with_file_name(before)).or_default();
            set.entry(total).or_default().insert(number);
        }
    }
    for (before, totals) in sets {
        let before = before.strip_prefix(root).unwrap_or(&before).display();
        if totals.len() > 1 {
            let totals: Vec<&str> = totals.into_keys().collect();
            let reason = format!(
                "{before}-*-of-{} are files of several versions of the dataset; keep those of one",
                totals.join(" and -of-")
            );
            return Err(malformed(root, reason));
        }
        for (total, numbers) in totals {
            let count: usize = total.parse().unwrap_or(MAX_SHARDS);
            let missing = (0..count.min(MAX_SHARDS)).filter(|n| !numbers.contains(n));
            let width = total.len();
            let missing: Vec<String> = missing
                .map(|n| format!("{before}-{n:0width$}-of-{total}"))
                .collect();
            if !missing.is_empty() {
                let reason = format!(
                    "{} of {count} files are missing: {}; fetch them",
                    missing.len(),
                    first_ten(&missing, ", ")
                );
                return Err(malformed(root, reason));
            }
        }
    }
    Ok(())
}

/// `train-00003-of-00014-0a1b2c.parquet` is number 3 of the 00014 of `train`.
fn numbered(name: &str) -> Option<(&str, usize, &str)> {
    let (before, after) = name.split_once("-of-")?;
    let (before, number) = before.rsplit_once('-')?;
    let digits = after
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(after.len());
    let total = &after[..digits];
    let plain =
        |text: &str| (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    (plain(number) && plain(total)).then_some((before, number.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_files() {
        let cases = [
            ("train-00003-of-00014.parquet", Some(("train", 3, "00014"))),
            ("a-b-7-of-9-0a1b.parquet", Some(("a-b", 7, "9"))),
            ("train-x-of-00014.parquet", None),
            ("one-of-many.tar", None),
            ("a-1-of-.tar", None),
            ("a-1-of-99999999999999999999.tar", None),
        ];
        for (name, expected) in cases {
            assert_eq!(numbered(name), expected, "{name}");
        }
    }
}

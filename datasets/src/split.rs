//! Which part of a dataset: the names it goes by, and whether its files are all there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::first;
use crate::files::{files_ending, holds_images, malformed, subfolders};
use crate::source::counted;
use crate::Error;

/// What the part to learn from is called, best first.
const TRAIN: [&str; 3] = ["train", "training", "trainval"];
/// What the part to judge by while training is called.
const VAL: [&str; 6] = ["val", "valid", "validation", "dev", "eval", "evaluation"];
/// What the part for the last judgement is called.
const TEST: [&str; 2] = ["test", "testing"];
/// Words that add nothing to such a name: `training_set`, `test images`.
const FILLERS: [&str; 8] = [
    "set", "data", "dataset", "images", "image", "imgs", "img", "split",
];

fn splits() -> impl Iterator<Item = &'static str> {
    TRAIN.into_iter().chain(VAL).chain(TEST)
}

/// The words of a folder's name in lower case, alike for `test_images` and `TestImages`.
fn words(folder: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in folder.chars() {
        let begins = before.is_ascii_lowercase() && c.is_ascii_uppercase();
        if begins || !c.is_ascii_alphanumeric() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

fn without_digits(word: &str) -> &str {
    word.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// The split that a word of this name stands for, if it is one word, and the other words that mean something: `seg_train-00` is
/// `train` of `seg`.
fn parts(folder: &str) -> (Option<&'static str>, Vec<String>) {
    let (mut found, mut rest) = (Vec::new(), Vec::new());
    for word in words(folder) {
        let bare = without_digits(&word);
        let is = |name: &str| {
            bare.strip_prefix(name)
                .is_some_and(|after| after.is_empty() || FILLERS.contains(&after))
        };
        match splits().find(|name| is(name)) {
            Some(name) => found.push(name),
            None if bare.is_empty() || FILLERS.contains(&bare) => {}
            None => rest.push(word),
        }
    }
    let one = found.pop().filter(|_| found.is_empty());
    (one, rest)
}

/// The name of a split that a whole folder name stands for, in any case: `Train`, `training_set`, `val2017`, `test_256`.
pub(crate) fn split_named(folder: &str) -> Option<&'static str> {
    let (name, rest) = parts(folder);
    // test1 and test2 may be classes; 2017 is a year, 256 a size.
    let few = |word: &String| matches!(word.len() - without_digits(word).len(), 1 | 2);
    name.filter(|_| rest.is_empty() && !words(folder).iter().any(few))
}

/// The name of a split that is in a folder name, whatever else is: `seg_train`, `test-00`.
pub(crate) fn split_within(folder: &str) -> Option<&'static str> {
    parts(folder).0
}

/// Whether a folder of this name holds a split of a dataset.
pub fn is_split(folder: &str) -> bool {
    split_named(folder).is_some()
}

/// Whether a split of this name is learnt from, and not kept to judge by.
pub(crate) fn is_training(split: &str) -> bool {
    TRAIN.contains(&split)
}

/// More shards than any dataset has; `{0..999999999}` is a typing error.
pub(crate) const MAX_SHARDS: usize = 1 << 20;

/// The names that may stand for `split`, best first: validation data goes by several, and test data are taken for them.
fn candidates(split: &str) -> Vec<&str> {
    let name = split_named(split).unwrap_or(split);
    let mut names = vec![split, name];
    for kind in [&TRAIN[..], &VAL, &TEST] {
        if kind.contains(&name) {
            names.extend(kind);
        }
    }
    if split == "val" {
        names.extend(TEST);
    }
    names
}

/// The name of `found` that `split` means; an error that lists them if it means none, or several alike.
pub(crate) fn choose<'a>(path: &Path, split: &str, found: &[&'a str]) -> Result<&'a str, Error> {
    if let Some(same) = found.iter().find(|f| **f == split) {
        return Ok(same);
    }
    for name in candidates(split) {
        if let Some(same) = found.iter().find(|f| **f == name) {
            return Ok(same);
        }
        for named in [split_named, split_within] {
            let mut alike = found.iter().filter(|f| named(f) == Some(name));
            match (alike.next(), alike.next()) {
                (Some(one), Some(other)) => {
                    let reason = format!(
                        "'{one}' and '{other}' may both be '{split}'; put them together or rename one"
                    );
                    return Err(malformed(path, reason));
                }
                (Some(one), None) => return Ok(one),
                _ => {}
            }
        }
    }
    Err(Error::NoSuchSplit {
        path: path.to_owned(),
        split: split.to_owned(),
        found: found.join(", "),
    })
}

/// What has no splits is the whole of any of them. An error for a name that is none.
pub(crate) fn unnamed(path: &Path, split: &str) -> Result<(), Error> {
    if is_split(split) {
        return Ok(());
    }
    Err(Error::NoSuchSplit {
        path: path.to_owned(),
        split: split.to_owned(),
        found: format!(
            "one part without a name, which {} all mean",
            splits().collect::<Vec<_>>().join(", ")
        ),
    })
}

fn name(folder: &Path) -> &str {
    let name = folder.file_name().and_then(|n| n.to_str());
    name.unwrap_or_default()
}

/// The folders in `path` that go by the name of a split, sorted; none if it is no folder that can be listed.
pub(crate) fn split_folders(path: &Path) -> Vec<PathBuf> {
    let mut folders = subfolders(path);
    let family = family(&folders);
    // Among other folders of images these may be classes.
    let alone = |folder: &PathBuf| family.contains(folder) || !holds_images(folder);
    if !family.is_empty() && folders.iter().all(alone) {
        return family;
    }
    folders.retain(|folder| is_split(name(folder)));
    folders
}

/// The folders whose names differ in the split alone, such as `seg_train`, `seg_test` and with them `seg_pred`, or `train-00` and
/// `test-00`; none without both data to learn from and data to judge by among them.
fn family(folders: &[PathBuf]) -> Vec<PathBuf> {
    let parts: Vec<_> = folders.iter().map(|f| parts(name(f))).collect();
    let Some((_, stem)) = parts
        .iter()
        .find(|(split, _)| split.is_some_and(is_training))
    else {
        return vec![];
    };
    let split = |(split, rest): &&(Option<&str>, Vec<String>)| split.is_some() && rest == stem;
    if !parts
        .iter()
        .filter(split)
        .any(|(s, _)| !s.is_some_and(is_training))
    {
        return vec![];
    }
    let akin = |(split, rest): &(Option<&str>, Vec<String>)| match split {
        Some(_) => rest == stem,
        None => {
            !stem.is_empty()
                && rest.len() == stem.len() + 1
                && stem.iter().all(|w| rest.contains(w))
        }
    };
    let akin = folders.iter().zip(&parts).filter(|(_, parts)| akin(parts));
    akin.map(|(folder, _)| folder.clone()).collect()
}

/// Names of class folders that look as if they were splits: most of them hold the word of one, or some are a family.
pub(crate) fn like_splits(classes: &[String]) -> Vec<&str> {
    let named: Vec<&str> = (classes.iter().map(String::as_str))
        .filter(|class| split_within(class).is_some())
        .collect();
    let paths: Vec<PathBuf> = classes.iter().map(PathBuf::from).collect();
    match named.len() > 1 && (2 * named.len() > classes.len() || !family(&paths).is_empty()) {
        true => named,
        false => vec![],
    }
}

/// `path` itself if it is a file, else the files in it that end in `.extension`.
pub(crate) fn files_at(path: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    match path.is_dir() {
        true => files_ending(path, extension),
        false => Ok(vec![path.to_owned()]),
    }
}

/// The files of `split`: those that have its name as the last of such names in theirs and their folders' below `root`, in
/// the order given. A number may follow it (`train2017`).
///
/// `val` also finds `valid`, `validation`, `test` and so on. If no file has the name of any split, they are all the data
/// there is.
///
/// Also returned is a warning if other files have the name of no split.
///
/// # Errors
/// No such split; some of a numbered set of files (`train-00003-of-00014.parquet`) missing.
pub fn files_of(
    root: &Path,
    split: &str,
    files: Vec<PathBuf>,
) -> Result<(Vec<PathBuf>, Option<String>), Error> {
    let split_in = |path: &PathBuf| -> Option<&'static str> {
        let below = path.strip_prefix(root).unwrap_or(path);
        // The root itself is a file then; the folders it lies in say nothing.
        let below = match below.as_os_str().is_empty() {
            true => Path::new(path.file_name().unwrap_or_default()),
            false => below,
        };
        let below = below.to_string_lossy().to_ascii_lowercase();
        let mut words = below.split(|c: char| !c.is_ascii_alphanumeric());
        words.by_ref().rev().find_map(|word| {
            let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
            splits().find(|name| word == *name)
        })
    };
    let own: Vec<Option<&str>> = files.iter().map(split_in).collect();
    let found: Vec<&str> = splits().filter(|name| own.contains(&Some(name))).collect();
    let without: Vec<String> = own
        .iter()
        .zip(&files)
        .filter(|(own, _)| own.is_none() && !found.is_empty())
        .map(|(_, file)| {
            file.strip_prefix(root)
                .unwrap_or(file)
                .display()
                .to_string()
        })
        .collect();
    let warning = (!without.is_empty()).then(|| {
        format!(
            "{}: left out {}, whose names name no split: {}",
            root.display(),
            counted(without.len(), "file", "files"),
            first(3, &without, ", ").escape_debug()
        )
    });
    let chosen: Vec<PathBuf> = if found.is_empty() {
        unnamed(root, split)?;
        files
    } else {
        let name = choose(root, split, &found)?;
        let files = files.into_iter().zip(own);
        let files = files.filter(|(_, own)| *own == Some(name));
        files.map(|(file, _)| file).collect()
    };
    // Who names one file means that one.
    if chosen.iter().any(|file| file != root) {
        all_there(root, &chosen)?;
    }
    Ok((chosen, warning))
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
            let missing = count - numbers.range(..count).count();
            if missing > 0 {
                // The total is what a name says, and may be a thousand million.
                let some = (0..count).filter(|n| !numbers.contains(n)).take(10);
                let width = total.len();
                let some = some.map(|n| format!("{before}-{n:0width$}-of-{total}"));
                let mut some: Vec<String> = some.collect();
                if missing > some.len() {
                    some.push(format!("and {} more", missing - some.len()));
                }
                let some = some.join(", ");
                let reason = format!("{missing} of {count} files are missing: {some}; fetch them");
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
    fn folders_named_as_splits() {
        for (folder, split) in [
            ("Train", Some("train")),
            ("TRAINING", Some("training")),
            ("training_set", Some("training")),
            ("trainset", Some("train")),
            ("train2017", Some("train")),
            ("val_256", Some("val")),
            ("Test Images", Some("test")),
            ("Validation", Some("validation")),
            ("dev", Some("dev")),
            ("TestImages", Some("test")),
            ("imgs_train", Some("train")),
            ("valdata", Some("val")),
            ("test1", None),
            ("train-00", None),
            ("seg_train", None),
            ("train_val", None),
            ("trainers", None),
            ("steam train", None),
            ("set", None),
            ("", None),
        ] {
            assert_eq!(split_named(folder), split, "{folder}");
        }
    }

    /// Splits by their names together, not one by one.
    #[test]
    fn families_of_splits() {
        for (names, whole) in [
            (&["seg_train", "seg_test", "seg_pred"][..], true),
            (&["train-00", "train-01", "test-00"], true),
            (&["fruit-train-v2", "fruit-val-v2"], true),
            (&["flowersTraining", "flowersValid"], true),
            (&["train1", "test1"], true),
            (&["train", "test_tube", "training_shoes"], false),
            (&["test1", "test2"], false),
            (&["trainA", "testB"], false),
            (&["bullet_train", "crash_test", "car"], false),
            (&["train_val", "test_val"], false),
        ] {
            let folders: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
            let expected = if whole { folders.clone() } else { vec![] };
            assert_eq!(family(&folders), expected);
        }
        for (classes, told) in [
            (&["trainA", "trainB", "testA", "testB"][..], 4),
            (&["seg_test", "seg_train", "a", "b", "c", "d"], 2),
            (&["bus", "car", "train"], 0),
            (&["bullet_train", "test_tube", "car", "dog", "owl"], 0),
        ] {
            let classes: Vec<String> = classes.iter().map(|c| c.to_string()).collect();
            assert_eq!(like_splits(&classes).len(), told, "{classes:?}");
        }
    }

    #[test]
    fn the_last_name_of_a_split_is_a_files_own() {
        let of = |split: &str, files: &[&str]| {
            let files = files.iter().map(PathBuf::from).collect();
            let files = files_of(Path::new("r"), split, files).map_err(|e| e.to_string());
            files.map(|(f, _)| {
                f.iter()
                    .map(|p| p.display().to_string())
                    .collect::<Vec<_>>()
            })
        };
        let files = ["r/Train-0.tar", "r/TEST-0.tar"];
        assert_eq!(of("train", &files).unwrap(), ["r/Train-0.tar"]);
        assert_eq!(of("val", &files).unwrap(), ["r/TEST-0.tar"]);
        let files = ["r/x_training0001.tar", "r/x_eval0001.tar"];
        assert_eq!(of("train", &files).unwrap(), ["r/x_training0001.tar"]);
        assert_eq!(of("val", &files).unwrap(), ["r/x_eval0001.tar"]);
        let files = ["r/train/test-0.tar", "r/train/a.tar"];
        assert_eq!(of("train", &files).unwrap(), ["r/train/a.tar"]);
        assert!(of("train", &["r/dev-0.tar"])
            .unwrap_err()
            .contains("only dev"));
    }

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

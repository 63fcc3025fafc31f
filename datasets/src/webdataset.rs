//! WebDataset: tar shards in which the files of a sample share a name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::files::{io_error, malformed, open_file, Window};
use crate::source::thousands;
use crate::split::{files_at, files_of};
use crate::tar_images::{index, index_file, Entry, TarImages};
use crate::Error;

/// What images may end in.
const IMAGES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "image"];

/// A label file is a number or a name.
const MAX_LABEL_BYTES: u64 = 4096;

/// Opens tar shards: the folder that holds them, or one of them.
///
/// A sample is an image (`.jpg`, `.jpeg`, `.png`, `.webp`, `.bmp`, `.image`) and a `.cls` beside it: the same path up to
/// the first dot of the file name. Samples without image are left out and counted in [`Source::warnings`](crate::Source::warnings). The `.cls` holds the class, a number from 0; or, in all of them, a name, and classes
/// are then the sorted names. Samples come in the order of the sorted shards.
///
/// # Errors
/// An unknown split, missing shards of a set (`-of-0010`), a cut or damaged shard, an image without label and a label that is no class are errors, so that nothing is missing
/// or mislabelled unnoticed.
pub fn open_webdataset(path: &Path, split: &str) -> Result<TarImages, Error> {
    open_shards(files_of(path, split, files_at(path, "tar")?)?)
}

/// Opens these shards in this order.
pub(crate) fn open_shards(shards: Vec<PathBuf>) -> Result<TarImages, Error> {
    let mut source = TarImages::new("WebDataset", shards);
    let mut labels = Vec::new();
    let mut entries = Vec::new();
    for (number, path) in source.tars.iter().enumerate() {
        let listed = index_file(path)?;
        let file = open_file(path).map_err(io_error(path))?;
        let found = samples(&listed.entries, file).map_err(|e| malformed(path, e))?;
        for (entry, label) in found.images {
            entries.push((number, entry));
            labels.push(label);
        }
        source.warnings.extend(listed.warnings);
        if let Some(first) = found.without_image.first() {
            source.warnings.push(format!(
                "{}: left out {} samples without an image (.{}), such as '{}'",
                path.display(),
                thousands(found.without_image.len()),
                IMAGES.join(", ."),
                first.escape_debug()
            ));
        }
    }
    let (classes, labels) = classes(&labels).map_err(|(sample, reason)| {
        let (shard, entry) = &entries[sample];
        malformed(&source.tars[*shard], format!("{}: {reason}", entry.name))
    })?;
    for ((shard, entry), label) in entries.iter().zip(labels) {
        source.push(*shard, entry, label);
    }
    source.classes = classes;
    if entries.is_empty() {
        let path = source.tars.first().cloned().unwrap_or_default();
        return Err(malformed(
            &path,
            "no samples; expected pairs of files such as 0001.jpg and 0001.cls",
        ));
    }
    Ok(source)
}

/// What is in a shard.
struct Samples {
    /// The images with the texts of their labels.
    images: Vec<(Entry, String)>,
    /// The names of the other samples, sorted.
    without_image: Vec<String>,
}

/// Puts the files of a shard together.
fn samples<R: Read + Seek>(entries: &[Entry], mut shard: R) -> Result<Samples, String> {
    let mut images: Vec<(&str, &Entry)> = Vec::new();
    let mut keys = BTreeSet::new();
    let mut labels: BTreeMap<&str, &Entry> = BTreeMap::new();
    for entry in entries {
        let name_start = entry.name.rfind('/').map_or(0, |slash| slash + 1);
        let Some(dot) = entry.name[name_start..].find('.') else {
            continue;
        };
        let (key, extension) = entry.name.split_at(name_start + dot);
        let extension = extension[1..].to_ascii_lowercase();
        keys.insert(key);
        if extension == "cls" {
            if labels.insert(key, entry).is_some() {
                return Err(format!("two labels for '{key}'"));
            }
        } else if IMAGES.contains(&extension.as_str()) {
            images.push((key, entry));
        }
    }
    let mut seen = BTreeSet::new();
    let mut samples = Vec::with_capacity(images.len());
    for (key, image) in images {
        if !seen.insert(key) {
            return Err(format!("two images for '{key}'"));
        }
        let label = labels
            .get(key)
            .ok_or_else(|| format!("no label for '{}': expected {key}.cls", image.name))?;
        let mut text = String::new();
        Window::new(&mut shard, label.offset, label.size.min(MAX_LABEL_BYTES))
            .read_to_string(&mut text)
            .map_err(|e| format!("'{}' cannot be read: {e}", label.name))?;
        let image = Entry {
            name: image.name.clone(),
            ..*image
        };
        samples.push((image, text.trim().to_owned()));
    }
    let without_image = keys.difference(&seen).map(|key| (*key).to_owned());
    Ok(Samples {
        without_image: without_image.collect(),
        images: samples,
    })
}

/// Class names and the label of each sample; else the sample that has none, and why.
fn classes(texts: &[String]) -> Result<(Vec<String>, Vec<usize>), (usize, String)> {
    /// More classes than any dataset has: a number beyond is not a label.
    const MOST: usize = 1 << 24;
    let numbers: Vec<Option<usize>> = texts
        .iter()
        .map(|t| t.parse().ok().filter(|n| *n < MOST))
        .collect();
    if numbers.iter().any(Option::is_some) {
        let labels: Result<Vec<usize>, _> = numbers
            .iter()
            .enumerate()
            .map(|(i, n)| {
                n.ok_or_else(|| (i, format!("label '{}' is not a class number", texts[i])))
            })
            .collect();
        let labels = labels?;
        let count = labels.iter().max().map_or(0, |most| most + 1);
        return Ok(((0..count).map(|n| n.to_string()).collect(), labels));
    }
    if let Some(empty) = texts.iter().position(String::is_empty) {
        return Err((empty, "its label is empty".into()));
    }
    let mut names: Vec<String> = texts.to_vec();
    names.sort_unstable();
    names.dedup();
    let labels = texts.iter().map(|t| names.partition_point(|n| n < t));
    let labels = labels.collect();
    Ok((names, labels))
}

/// For the fuzzer: a shard in memory. Returns how many samples it has.
#[doc(hidden)]
pub fn fuzz_webdataset(bytes: &[u8]) -> Result<usize, String> {
    let cursor = || std::io::Cursor::new(bytes);
    let listed = index(cursor(), 0, bytes.len() as u64, "fuzz")?;
    let samples = samples(&listed.entries, cursor())?;
    let texts: Vec<String> = samples.images.into_iter().map(|(_, text)| text).collect();
    let (names, labels) = classes(&texts).map_err(|(_, reason)| reason)?;
    assert!(labels.iter().all(|l| *l < names.len()));
    Ok(labels.len())
}

//! WebDataset: tar shards in which the files of a sample share a name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::files::{io_error, malformed, open_file, Window};
use crate::formats::{is_image_ending, listed as endings};
use crate::listing::{count_beside, Others};
use crate::source::thousands;
use crate::split::{files_at, files_of};
use crate::tar_images::{index, index_file, Entry, TarImages};
use crate::Error;

/// A label file is a number or a name.
const MAX_LABEL_BYTES: u64 = 4096;

/// Opens tar shards: the folder that holds them, or one of them.
///
/// A sample is an image and a `.cls` beside it: the same path up to the first dot of the file name. The `.cls` holds the
/// class, a number from 0; or, in all of them, a name, and classes are then the sorted names. Without any `.cls` the images
/// have no labels; so it is, with a warning, if some have none. Samples come in the order of the sorted shards.
///
/// Names with further dots (`IMG.2024.0.png`) are images of their own, up to the last dot, if they have a label of that name
/// or if nothing goes by their name up to the first dot. Samples without image, and whatever else is in the shards or beside
/// them, are counted.
///
/// # Errors
/// An unknown split, missing shards of a set (`-of-0010`), a cut or damaged shard and a label that is no class are errors, so
/// that nothing is missing or mislabelled unnoticed.
pub fn open_webdataset(path: &Path, split: &str) -> Result<TarImages, Error> {
    open_shards(path, files_of(path, split, files_at(path, "tar")?)?)
}

/// Opens these shards in this order; the warning is about those left out. What else lies in `folder` is counted.
pub(crate) fn open_shards(
    folder: &Path,
    (shards, warning): (Vec<PathBuf>, Option<String>),
) -> Result<TarImages, Error> {
    let mut source = TarImages::new("WebDataset", shards);
    source.warnings.extend(warning);
    let (mut texts, mut entries) = (Vec::new(), Vec::new());
    let mut others = Others::default();
    count_beside(folder, &source.tars, &mut others)?;
    let (mut dotted, mut first_dotted) = (0, String::new());
    for (number, path) in source.tars.iter().enumerate() {
        let listed = index_file(path)?;
        let file = open_file(path).map_err(io_error(path))?;
        let found = samples(&listed.entries, file).map_err(|e| malformed(path, e))?;
        for (entry, label) in found.images {
            entries.push((number, entry));
            texts.push(label);
        }
        others.merge(listed.others);
        others.merge(found.others);
        if let Some(first) = found.dotted.first().filter(|_| dotted == 0) {
            first_dotted = format!("{}/{}", path.display(), first.escape_debug());
        }
        dotted += found.dotted.len();
        source.warnings.extend(listed.warnings);
        if let Some(first) = found.without_image.first() {
            source.warnings.push(format!(
                "{}: left out {} samples without an image ({}), such as '{}'",
                path.display(),
                thousands(found.without_image.len()),
                endings(),
                first.escape_debug()
            ));
        }
    }
    if entries.is_empty() {
        let path = source.tars.first().cloned().unwrap_or_default();
        return Err(malformed(
            &path,
            "no samples; expected images, or pairs of files such as 0001.jpg and 0001.cls",
        ));
    }
    if dotted > 0 {
        source.warnings.push(format!(
            "{} images are read by their name up to the last dot, such as {first_dotted}; in WebDataset a key ends at the first dot",
            thousands(dotted)
        ));
    }
    let labelled = texts.iter().flatten().count();
    let (classes, labels) = if labelled == texts.len() {
        let texts: Vec<String> = texts.into_iter().flatten().collect();
        classes(&texts).map_err(|(sample, reason)| {
            let (shard, entry) = &entries[sample];
            malformed(&source.tars[*shard], format!("{}: {reason}", entry.name))
        })?
    } else {
        if let Some(missing) = texts
            .iter()
            .position(Option::is_none)
            .filter(|_| labelled > 0)
        {
            let (shard, entry) = &entries[missing];
            let (missing, all) = (thousands(texts.len() - labelled), thousands(texts.len()));
            source.warnings.push(format!(
                "{missing} of {all} images have no label, such as {}/{}: expected a .cls of the same name; all are taken \
                 as images without labels",
                source.tars[*shard].display(),
                entry.name.escape_debug()
            ));
        }
        (vec![], vec![0; texts.len()])
    };
    for ((shard, entry), label) in entries.iter().zip(labels) {
        source.push(*shard, entry, label);
    }
    source.classes = classes;
    source.count(&others);
    Ok(source)
}

/// What is in a shard.
#[derive(Default)]
struct Samples {
    /// The images with the texts of their labels.
    images: Vec<(Entry, Option<String>)>,
    /// Names of images that have more dots than one.
    dotted: Vec<String>,
    /// The names of the other samples, sorted.
    without_image: Vec<String>,
    others: Others,
}

/// A file name of a shard, taken apart.
struct Name<'a> {
    entry: &'a Entry,
    /// Up to the first dot, as WebDataset has it.
    key: &'a str,
    /// Up to the last dot.
    stem: &'a str,
    /// After the last dot, in small letters.
    ending: String,
}

impl<'a> Name<'a> {
    fn of(entry: &'a Entry) -> Option<Self> {
        let start = entry.name.rfind('/').map_or(0, |slash| slash + 1);
        let first = start + entry.name[start..].find('.')?;
        let last = start + entry.name[start..].rfind('.')?;
        Some(Self {
            entry,
            key: &entry.name[..first],
            stem: &entry.name[..last],
            ending: entry.name[last + 1..].to_ascii_lowercase(),
        })
    }

    fn is_image(&self) -> bool {
        is_image_ending(&self.ending) || self.ending == "image"
    }

    fn is_dotted(&self) -> bool {
        self.key != self.stem
    }
}

/// Puts the files of a shard together.
fn samples<R: Read + Seek>(entries: &[Entry], mut shard: R) -> Result<Samples, String> {
    let mut found = Samples::default();
    let mut names = Vec::new();
    for entry in entries {
        match Name::of(entry) {
            Some(name) => names.push(name),
            None => found.others.add_named(Path::new(&entry.name)),
        }
    }
    let mut labels: BTreeMap<&str, &Entry> = BTreeMap::new();
    for name in names.iter().filter(|n| n.ending == "cls") {
        if labels.insert(name.stem, name.entry).is_some() {
            return Err(format!("two labels for '{}'", name.stem));
        }
    }
    let plain = names.iter().filter(|n| n.is_image() && !n.is_dotted());
    let plain: BTreeSet<&str> = plain.map(|n| n.key).collect();
    let (mut seen, mut with_image) = (BTreeSet::new(), BTreeSet::new());
    for name in names.iter().filter(|n| n.is_image()) {
        let label = labels.get(name.stem);
        if name.is_dotted() && label.is_none() {
            if plain.contains(name.key) {
                found.others.add("further images of samples".into());
                continue;
            }
            if labels.contains_key(name.key) {
                let what = "that may be one of several images of a sample".into();
                let example = || name.entry.name.clone();
                let advice = "name the one that is meant KEY.jpg";
                found.others.add_lost(what, example, advice);
                continue;
            }
        }
        if !seen.insert(name.stem) {
            return Err(format!("two images for '{}'", name.stem));
        }
        with_image.insert(name.key);
        if name.is_dotted() {
            found.dotted.push(name.entry.name.clone());
        }
        let text = label.map(|label| {
            let mut text = String::new();
            Window::new(&mut shard, label.offset, label.size.min(MAX_LABEL_BYTES))
                .read_to_string(&mut text)
                .map_err(|e| format!("'{}' cannot be read: {e}", label.name))?;
            Ok::<_, String>(text.trim().to_owned())
        });
        let image = Entry {
            name: name.entry.name.clone(),
            ..*name.entry
        };
        found.images.push((image, text.transpose()?));
    }
    for name in names.iter().filter(|n| !n.is_image()) {
        match name.ending.as_str() {
            "cls" if seen.contains(name.stem) => found.others.add("labels".into()),
            "cls" => found.others.add("labels without image".into()),
            _ => found.others.add_named(Path::new(&name.entry.name)),
        }
    }
    let keys: BTreeSet<&str> = names.iter().map(|n| n.key).collect();
    let without = keys.difference(&with_image).map(|key| (*key).to_owned());
    found.without_image = without.collect();
    Ok(found)
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
    let texts = samples.images.into_iter().filter_map(|(_, text)| text);
    let texts: Vec<String> = texts.collect();
    let (names, labels) = classes(&texts).map_err(|(_, reason)| reason)?;
    assert!(labels.iter().all(|l| *l < names.len()));
    Ok(labels.len())
}

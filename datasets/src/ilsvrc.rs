//! ImageNet as it is handed out: `ILSVRC2012_img_train.tar` and `_val.tar`, read without unpacking.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use crate::files::{io_error, malformed, open_file};
use crate::listing::count_beside;
use crate::mat::{read_structs, Value};
use crate::split::choose;
use crate::tar_images::{index, index_file, Entry, TarImages};
use crate::Error;

/// A tar that holds one tar for each class.
pub(crate) const TRAIN: &str = "ILSVRC2012_img_train.tar";
/// A tar of images named by number.
pub(crate) const VAL: &str = "ILSVRC2012_img_val.tar";
const DEVKIT: &str = "ILSVRC2012_devkit_t12.tar.gz";

/// The devkit's files unpacked are less than a megabyte.
const MAX_DEVKIT_BYTES: u64 = 64 << 20;

/// Opens the train tar, or the val tar with the devkit's labels, in `folder`.
///
/// Classes are the sorted WordNet ids, in both the same: in training the names of the inner tars, in validation the
/// synsets without children in the devkit's `meta.mat`, whose numbering is another.
pub fn open_ilsvrc(folder: &Path, split: &str) -> Result<TarImages, Error> {
    if !folder.is_dir() {
        return Err(Error::NotAFolder(folder.to_owned()));
    }
    match split {
        "valid" | "validation" => open_ilsvrc(folder, "val"),
        _ if choose(folder, split, &["train", "val"])? == "train" => open_train(folder),
        _ => open_val(folder),
    }
}

fn open_train(folder: &Path) -> Result<TarImages, Error> {
    let path = &folder.join(TRAIN);
    let mut source = TarImages::new("ILSVRC2012 train tar", vec![path.to_owned()]);
    let outer = index_file(path)?;
    source.warnings = outer.warnings;
    let mut others = outer.others;
    let mut inner: Vec<(String, &Entry)> = Vec::new();
    for entry in &outer.entries {
        if let Some(class) = entry.name.strip_suffix(".tar") {
            let class = class.rsplit('/').next().unwrap_or(class);
            inner.push((class.to_owned(), entry));
        } else {
            others.add_named(Path::new(&entry.name));
        }
    }
    inner.sort_by(|a, b| a.0.cmp(&b.0));
    if inner.is_empty() {
        return Err(malformed(
            path,
            "no class tars in it, such as n01440764.tar",
        ));
    }
    if let Some(twice) = inner.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(malformed(path, format!("class {} twice", twice[0].0)));
    }
    let file = open_file(path).map_err(io_error(path))?;
    for (label, (class, tar)) in inner.iter().enumerate() {
        let mut listed = index(&file, tar.offset, tar.size, &format!("{class}.tar"))
            .map_err(|reason| malformed(path, reason))?;
        if listed.entries.is_empty() {
            return Err(malformed(path, format!("no images in {class}.tar")));
        }
        listed.entries.sort_by(|a, b| a.name.cmp(&b.name));
        listed
            .entries
            .iter()
            .for_each(|entry| source.push(0, entry, label));
        source.warnings.extend(listed.warnings);
        others.merge(listed.others);
    }
    others.add_many("class tars".into(), inner.len());
    count_beside(folder, &source.tars, &mut others)?;
    source.count(&others);
    source.classes = inner.into_iter().map(|(class, _)| class).collect();
    Ok(source)
}

fn open_val(folder: &Path) -> Result<TarImages, Error> {
    let path = &folder.join(VAL);
    let (classes, truth) = read_devkit(&folder.join(DEVKIT))?;
    let mut source = TarImages::new("ILSVRC2012 val tar", vec![path.to_owned()]);
    let mut listed = index_file(path)?;
    listed.entries.sort_by(|a, b| a.name.cmp(&b.name));
    for entry in &listed.entries {
        // ILSVRC2012_val_00000001.JPEG is the first of the ground truth.
        let stem = entry.name.rsplit('/').next().unwrap_or_default();
        let number = stem
            .split('.')
            .next()
            .and_then(|s| s.strip_prefix("ILSVRC2012_val_"));
        let label = number
            .and_then(|n| n.parse::<usize>().ok()?.checked_sub(1))
            .and_then(|n| truth.get(n));
        let label = *label.ok_or_else(|| {
            let (name, images) = (&entry.name, truth.len());
            malformed(
                path,
                format!("{name} is none of the {images} images of the ground truth"),
            )
        })?;
        source.push(0, entry, label);
    }
    if listed.entries.is_empty() {
        return Err(malformed(path, "no images in it"));
    }
    source.classes = classes;
    source.warnings = listed.warnings;
    count_beside(folder, &source.tars, &mut listed.others)?;
    source.count(&listed.others);
    Ok(source)
}

/// Sorted WordNet ids, and the class of each validation image.
fn read_devkit(path: &Path) -> Result<(Vec<String>, Vec<usize>), Error> {
    let file = open_file(path).map_err(io_error(path))?;
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(GzDecoder::new(file).take(MAX_DEVKIT_BYTES));
    let mut read = || -> std::io::Result<()> {
        for entry in archive.entries()? {
            let entry = entry?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.rsplit('/').next().unwrap_or_default().to_owned();
            // A sparse member is as long as it says, whatever the archive holds.
            if !entry.header().entry_type().is_file() {
                continue;
            }
            if ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"].contains(&name.as_str()) {
                let mut bytes = Vec::new();
                entry.take(MAX_DEVKIT_BYTES).read_to_end(&mut bytes)?;
                members.insert(name, bytes);
            }
        }
        Ok(())
    };
    read().map_err(|e| malformed(path, format!("cut off or damaged ({e}); fetch it again")))?;
    let member = |name: &str| {
        let bytes = members.get(name).map(Vec::as_slice);
        bytes.ok_or_else(|| malformed(path, format!("no {name} in it")))
    };
    labels(
        member("meta.mat")?,
        member("ILSVRC2012_validation_ground_truth.txt")?,
    )
    .map_err(|reason| malformed(path, reason))
}

fn labels(meta: &[u8], truth: &[u8]) -> Result<(Vec<String>, Vec<usize>), String> {
    let synsets = read_structs(meta).map_err(|e| format!("meta.mat: {e}"))?;
    let mut ids: BTreeMap<String, u64> = BTreeMap::new();
    for synset in synsets {
        let number = |field: &str| match synset.get(field) {
            Some(Value::Number(n)) => Ok(*n as u64),
            _ => Err(format!("meta.mat: a synset without {field}")),
        };
        if number("num_children")? > 0 {
            continue;
        }
        let Some(Value::Text(wnid)) = synset.get("WNID") else {
            return Err("meta.mat: a synset without WNID".into());
        };
        ids.insert(wnid.clone(), number("ILSVRC2012_ID")?);
    }
    let class_of: BTreeMap<u64, usize> = ids
        .values()
        .enumerate()
        .map(|(class, id)| (*id, class))
        .collect();
    if class_of.len() != ids.len() {
        return Err("meta.mat: two synsets with one ILSVRC2012_ID".into());
    }
    let text = String::from_utf8_lossy(truth);
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let truth = lines.enumerate().map(|(i, line)| {
        let class = line.parse().ok().and_then(|id: u64| class_of.get(&id));
        class
            .copied()
            .ok_or_else(|| format!("ground truth, line {}: '{line}' is no class", i + 1))
    });
    Ok((ids.into_keys().collect(), truth.collect::<Result<_, _>>()?))
}

//! CIFAR-10 and CIFAR-100 in their binary version, packed or unpacked.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use crate::files::{io_error, malformed, open_file};
use crate::source::describe;
use crate::split::choose;
use crate::{Error, Image, Permit, Source};

const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;

/// All of CIFAR unpacked is 180 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Images of 32 x 32 pixels, all in memory.
///
/// Reads the files `data_batch_1.bin` .. `data_batch_5.bin` and `test_batch.bin` (CIFAR-10), or `train.bin` and
/// `test.bin` (CIFAR-100, fine labels): in a folder, or in the archive (`.tar.gz` or `.tar`) they come in.
#[derive(Debug)]
pub struct Cifar {
    kind: Kind,
    split: &'static str,
    classes: Vec<String>,
    /// Labels, then for each image red, green and blue as a plane each.
    labels: Vec<u8>,
    planes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ten,
    Hundred,
}

impl Kind {
    const BOTH: [Self; 2] = [Self::Ten, Self::Hundred];

    fn name(self) -> &'static str {
        match self {
            Self::Ten => "CIFAR-10",
            Self::Hundred => "CIFAR-100",
        }
    }

    /// The files that hold the training or the test images.
    fn files(self, train: bool) -> &'static [&'static str] {
        match (self, train) {
            (Self::Ten, true) => &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
            (Self::Ten, false) => &["test_batch.bin"],
            (Self::Hundred, true) => &["train.bin"],
            (Self::Hundred, false) => &["test.bin"],
        }
    }

    fn names_file(self) -> &'static str {
        match self {
            Self::Ten => "batches.meta.txt",
            Self::Hundred => "fine_label_names.txt",
        }
    }

    fn classes(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    /// Bytes before an image's pixels; the last is the label (CIFAR-100 has the coarse one first).
    fn label_bytes(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }
}

/// What the folder or archive at `path` would be read as.
pub(crate) fn detect(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        let inside = ["cifar-10-batches-bin", "cifar-100-binary"].map(|name| path.join(name));
        let folders = [path.to_owned()].into_iter().chain(inside);
        let archives = ["cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz"];
        let archives = archives.map(|name| path.join(name)).into_iter();
        let has = |folder: &PathBuf| {
            let mut files = Kind::BOTH
                .iter()
                .flat_map(|k| [k.files(true), k.files(false)]);
            files.any(|files| folder.join(files[0]).is_file())
        };
        return folders
            .filter(has)
            .chain(archives.filter(|archive| archive.is_file()))
            .next();
    }
    let name = path.file_name()?.to_str()?;
    let archive = name.ends_with(".tar.gz") || name.ends_with(".tgz") || name.ends_with(".tar");
    (name.starts_with("cifar-10") && archive).then(|| path.to_owned())
}

impl Cifar {
    /// Opens the training images (`train`) or the test images (`test` or `val`) of a folder or archive.
    pub fn open(path: &Path, split: &str) -> Result<Self, Error> {
        let train = choose(path, split, &["train", "test"])? == "train";
        let files = if path.is_dir() {
            read_folder(path)?
        } else {
            let file = BufReader::new(open_file(path).map_err(io_error(path))?);
            let packed = path.extension().is_some_and(|e| e != "tar");
            read_archive(file, packed).map_err(|reason| malformed(path, reason))?
        };
        Self::from_files(&files, train).map_err(|reason| malformed(path, reason))
    }

    fn from_files(files: &BTreeMap<String, Vec<u8>>, train: bool) -> Result<Self, String> {
        let has = |kind: &Kind| kind.files(train).iter().any(|f| files.contains_key(*f));
        let kind = Kind::BOTH.into_iter().find(has).ok_or_else(|| {
            let [ten, hundred] = Kind::BOTH.map(|k| k.files(train)[0]);
            format!("no CIFAR images: expected {ten} or {hundred}, the binary version")
        })?;
        let mut cifar = Self {
            kind,
            split: if train { "train" } else { "test" },
            classes: class_names(kind, files)?,
            labels: vec![],
            planes: vec![],
        };
        for name in kind.files(train) {
            let bytes = files
                .get(*name)
                .ok_or_else(|| format!("{name} is missing"))?;
            cifar.add(name, bytes)?;
        }
        Ok(cifar)
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let head = self.kind.label_bytes();
        let record = head + 3 * PIXELS;
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            return Err(format!(
                "{name} has {} bytes, not a whole number of records of {record}; fetch it again",
                bytes.len()
            ));
        }
        for (i, record) in bytes.chunks_exact(record).enumerate() {
            let label = record[head - 1];
            if usize::from(label) >= self.kind.classes() {
                return Err(format!(
                    "{name}: image {i} has label {label}, but there are {} classes",
                    self.kind.classes()
                ));
            }
            self.labels.push(label);
            self.planes.extend_from_slice(&record[head..]);
        }
        Ok(())
    }
}

fn class_names(kind: Kind, files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<String>, String> {
    let Some(bytes) = files.get(kind.names_file()) else {
        return Ok((0..kind.classes()).map(|n| n.to_string()).collect());
    };
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let names: Vec<String> = lines.map(str::to_owned).collect();
    if names.len() == kind.classes() {
        return Ok(names);
    }
    Err(format!(
        "{} names {} classes; expected {}",
        kind.names_file(),
        names.len(),
        kind.classes()
    ))
}

fn wanted(name: &str) -> bool {
    Kind::BOTH.iter().any(|kind| {
        kind.names_file() == name
            || kind.files(true).contains(&name)
            || kind.files(false).contains(&name)
    })
}

fn read_folder(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        if wanted(name) {
            let mut bytes = Vec::new();
            let file = open_file(&path).map_err(io_error(&path))?;
            file.take(MAX_BYTES)
                .read_to_end(&mut bytes)
                .map_err(io_error(&path))?;
            files.insert(name.to_owned(), bytes);
        }
    }
    Ok(files)
}

/// The files we want from a tar, or from a packed one.
fn read_archive(file: impl Read, packed: bool) -> Result<BTreeMap<String, Vec<u8>>, String> {
    if packed {
        read_tar(GzDecoder::new(file).take(MAX_BYTES))
    } else {
        read_tar(file.take(MAX_BYTES))
    }
}

fn read_tar(reader: impl Read) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let cut = |e: std::io::Error| format!("cut off or damaged ({e}); fetch it again");
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(cut)? {
        let mut entry = entry.map_err(cut)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = path.rsplit('/').next().unwrap_or_default();
        if !entry.header().entry_type().is_file() || !wanted(name) {
            continue;
        }
        let (mut bytes, size) = (Vec::new(), entry.size());
        entry.read_to_end(&mut bytes).map_err(cut)?;
        if bytes.len() as u64 != size {
            return Err(format!("cut off within {name}; fetch it again"));
        }
        files.insert(name.to_owned(), bytes);
    }
    Ok(files)
}

impl Source for Cifar {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        self.labels.get(index).map_or(0, |&l| l.into())
    }

    fn read(&self, index: usize, _: &mut Permit) -> Result<Image, Error> {
        let planes = index
            .checked_mul(3 * PIXELS)
            .and_then(|start| self.planes.get(start..)?.get(..3 * PIXELS))
            .ok_or_else(|| Error::Image {
                name: self.name(index),
                reason: format!("there are only {} images", self.len()),
            })?;
        let mut rgb = vec![0; 3 * PIXELS];
        for (i, pixel) in rgb.chunks_exact_mut(3).enumerate() {
            pixel.copy_from_slice(&[planes[i], planes[PIXELS + i], planes[2 * PIXELS + i]]);
        }
        Ok(Image {
            width: SIDE,
            height: SIDE,
            rgb,
        })
    }

    fn name(&self, index: usize) -> String {
        format!("{} {} #{index}", self.kind.name(), self.split)
    }

    fn describe(&self) -> String {
        describe(self.kind.name(), self)
    }
}

/// For the fuzzer: an archive in memory. Returns how many images it has.
#[doc(hidden)]
pub fn fuzz_cifar(bytes: &[u8]) -> Result<usize, String> {
    let mut images = 0;
    for packed in [false, true] {
        let Ok(files) = read_archive(bytes, packed) else {
            continue;
        };
        for train in [false, true] {
            let cifar = Cifar::from_files(&files, train)?;
            for i in 0..cifar.len() {
                let image = cifar.image(i).map_err(|e| e.to_string())?;
                image.check().map_err(|e| e.to_string())?;
                assert!(cifar.label(i) < cifar.classes().len());
            }
            images += cifar.len();
        }
    }
    Ok(images)
}

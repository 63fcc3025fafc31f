//! Datasets made in the test, in their real formats.
#![allow(dead_code)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use datasets::{open, Source};
use flate2::{write::GzEncoder, Compression};
use tempfile::TempDir;

pub fn fixture(path: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fs::read(folder.join(path)).unwrap()
}

/// A BMP of 2 x 2 pixels, all of this value.
pub fn image(value: u8) -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    for n in [14 + 40 + 16, 0, 54, 40, 2, 2u32] {
        bytes.extend(n.to_le_bytes());
    }
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(24u16.to_le_bytes());
    bytes.extend([0; 24]);
    // Two rows of two pixels, each padded to a multiple of four bytes.
    bytes.extend([value; 16]);
    bytes
}

pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn put(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

pub fn opened(path: &Path, split: &str) -> std::sync::Arc<dyn Source> {
    open(path.to_str().unwrap(), split).unwrap()
}

pub fn error(path: &Path, split: &str) -> String {
    let error = open(path.to_str().unwrap(), split).err().unwrap();
    let error = error.to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// (label, first byte) of all images.
pub fn all(source: &dyn Source) -> Vec<(usize, u8)> {
    (0..source.len())
        .map(|i| (source.label(i), source.image(i).unwrap().rgb[0]))
        .collect()
}

/// The last part of an image's name.
pub fn last(source: &dyn Source, index: usize) -> String {
    source.name(index).rsplit('/').next().unwrap().to_owned()
}

/// `count` records with these labels; image i is of value i in red, i + 1 in green, i + 2 in blue.
pub fn records(labels: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, label) in labels.iter().enumerate() {
        bytes.extend(*label);
        for c in 0..3 {
            bytes.extend([(i + c) as u8; 1024]);
        }
    }
    bytes
}

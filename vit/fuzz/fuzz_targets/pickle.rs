//! A PyTorch file of any bytes is read or refused: no panic, no hang, no memory far beyond its size.
//!
//! Bytes that are neither a zip archive nor the layout before PyTorch 1.6 are taken for the pickle of an archive, so that
//! the fuzzer need not learn to keep an archive whole.
#![no_main]

use std::io::{Cursor, Write};
use std::sync::LazyLock;

use zip::write::{SimpleFileOptions, ZipWriter};

mod read;

static FILE: LazyLock<tempfile::TempPath> = LazyLock::new(|| {
    let file = tempfile::Builder::new().suffix(".pth").tempfile();
    file.unwrap().into_temp_path()
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02\x8a\x0a");
    match whole {
        true => std::fs::write(&*FILE, bytes).unwrap(),
        false => std::fs::write(&*FILE, archive(bytes)).unwrap(),
    }
    read::read(&FILE);
});

/// An archive of this pickle and one storage of 4096 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("m/data.pkl", pickle), ("m/data/0", &[0; 4096])] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

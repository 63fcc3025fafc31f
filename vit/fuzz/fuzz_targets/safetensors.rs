//! A safetensors file of any bytes is read or refused: no panic, no hang, no memory beyond its size.
#![no_main]

use std::sync::LazyLock;

mod read;

static FILE: LazyLock<tempfile::TempPath> = LazyLock::new(|| {
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile();
    file.unwrap().into_temp_path()
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&*FILE, bytes).unwrap();
    read::read(&FILE);
});

//! A tar shard of any bytes is listed or refused: no panic, no hang, no memory beyond its size.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = datasets::fuzz::webdataset(bytes);
});

//! A MATLAB file of any bytes (the devkit's meta.mat) is read or refused: no panic, no memory beyond its size unpacked.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = datasets::fuzz::mat(bytes);
});

//! A CIFAR archive of any bytes, packed or not, is read or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = datasets::fuzz::cifar(bytes);
});

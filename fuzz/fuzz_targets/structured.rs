//! See `targets::structured`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::structured(data));

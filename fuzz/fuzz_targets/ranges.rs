//! See `targets::ranges`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::ranges(data));

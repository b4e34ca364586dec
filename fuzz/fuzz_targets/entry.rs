//! See `targets::entry`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::entry(data));

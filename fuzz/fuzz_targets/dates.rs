//! See `targets::dates`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::dates(data));

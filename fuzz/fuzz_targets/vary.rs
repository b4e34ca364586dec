//! See `targets::vary`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::vary(data));

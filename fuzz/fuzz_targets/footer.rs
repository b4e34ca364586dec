//! See `targets::footer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::footer(data));

//! See `targets::directives`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::directives(data));

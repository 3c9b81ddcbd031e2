//! Views as they come to a proxy.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_fuzz::policies::compile_views(bytes));

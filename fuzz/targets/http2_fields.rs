//! Compressed header blocks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_proxy::strangers::http2_fields(bytes));

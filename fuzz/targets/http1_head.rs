//! Heads of HTTP/1.1.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_proxy::strangers::http1_head(bytes));

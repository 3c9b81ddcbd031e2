//! Frames of HTTP/2.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_proxy::strangers::http2_frames(bytes));

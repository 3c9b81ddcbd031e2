//! The one normal form of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_fuzz::traffic::normal_form(bytes));

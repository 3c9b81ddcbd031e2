//! Tokens that nobody signed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_fuzz::traffic::token(bytes));

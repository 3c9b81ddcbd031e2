//! Key sets of issuers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_fuzz::policies::key_set(bytes));

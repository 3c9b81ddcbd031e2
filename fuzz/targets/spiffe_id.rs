//! Identities.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_fuzz::policies::spiffe_id(bytes));

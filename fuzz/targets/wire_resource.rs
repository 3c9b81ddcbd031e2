//! Resources in those messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_fuzz::wire::wire_resource(bytes));

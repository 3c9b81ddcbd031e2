//! Messages between proxy and control plane.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_fuzz::wire::wire_message(bytes));

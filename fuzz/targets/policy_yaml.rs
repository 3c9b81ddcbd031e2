//! Policy as people write it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| equerry_fuzz::policies::policy_yaml(bytes));

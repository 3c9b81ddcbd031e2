//! How each command ends is a promise to scripts: the table in the command line's README, every cell of it tried.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use equerry::demo::process::{Said, run_to_end};
use equerry_tests::{Mesh, refuser, run};
use rustix::process::Signal;

use crate::{PAIR, program};

/// Commands that ask no control plane.
const OFFLINE: [&str; 7] = ["validate", "explain", "test", "completion", "context add", "context list", "context use"];
/// Programs of their own, with promises of their own.
const OTHERS: [&str; 5] = ["demo", "demo-app", "proxy", "control-plane", "help"];

/// Every command that does something, as `--help` tells them.
pub(super) async fn commands() -> Result<Vec<(String, String)>> {
    let (mut found, mut open) = (Vec::new(), vec![String::new()]);
    while let Some(command) = open.pop() {
        let words: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let help = run(program(), &words, Duration::from_secs(20)).await?.succeeded()?.out;
        // `certs` shows, and has commands below it.
        let below = help.split_once("\nCommands:\n").map(|(_, rest)| rest.split("\n\n").next().unwrap_or_default());
        if !command.is_empty() && help.lines().any(|line| line.starts_with("Usage:") && !line.contains(" <COMMAND>")) {
            found.push((command.clone(), help.clone()));
        }
        let words =
            below.into_iter().flat_map(str::lines).filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let words = words.filter_map(|line| line.split_whitespace().next()).filter(|word| !OTHERS.contains(word));
        open.extend(words.map(|word| format!("{command} {word}").trim().to_owned()));
    }
    found.sort();
    Ok(found)
}

/// What the README says: each command with the codes it may end with.
fn promised() -> Result<BTreeSet<(String, i32)>> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/cli/README.md");
    let readme = std::fs::read_to_string(readme)?;
    let (_, table) = readme.split_once("| command | ends with |\n|---|---|\n").context("no table of exit codes")?;
    let mut promised = BTreeSet::new();
    for row in table.lines().take_while(|line| line.starts_with("| `")) {
        let [_, names, codes, _] = row.split('|').collect::<Vec<_>>()[..] else { bail!("no row of two cells: {row}") };
        for name in names.split(',').map(|name| name.trim().trim_matches('`').to_owned()) {
            for piece in codes.split(';') {
                let code: String = piece.trim().chars().take_while(char::is_ascii_digit).collect();
                promised.insert((name.clone(), code.parse().with_context(|| row.to_owned())?));
            }
        }
    }
    Ok(promised)
}

/// Runs commands, and remembers how each ended.
struct Tries<'a> {
    mesh: &'a Mesh,
    config: OsString,
    seen: BTreeSet<(String, i32)>,
}

impl Tries<'_> {
    async fn equerry(&self, words: &[&str]) -> Result<Said> {
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        let mut settings = self.mesh.town.settings();
        settings.retain(|(name, _)| *name != "EQUERRY_CONFIG");
        settings.push(("EQUERRY_CONFIG", self.config.clone()));
        run_to_end(program(), &args, &settings, Duration::from_secs(60)).await
    }

    /// `command` with `more` ends with this code.
    async fn ends(&mut self, code: i32, command: &str, more: &[&str]) -> Result<Said> {
        let words: Vec<&str> = command.split_whitespace().chain(more.iter().copied()).collect();
        let said = self.equerry(&words).await?;
        ensure!(said.code == Some(code), "{words:?} ended with {:?}, not {code}: {}", said.code, said.everything());
        ensure!(code == 0 || !said.everything().is_empty() || command == "diff", "{words:?} says nothing");
        self.seen.insert((command.to_owned(), code));
        Ok(said)
    }
}

/// The least with which each command does something.
fn least(command: &str, file: &str, ca: &str) -> Vec<String> {
    let words: &[&str] = match command {
        "apply" | "diff" | "validate" | "test" => &["-f", file],
        "get" => &["services"],
        "describe" => &["service", "inventory", "-n", "shop"],
        "delete" => &["service", "nobody", "-n", "shop"],
        "explain" => &["http://inventory/", "--from", "shop/orders", "--policies", file],
        "certs revoke" | "certs restore" => &["shop/nobody"],
        "token create join" => &["-n", "shop", "-a", "orders"],
        "token revoke" => &["nobody"],
        "tap" => &["--recent"],
        "top" => &["--once"],
        "completion" => &["bash"],
        "context add" => &["https://127.0.0.1:1", "--ca", ca],
        "context use" => &["127.0.0.1"],
        _ => &[],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn every_command_ends_with_the_codes_that_its_readme_promises() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.json");
    let mut tries = Tries { mesh: &mesh, config: config.clone().into(), seen: BTreeSet::new() };
    of_all(&mut tries, folder.path()).await?;
    of_documents(&mut tries).await?;
    of_questions(&mut tries).await?;
    of_tokens_and_logs(&mut tries, folder.path()).await?;
    of_proof(&mut tries).await?;
    of_trust(&mut tries).await?;

    let known: BTreeSet<String> = commands().await?.into_iter().map(|(command, _)| command).collect();
    let promised = promised()?;
    let written: BTreeSet<String> = promised.iter().map(|(command, _)| command.clone()).collect();
    ensure!(written == known, "not both in the README and in --help: {:?}", written.symmetric_difference(&known));
    let differ: Vec<_> = promised.symmetric_difference(&tries.seen).collect();
    ensure!(differ.is_empty(), "promised and not tried, or the other way round: {differ:?}");
    Ok(())
}

/// 2 for a wrong line of each command; and of those that ask a control plane 2 without one, 6 where none answers, and 1 where it
/// lets nobody in.
async fn of_all(tries: &mut Tries<'_>, folder: &Path) -> Result<()> {
    let state = tries.mesh.town.control_plane_state();
    let (ca, file) = (state.join("ca.pem").display().to_string(), tries.mesh.town.policies().display().to_string());
    let stranger = folder.join("stranger.token");
    equerry::demo::town::write_secret(&stranger, "eqa1.nobody.nothing")?;
    let stranger = stranger.display().to_string();
    for (command, _) in commands().await? {
        let least = least(&command, &file, &ca);
        let least: Vec<&str> = least.iter().map(String::as_str).collect();
        let with = |more: &[&'static str]| [&least[..], more].concat();
        tries.ends(2, &command, &with(&["--no-such-flag"])).await?;
        if OFFLINE.contains(&command.as_str()) {
            tries.ends(0, &command, &least).await?;
            continue;
        }
        let words: Vec<OsString> =
            command.split_whitespace().chain(least.iter().copied()).map(OsString::from).collect();
        let nowhere = [("EQUERRY_CONFIG", folder.join("nothing.json").into_os_string())];
        let nowhere = run_to_end(program(), &words, &nowhere, Duration::from_secs(20)).await?;
        let alone = if command == "version" { 0 } else { 2 };
        ensure!(nowhere.code == Some(alone), "{command} without a control plane: {:?}", nowhere.code);
        tries.ends(6, &command, &with(&["--server", "https://127.0.0.1:1"])).await?;
        // Of `diff` 1 says that something would change.
        let refused = if command == "diff" { 2 } else { 1 };
        tries.ends(refused, &command, &[&least[..], &["--token-file", &stranger]].concat()).await?;
    }
    Ok(())
}

async fn of_documents(tries: &mut Tries<'_>) -> Result<()> {
    let town = &tries.mesh.town;
    let (all, even) = (town.policies().display().to_string(), town.story("even-split.yaml").display().to_string());
    let wrong = tries.mesh.file("wrong.yaml", "kind: Servce\n")?.display().to_string();
    for command in ["apply", "validate", "test"] {
        tries.ends(1, command, &["-f", &wrong]).await?;
    }
    tries.ends(2, "diff", &["-f", &wrong]).await?;
    tries.ends(0, "diff", &["-f", &all]).await?;
    tries.ends(1, "diff", &["-f", &even]).await?;
    tries.ends(0, "apply", &["-f", &all, "--wait"]).await?;
    tries.ends(0, "get", &["httproutes", "-n", "nowhere"]).await?;
    for command in ["get", "describe", "delete"] {
        tries.ends(1, command, &["service", "nobody", "-n", "shop"]).await?;
    }
    tries.ends(1, "delete", &["service", "inventory", "-n", "shop"]).await?;
    tries.ends(0, "describe", &["service", "inventory", "-n", "shop"]).await?;
    tries.ends(0, "delete", &["service", "nobody", "-n", "shop", "--ignore-not-found"]).await?;
    tries.ends(2, "get", &["gizmos"]).await?;
    Ok(())
}

async fn of_questions(tries: &mut Tries<'_>) -> Result<()> {
    let all = tries.mesh.town.policies().display().to_string();
    tries.ends(5, "explain", &["http://nobody/", "--from", "shop/orders", "--policies", &all]).await?;
    let wrong = tries.mesh.file("wrong.yaml", "kind: Servce\n")?.display().to_string();
    tries.ends(1, "explain", &["http://nobody/", "--from", "shop/orders", "--policies", &wrong]).await?;
    tries.ends(0, "status", &[]).await?;
    tries.ends(0, "version", &[]).await?;
    tries.ends(0, "quota", &[]).await?;
    tries.ends(1, "quota", &["nobody"]).await?;
    tries.ends(0, "top", &["--once"]).await?;
    tries.ends(0, "tap", &["--recent"]).await?;
    tries.ends(1, "tap", &["--recent", "--status", "abc"]).await?;
    tries.ends(2, "context use", &["nobody"]).await?;
    Ok(())
}

async fn of_tokens_and_logs(tries: &mut Tries<'_>, folder: &Path) -> Result<()> {
    let made = tries.ends(0, "token create join", &["-n", "shop", "-a", "orders"]).await?.out;
    tries.ends(0, "token create admin", &["--role", "viewer"]).await?;
    tries.ends(0, "token list", &[]).await?;
    tries.ends(0, "token revoke", &[made.split('.').nth(1).context("a token has an id")?]).await?;
    tries.ends(1, "token revoke", &["nobody"]).await?;

    tries.ends(0, "audit list", &[]).await?;
    tries.ends(0, "audit verify", &[]).await?;
    let copy = tries.ends(0, "audit export", &[]).await?.out;
    let edited = folder.join("edited.jsonl");
    std::fs::write(&edited, copy.replace("\"done\"", "\"DONE\""))?;
    tries.ends(1, "audit verify", &["-f", &edited.display().to_string()]).await?;
    tries.ends(6, "audit export", &["--to", "127.0.0.1:1"]).await?;
    Ok(())
}

/// A proxy that sleeps, and one that refuses.
async fn of_proof(tries: &mut Tries<'_>) -> Result<()> {
    let (mesh, town) = (tries.mesh, &tries.mesh.town);
    let (even, all) = (town.story("even-split.yaml").display().to_string(), town.policies().display().to_string());
    let orders = town.home("orders")?;
    town.signal_sidecar(orders, Signal::STOP).await;
    let late = tries.ends(3, "apply", &["-f", &even, "--wait", "--timeout", "1s"]).await;
    town.signal_sidecar(orders, Signal::CONT).await;
    late?;
    let refusing = refuser::start(mesh).await?;
    tries.ends(4, "apply", &["-f", &all, "--wait"]).await?;
    drop(refusing);
    Ok(())
}

/// Certificates, last: a proxy that sleeps holds up whoever waits for it.
async fn of_trust(tries: &mut Tries<'_>) -> Result<()> {
    tries.ends(0, "certs", &[]).await?;
    tries.ends(1, "certs", &["--expiring", "100000d"]).await?;
    tries.ends(0, "certs revoke", &["shop/nobody"]).await?;
    tries.ends(0, "certs revocations", &[]).await?;
    tries.ends(0, "certs restore", &["shop/nobody"]).await?;
    tries.ends(1, "certs restore", &["shop/nobody"]).await?;
    tries.ends(1, "certs revoke", &["nobody at all"]).await?;
    tries.ends(0, "certs rotate status", &[]).await?;
    tries.ends(1, "certs rotate cancel", &[]).await?;
    tries.ends(1, "certs rotate advance", &[]).await?;

    let orders = tries.mesh.town.home("orders")?;
    tries.mesh.town.signal_sidecar(orders, Signal::STOP).await;
    let soon = ["--wait", "--timeout", "1s"];
    tries.ends(3, "certs revoke", &[&["shop/nobody"][..], &soon].concat()).await?;
    tries.ends(3, "certs restore", &[&["shop/nobody"][..], &soon].concat()).await?;
    tries.ends(3, "certs rotate start", &soon).await?;
    tries.ends(3, "certs rotate advance", &soon).await?;
    tries.ends(1, "certs rotate start", &[]).await?;
    tries.ends(0, "certs rotate cancel", &[]).await?;
    tries.mesh.town.signal_sidecar(orders, Signal::CONT).await;

    tries.ends(0, "certs rotate start", &["--wait"]).await?;
    tries.ends(0, "certs rotate advance", &[]).await?;
    Ok(())
}

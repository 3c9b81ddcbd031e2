//! The command line shows a living mesh: what has to do with a service, who calls it, which call failed and why; as text without
//! escape sequences where nobody asked for colour, and as JSON for programs.

mod contexts;
mod exits;
mod fields;
mod screen;

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry_tests::{Mesh, eventually, refuser, run};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::{PAIR, program};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_person_finds_out_who_calls_what_and_why_a_call_failed() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let town = &mesh.town;
    let orders = town.home("orders")?;
    for version in ["inventory-v1", "inventory-v2"] {
        town.home(version)?.fail(1.0, None).await?;
    }
    let failed = orders.through_sidecar().get("inventory", "/broken", &[]).await?;
    ensure!(failed.status >= 500, "{}", failed.shown());

    // The caller's side of it and the callee's, with the failure on them.
    let top = eventually(SOON, "the call to be on the map", async || {
        let shown = town.equerry(&["top", "--once"]).await?.succeeded()?.out;
        let told = shown.lines().any(|line| line.starts_with("shop/orders") && line.contains("503"));
        ensure!(told, "{shown}");
        Ok(Some(shown))
    })
    .await?;
    ensure!(top.contains("FAILED/S") && !top.contains('\u{1b}'), "{top}");

    let tapped = town.equerry(&["tap", "--recent", "--failed", "--path", "/broken"]).await?.succeeded()?;
    ensure!(tapped.out.contains("shop/orders -> shop/inventory  GET /broken"), "{}", tapped.out);
    ensure!(tapped.err.contains(" calls"), "no legend: {}", tapped.err);
    let json = town.equerry(&["tap", "--recent", "--path", "/broken", "-o", "json"]).await?.succeeded()?.out;
    let json: Value = serde_json::from_str(&json).context("tap -o json")?;
    ensure!(json["items"][0]["path"] == "/broken", "{json}");

    // Each side tells of its calls in its own time.
    eventually(SOON, "the Service to be described with its caller", async || {
        let told = town.equerry(&["describe", "service", "inventory", "-n", "shop"]).await?.succeeded()?.out;
        for part in ["Healthy:         2 of 2", "connected", "Called by", "shop/orders"] {
            ensure!(told.contains(part), "{part} is not in\n{told}");
        }
        Ok(Some(()))
    })
    .await?;
    let proxy = town.equerry(&["describe", "proxy", "orders", "-n", "shop"]).await?.succeeded()?.out;
    ensure!(proxy.contains("State:           in step") && proxy.contains("Certificate:     until 20"), "{proxy}");
    let wide =
        town.equerry(&["get", "instances", "-n", "shop", "-l", "app=inventory", "-o", "wide"]).await?.succeeded()?.out;
    ensure!(wide.lines().count() == 3 && wide.contains("shop/inventory"), "{wide}");

    // What stands is no difference to itself.
    let stored = town.equerry(&["get", "all", "-A", "-o", "yaml"]).await?.succeeded()?.out;
    let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    std::fs::write(file.path(), stored)?;
    let path = file.path().to_str().context("a path")?;
    let same = town.equerry(&["diff", "-f", path]).await?;
    ensure!(same.code == Some(0) && same.out.is_empty(), "{:?} {} {}", same.code, same.out, same.err);
    Ok(())
}

#[tokio::test]
async fn the_status_says_of_each_sidecar_that_is_out_of_step_why() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let town = &mesh.town;
    let status = async || Ok::<_, anyhow::Error>(town.equerry(&["status"]).await?.succeeded()?.out);
    eventually(SOON, "all to be in step", async || {
        Ok(status().await?.contains("3 of 3 proxies connected, 3 in step").then_some(()))
    })
    .await?;

    let (sleeps, dies) = (town.home("orders")?, town.home("inventory-v2")?);
    let refusing = refuser::start(&mesh).await?;
    let before = mesh.epoch().await?;
    town.signal_sidecar(sleeps, Signal::STOP).await;
    town.signal_sidecar(dies, Signal::KILL).await;
    town.equerry(&["apply", "-f", &town.story("even-split.yaml").display().to_string()]).await?.succeeded()?;
    let reasons = [
        ("shop/orders-of-next-year: it refused a part of epoch", "a field of last year"),
        ("shop/orders: it has acknowledged epoch", &format!(" {before} and not yet {}", before + 1)),
        ("shop/inventory-v2: it holds a lease and has no config stream", "cut off from port 15012"),
    ];
    eventually(SOON, "the status to give three reasons", async || {
        let shown = status().await?;
        let (_, shown) = shown.split_once("\nAmiss\n").context("nothing is amiss")?;
        for (who, why) in reasons {
            ensure!(shown.lines().any(|line| line.starts_with(who) && line.contains(why)), "no {who} {why}:\n{shown}");
        }
        Ok(Some(()))
    })
    .await?;
    let json = mesh.status().await?;
    ensure!(json["amiss"].as_array().is_some_and(|lines| lines.len() >= reasons.len()), "{json}");
    town.signal_sidecar(sleeps, Signal::CONT).await;
    drop(refusing);
    Ok(())
}

/// A command that goes on until it is dropped, and what it prints, line by line.
struct Printing {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Printing {
    fn start(mesh: &Mesh, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program());
        command
            .args(args)
            .envs(mesh.town.settings())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let out = child.stdout.take().context("no output")?;
        Ok(Self { _child: child, lines: BufReader::new(out).lines() })
    }

    /// The next line whose cells, without the room between them, begin so.
    async fn prints(&mut self, cells: &[&str]) -> Result<()> {
        let wanted = cells.join(" ");
        let mut passed = Vec::new();
        while let Ok(line) = tokio::time::timeout(SOON, self.lines.next_line()).await {
            let line = line?.with_context(|| format!("it ended without {wanted:?}: {passed:?}"))?;
            ensure!(!line.contains('\u{1b}'), "escape sequences through a pipe: {line:?}");
            if line.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(&wanted) {
                return Ok(());
            }
            passed.push(line);
        }
        anyhow::bail!("{wanted:?} is not printed: {passed:?}")
    }
}

/// Two routes of one Service, the second of which a test changes.
fn routes(weight: u32) -> String {
    let route = |name: &str, weight| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  parentRefs: [{{kind: \
             Service, group: '', name: basket}}]\n  rules: [{{backendRefs: [{{name: basket, port: 80, weight: {weight}}}]}}]\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: basket, namespace: shop, annotations: {equerry.dev/accounts: basket}}\nspec: {selector: {app: basket}, ports: [{port: 80}]}\n";
    format!("{service}---\n{}---\n{}", route("first", 1), route("second", weight))
}

#[tokio::test]
async fn a_watch_prints_what_is_there_and_then_each_change_as_it_happens() -> Result<()> {
    let mesh = Mesh::plan(program(), &[]).await?;
    mesh.town.start_control_plane(&[]).await?;
    mesh.apply(&routes(1)).await?;
    let mut table = Printing::start(&mesh, &["get", "httproutes", "-n", "shop", "-w"])?;
    let mut json = Printing::start(&mesh, &["get", "httproutes", "-n", "shop", "-w", "-o", "json"])?;
    table.prints(&["EVENT", "NAMESPACE", "NAME", "DETAILS"]).await?;
    table.prints(&["added", "shop", "first", "basket", "->", "basket:1"]).await?;
    table.prints(&["added", "shop", "second", "basket", "->", "basket:1"]).await?;
    json.prints(&[r#"{"event":"added","key":"HTTPRoute shop/second","object":{"#]).await?;

    mesh.apply(&routes(7)).await?;
    table.prints(&["changed", "shop", "second", "basket", "->", "basket:7"]).await?;
    json.prints(&[r#"{"event":"changed","key":"HTTPRoute shop/second","object":{"#]).await?;
    // What was printed once is not printed again when the control plane comes back.
    mesh.town.kill_control_plane().await;
    mesh.town.start_control_plane(&[]).await?;
    mesh.town.equerry(&["delete", "httproute", "first", "-n", "shop"]).await?.succeeded()?;
    let line = tokio::time::timeout(SOON, table.lines.next_line()).await.context("nothing is printed")??;
    let line = line.context("the watch ended")?;
    ensure!(line.starts_with("deleted") && line.contains("first"), "{line}");
    json.prints(&[r#"{"event":"deleted","key":"HTTPRoute shop/first""#]).await?;

    let epochs = mesh.town.equerry(&["get", "epochs", "-w"]).await?;
    ensure!(epochs.code == Some(2) && epochs.err.contains("cannot be watched"), "{}", epochs.everything());
    Ok(())
}

/// Sources the script in a real bash, which then completes a line.
#[tokio::test]
async fn bash_completes_commands_flags_and_their_values() -> Result<()> {
    let script = r#"source <("$0" completion bash) && complete -p equerry >&2
        COMP_WORDS=(equerry "$@"); COMP_CWORD=$#
        _equerry equerry "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let program = program().display().to_string();
    for (line, wanted) in [
        (&["sta"][..], &["status"][..]),
        (&["certs", "ro"], &["rotate"]),
        (&["get", "services", "--all"], &["--all-namespaces"]),
        (&["top", "-o", "w"], &["wide"]),
        (&["top", "--sort", "p"], &["p99"]),
        (&["completion", ""], &["bash", "zsh", "fish"]),
    ] {
        let args = [&["-c", script, &program][..], line].concat();
        let said = run(std::path::Path::new("bash"), &args, SOON).await?.succeeded()?;
        ensure!(said.err.contains("equerry"), "it is registered for no command: {}", said.err);
        let offered: Vec<&str> = said.out.split_whitespace().collect();
        ensure!(wanted.iter().all(|word| offered.contains(word)), "{line:?} is completed to {offered:?}");
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = run(crate::program(), &["completion", shell], SOON).await?.succeeded()?.out;
        ensure!(script.contains("equerry") && script.contains("revocations"), "{shell}: {} bytes", script.len());
    }
    Ok(())
}

//! What programs read: the fields that `-o json` of every command prints, with their types. They come, and none goes.
//!
//! `control-plane/cli/fields.txt` holds them, one a line; a `?` after one says that it is not always there. `EQUERRY_BLESS=1`
//! writes down new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry::demo::process::run_to_end;
use equerry_tests::{Mesh, eventually, refuser};
use serde_json::Value;

use super::SOON;
use super::exits::commands;
use crate::{PAIR, program};

/// What somebody else wrote or named is told whole: documents, labels.
const WHOLE: [&str; 7] = ["annotations", "after", "before", "document", "labels", "selector", "spec"];

const TESTED: &str = "apiVersion: equerry.dev/v1
kind: PolicyTest
metadata: {name: basics, namespace: shop}
spec:
  cases:
  - {name: it fails, from: shop/orders, request: {url: 'http://inventory/'}, expect: {decision: DENY, reason: quota}}
";

/// Hardly meant: a route that leads to nothing.
const WARNED: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: warned, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: inventory}]
  rules: [{matches: [{path: {type: PathPrefix, value: /warned}}], backendRefs: [{name: nowhere, port: 80}]}]
";

/// Every field of a value, with its type.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    let whole = path.rsplit(['.', ' ']).next().is_some_and(|key| WHOLE.contains(&key));
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(items) => {
            items.iter().for_each(|item| fields(item, &format!("{path}[]"), found));
            "array"
        }
        Value::Object(_) if whole => "object",
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| fields(value, &format!("{path}.{key}"), found));
            return;
        }
    };
    found.insert(format!("{path}: {kind}"));
}

/// The lines of what is known, and whether each is always there.
fn known(text: &str) -> BTreeMap<String, bool> {
    let line = |line: &str| match line.strip_suffix('?') {
        Some(sometimes) => (sometimes.to_owned(), false),
        None => (line.to_owned(), true),
    };
    text.lines().map(line).collect()
}

/// One run of every command that prints JSON, in a mesh where everything that can be told is there to be told.
async fn told(mesh: &Mesh) -> Result<BTreeSet<String>> {
    let town = &mesh.town;
    let file = |name: &str, text: &str| Ok::<_, anyhow::Error>(mesh.file(name, text)?.display().to_string());
    let (all, even) = (town.policies().display().to_string(), town.story("even-split.yaml").display().to_string());
    let (wrong, warned, tested) =
        (file("wrong.yaml", "kind: Servce\n")?, file("warned.yaml", WARNED)?, file("tested.yaml", TESTED)?);
    let edited = file("edited.yaml", &format!("{}---\n{WARNED}", std::fs::read_to_string(&even)?))?;
    let explain = ["--from", "shop/orders", "--policies", &all];
    let runs: [(&str, &[&str], i32); 30] = [
        ("validate", &["-f", &all, "-f", &warned], 0),
        ("validate", &["-f", &wrong], 1),
        ("diff", &["-f", &edited], 1),
        ("apply", &["-f", &edited, "--dry-run"], 0),
        // Somebody refuses it, and says why.
        ("apply", &["-f", &warned, "--wait"], 4),
        ("apply", &["-f", &wrong], 1),
        ("get", &["all", "-A"], 0),
        ("get", &["services", "-n", "shop"], 0),
        ("get", &["instances", "-n", "shop"], 0),
        ("get", &["proxies"], 0),
        ("get", &["epochs"], 0),
        ("describe", &["service", "inventory", "-n", "shop"], 0),
        ("describe", &["instance", "orders", "-n", "shop"], 0),
        ("describe", &["proxy", "orders", "-n", "shop"], 0),
        ("describe", &["httproute", "warned", "-n", "shop"], 0),
        ("explain", &[&["http://inventory/"][..], &explain].concat(), 0),
        ("explain", &[&["http://nobody/"][..], &explain].concat(), 5),
        ("test", &["-f", &all, "-f", &tested], 1),
        ("quota", &[], 0),
        ("top", &[], 0),
        ("tap", &["--recent", "--failed"], 0),
        ("token create join", &["-n", "shop", "-a", "orders"], 0),
        ("token list", &[], 0),
        ("token list", &["--admin"], 0),
        ("certs", &[], 0),
        ("certs revoke", &["shop/nobody"], 0),
        ("certs revocations", &[], 0),
        ("certs rotate status", &[], 0),
        ("audit list", &[], 0),
        ("status", &[], 0),
    ];
    let printing: BTreeSet<String> = printing().await?;
    let mut found = BTreeSet::new();
    let mut tried = BTreeSet::from(["context list".to_owned()]);
    for (command, more, code) in runs {
        let json: &[&str] = if printing.contains(command) { &["-o", "json"] } else { &[] };
        let words: Vec<&str> =
            command.split_whitespace().chain(more.iter().copied()).chain(json.iter().copied()).collect();
        let said = town.equerry(&words).await?;
        ensure!(said.code == Some(code), "{words:?} ended with {:?}: {}", said.code, said.everything());
        if json.is_empty() {
            continue;
        }
        let value = serde_json::from_str(&said.out).with_context(|| format!("{words:?} printed {}", said.out))?;
        let what = more.first().filter(|_| matches!(command, "get" | "describe")).map_or("", |what| what);
        // Mistakes are another answer than what was asked for.
        let what = if code == 1 && matches!(command, "validate" | "apply") { "mistakes" } else { what };
        fields(&value, format!("{command} {what}").trim_end(), &mut found);
        tried.insert(command.to_owned());
    }
    ensure!(
        tried == printing,
        "commands that print JSON and were not tried: {:?}",
        printing.symmetric_difference(&tried)
    );
    Ok(found)
}

/// Contexts are no control plane's: they are in a file.
async fn contexts(mesh: &Mesh) -> Result<Value> {
    let ca = mesh.town.control_plane_state().join("ca.pem").display().to_string();
    let config = mesh.file("config.json", "{}")?;
    let equerry = async |line: &[&str]| -> Result<String> {
        let args: Vec<_> = line.iter().map(std::ffi::OsString::from).collect();
        let settings = [("EQUERRY_CONFIG", config.clone().into_os_string())];
        Ok(run_to_end(program(), &args, &settings, SOON).await?.succeeded()?.out)
    };
    equerry(&["context", "add", "https://127.0.0.1:1", "--ca", &ca, "--token-file", &ca]).await?;
    Ok(serde_json::from_str(&equerry(&["context", "list", "-o", "json"]).await?)?)
}

/// Commands that take `-o`.
async fn printing() -> Result<BTreeSet<String>> {
    let all = commands().await?.into_iter().filter(|(_, help)| help.contains("--output <FORMAT>"));
    Ok(all.map(|(command, _)| command).collect())
}

#[tokio::test]
async fn what_programs_read_of_every_command_stays_what_it_was() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let (orders, failing) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    failing.fail(1.0, None).await?;
    let bearer = mesh.bearer()?;
    let call = async || orders.through_sidecar().get("inventory", "/", &[("authorization", &bearer)]).await;
    eventually(SOON, "calls on the map, as both sides saw them", async || {
        call().await?;
        orders.through_sidecar().get("inventory", "/refused", &[("authorization", "Bearer x")]).await?;
        let json = mesh.town.equerry(&["top", "-o", "json"]).await?.succeeded()?.out;
        let map: Value = serde_json::from_str(&json)?;
        let edges = map["items"].as_array().context("no edges")?;
        // Callees know the version that was called, callers the Service they named.
        let seen = |side: &str| edges.iter().any(|edge| edge[side]["p99Ms"].is_number());
        ensure!(seen("caller") && seen("callee"), "{map}");
        Ok(Some(()))
    })
    .await?;
    // Somebody who refuses what is applied.
    let refusing = refuser::start(&mesh).await?;
    let mut found = told(&mesh).await?;
    drop(refusing);

    let tap = ["tap", "--count", "1", "-o", "json", "--source", "shop/orders"];
    let calls = async {
        let mut every = tokio::time::interval(Duration::from_millis(100));
        loop {
            every.tick().await;
            call().await?;
        }
    };
    let line = tokio::select! {
        line = mesh.town.equerry(&tap) => line?.succeeded()?.out,
        ended = calls => return ended,
    };
    fields(&serde_json::from_str(&line).with_context(|| line.clone())?, "tap live", &mut found);
    fields(&contexts(&mesh).await?, "context list", &mut found);
    compared(&found)
}

/// Nothing is gone, nothing came that is not written down.
fn compared(found: &BTreeSet<String>) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/cli/fields.txt");
    let before = known(&std::fs::read_to_string(&file).unwrap_or_default());
    if std::env::var_os("EQUERRY_BLESS").is_some() {
        let mut all: BTreeMap<&String, bool> =
            before.iter().map(|(line, always)| (line, *always && found.contains(line))).collect();
        for line in found {
            // Whether it is always there, somebody must say who knows.
            all.entry(line).or_insert(before.is_empty());
        }
        let text: String =
            all.iter().map(|(line, always)| format!("{line}{}\n", if *always { "" } else { "?" })).collect();
        return std::fs::write(&file, text).context("writing down the fields");
    }
    let gone: Vec<_> =
        before.iter().filter(|(line, always)| **always && !found.contains(*line)).map(|(line, _)| line).collect();
    ensure!(gone.is_empty(), "gone, or of another type: {gone:?}");
    let new: Vec<_> = found.iter().filter(|line| !before.contains_key(*line)).collect();
    ensure!(new.is_empty(), "new; write them down with EQUERRY_BLESS=1: {new:?}");
    Ok(())
}

//! The house's own rules, kept by machine: who may import whom, what a pure crate may depend on, how a file opens.
//!
//! Each failure names the place, the rule and its reason, so that whoever trips over one knows what to do.

#![allow(clippy::unwrap_used, reason = "a file of the house that cannot be read is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// The crates and the floor each stands on (README, "The floors").
const FLOORS: [(&str, u8); 8] = [
    ("equerry-policies", 0),
    ("equerry-traffic", 1),
    ("equerry-wire", 1),
    ("equerry-certs", 1),
    ("equerry-proxy", 2),
    ("equerry-control-plane", 2),
    ("equerry", 3),
    ("equerry-tests", 3),
];

/// What a crate of floor 0 or 1 must not need: sockets, runtimes, stores and randomness of its own.
const IMPURE: [&str; 13] = [
    "tokio",
    "hyper",
    "hyper-util",
    "tonic",
    "axum",
    "rusqlite",
    "socket2",
    "rustls",
    "tokio-rustls",
    "tower",
    "rand",
    "tracing-subscriber",
    "clap",
];

/// Inside the proxy: a folder, the folders it must know nothing of, and why.
const PROXY_WALLS: [(&str, &[&str], &str); 4] = [
    (
        "accept",
        &["exchange", "upstream", "inbound", "outbound", "app"],
        "a connection is accepted before anybody knows what it will ask",
    ),
    (
        "upstream",
        &["exchange", "accept", "inbound", "outbound", "app"],
        "a pool carries requests; what they mean is decided elsewhere",
    ),
    (
        "live",
        &["exchange", "accept", "upstream", "inbound", "outbound", "app", "admin"],
        "configuration is handed out and reads nothing back",
    ),
    (
        "observe",
        &["exchange", "accept", "upstream", "inbound", "outbound", "app", "admin", "live"],
        "observation is told, it never asks",
    ),
];

/// Files that may allow unsafe code, each with the system call that needs it.
const UNSAFE_ALLOWED: [&str; 0] = [];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".into()])
        .exec()
        .unwrap()
}

fn floors() -> BTreeMap<&'static str, u8> {
    FLOORS.into_iter().collect()
}

/// Every file below `dir` whose name ends in `ending`, build results and version control left out.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    left.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The lines of code of a file, with their numbers; comments are left out.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn assert_none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

#[test]
fn crates_import_only_downwards() {
    let floors = floors();
    let mut broken = Vec::new();
    for package in metadata().packages {
        let Some(&own) = floors.get(package.name.as_str()) else {
            broken.push(format!(
                "{}: a crate the house does not know; give it a floor in this test and in the README",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            let Some(&its) = floors.get(dependency.name.as_str()) else { continue };
            let proving = package.name.as_str() == "equerry-tests" && dependency.name == "equerry";
            if its >= own && !proving {
                broken.push(format!("{} (floor {own}) imports {} (floor {its})", package.name, dependency.name));
            }
        }
    }
    assert_none(
        &broken,
        "a crate imports only from floors below its own, so that the compiler keeps decisions apart from sockets:",
    );
}

#[test]
fn pure_crates_need_no_sockets_runtimes_or_stores() {
    let floors = floors();
    let mut broken = Vec::new();
    for package in metadata().packages.iter().filter(|p| floors.get(p.name.as_str()).is_some_and(|f| *f <= 1)) {
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Normal
                && !dependency.optional
                && IMPURE.contains(&dependency.name.as_str())
            {
                broken.push(format!("{} needs {}", package.name, dependency.name));
            }
        }
    }
    assert_none(&broken, "floors 0 and 1 decide and tell; what they need from outside is an argument:");
}

#[test]
fn pure_crates_ban_clocks_by_lint() {
    let mut broken = Vec::new();
    for dir in ["policies", "proxy/traffic", "certs", "control-plane/wire"] {
        let text = fs::read_to_string(root().join(dir).join("clippy.toml")).unwrap_or_default();
        for banned in ["std::time::Instant::now", "std::time::SystemTime::now"] {
            let named = text.lines().any(|line| line.contains(banned) && line.contains("reason"));
            if !named {
                broken.push(format!("{dir}/clippy.toml does not ban {banned} with a reason"));
            }
        }
    }
    assert_none(&broken, "time is an argument in a pure crate, or its tests would need to sleep:");
}

#[test]
fn inside_the_proxy_each_folder_keeps_its_walls() {
    let mut broken = Vec::new();
    for (folder, forbidden, reason) in PROXY_WALLS {
        for file in files(&root().join("proxy/src").join(folder), ".rs") {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in code(&text) {
                for other in forbidden {
                    if names_module(line, other) {
                        broken.push(format!("{}:{number} names crate::{other}: {reason}", shown(&file)));
                    }
                }
            }
        }
    }
    assert_none(&broken, "only app.rs and the two recipes see the whole proxy:");
}

/// Whether a line names `crate::MODULE`, alone or in a braced import.
fn names_module(line: &str, module: &str) -> bool {
    let is_end = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let direct = line.match_indices("crate::").any(|(at, found)| {
        let rest = &line[at + found.len()..];
        rest.strip_prefix(module).is_some_and(is_end)
    });
    let braced = line.find("crate::{").is_some_and(|at| {
        line[at + "crate::{".len()..].split([',', '{', '}']).any(|part| part.trim().split("::").next() == Some(module))
    });
    direct || braced
}

#[test]
fn every_file_opens_with_its_why() {
    let broken: Vec<String> = files(&root(), ".rs")
        .iter()
        .filter(|file| !fs::read_to_string(file).unwrap().starts_with("//!"))
        .map(|file| shown(file))
        .collect();
    assert_none(
        &broken,
        "each file opens with two or three lines of why (`//!`): what it promises, what it refuses, who calls it:",
    );
}

#[test]
fn no_drawer_is_opened() {
    let drawers = ["common", "util", "utils", "types", "helpers", "misc"];
    let broken: Vec<String> = files(&root(), ".rs")
        .iter()
        .filter(|file| file.with_extension("").iter().any(|part| drawers.iter().any(|drawer| part == *drawer)))
        .map(|file| shown(file))
        .collect();
    assert_none(&broken, "a type lives on the lowest floor that can explain it; there is no drawer for the rest:");
}

#[test]
fn unsafe_code_is_fenced() {
    let attribute = format!("allow({})", "unsafe_code");
    let broken: Vec<String> = files(&root(), ".rs")
        .iter()
        .filter(|file| {
            fs::read_to_string(file).unwrap().contains(&attribute) && !UNSAFE_ALLOWED.contains(&shown(file).as_str())
        })
        .map(|file| shown(file))
        .collect();
    assert_none(
        &broken,
        "unsafe code is forbidden but for a system call, in a file named in this test with its reason:",
    );
}

#[test]
fn every_link_in_a_document_leads_somewhere() {
    let mut broken = Vec::new();
    for file in files(&root(), ".md") {
        let text = fs::read_to_string(&file).unwrap();
        for target in links(&text) {
            let path = target.split('#').next().unwrap_or_default();
            let outside = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
            if !outside && !file.parent().unwrap_or(&file).join(path).exists() {
                broken.push(format!("{}: {target}", shown(&file)));
            }
        }
    }
    assert_none(&broken, "a document that points at a file points at one that exists:");
}

#[test]
fn every_test_that_a_document_names_as_proof_exists() {
    let security = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let tests: String = files(&root(), ".rs").iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let rows = security.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 2);
    let (mut broken, mut named) = (Vec::new(), 0);
    for row in rows {
        let proofs: Vec<&str> = row.rsplit(" | ").next().unwrap_or_default().split('`').skip(1).step_by(2).collect();
        if proofs.is_empty() && row.contains("CVE-") && !row.contains("not applicable") {
            broken.push(format!("no proof: {row}"));
        }
        for name in proofs {
            named += 1;
            if !tests.contains(&format!("fn {name}(")) {
                broken.push(format!("{name}: there is no such test"));
            }
        }
    }
    assert!(named > 50, "the table of attacks and proofs in SECURITY.md is not where this test looks: {named}");
    assert_none(&broken, "what SECURITY.md says is proved is proved by a test that exists:");
}

/// The targets of `[text](target)` outside code blocks.
fn links(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            if let Some(end) = line[at + 2..].find(')') {
                found.push(&line[at + 2..at + 2 + end]);
            }
        }
    }
    found
}

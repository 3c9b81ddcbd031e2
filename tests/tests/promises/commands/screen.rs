//! Colour is for people: only on a terminal, and never where `NO_COLOR` is set. The terminal is a real one, which `script` makes.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use equerry::demo::process::{Said, run_to_end};
use equerry_tests::{Mesh, eventually, peers};

use super::SOON;
use crate::{PAIR, program};

/// What a line of the shell prints, run in a terminal or through a pipe.
async fn prints(mesh: &Mesh, terminal: bool, no_color: &str, line: &str) -> Result<Said> {
    let mut settings = mesh.town.settings();
    // Whoever does not want it is not overruled by whoever forces it.
    let (no_color, force) = (no_color.into(), no_color.into());
    settings.extend([("TERM", "xterm-256color".into()), ("NO_COLOR", no_color), ("CLICOLOR_FORCE", force)]);
    let line = line.replace("equerry", &program().display().to_string());
    let (shell, args) = if terminal {
        (Path::new("script"), ["-q", "-c", &line, "/dev/null"].map(OsString::from).to_vec())
    } else {
        (Path::new("sh"), ["-c", &line].map(OsString::from).to_vec())
    };
    run_to_end(shell, &args, &settings, Duration::from_secs(30)).await
}

/// An escape sequence that changes how characters look.
fn coloured(text: &str) -> bool {
    text.split("\u{1b}[")
        .skip(1)
        .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

#[tokio::test]
async fn colour_is_for_terminals_and_never_where_somebody_does_not_want_it() -> Result<()> {
    if !peers::installed("script", "apt-get install bsdutils")? {
        return Ok(());
    }
    let mesh = Mesh::up(program(), &PAIR).await?;
    let orders = mesh.town.home("orders")?;
    eventually(SOON, "calls to be on the map", async || {
        let _ = orders.through_sidecar().get("inventory", "/", &[]).await?;
        Ok(mesh.town.equerry(&["top", "--once"]).await?.out.contains("shop/orders").then_some(()))
    })
    .await?;
    let file = mesh.file("wrong.yaml", "kind: Servce\n")?.display().to_string();
    let (diff, wrong) = (
        format!("equerry diff -f {}", mesh.town.story("even-split.yaml").display()),
        format!("equerry validate -f {file}"),
    );
    for line in [
        "equerry status",
        "equerry get services -A",
        "equerry --help",
        "equerry get nobody",
        "equerry certs",
        &diff,
        &wrong,
    ] {
        let there = prints(&mesh, true, "", line).await?.everything();
        ensure!(coloured(&there), "no colour on a terminal: {line}: {there:?}");
        let unwanted = prints(&mesh, true, "1", line).await?.everything();
        ensure!(!unwanted.is_empty() && !unwanted.contains('\u{1b}'), "with NO_COLOR: {line}: {unwanted:?}");
        let piped = prints(&mesh, false, "", line).await?.everything();
        ensure!(!piped.is_empty() && !piped.contains('\u{1b}'), "through a pipe: {line}: {piped:?}");
    }

    // Live: the screen is drawn anew until somebody interrupts, without colour where none is wanted. Whoever runs this may have been
    // told to ignore interrupts, as a job in a shell's background is, and children inherit that.
    let live = "env --default-signal=INT timeout --foreground -s INT 3 equerry top --every 200ms -o wide";
    for (no_color, colour) in [("", true), ("1", false)] {
        let shown = prints(&mesh, true, no_color, live).await?.everything();
        ensure!(shown.matches("\u{1b}[H\u{1b}[2J").count() > 2, "it is not drawn anew: {shown:?}");
        ensure!(shown.contains("Ctrl-C ends it") && shown.contains("BYTES OUT"), "{shown:?}");
        ensure!(coloured(&shown) == colour, "NO_COLOR={no_color:?}: {shown:?}");
    }
    Ok(())
}

//! `equerry demo` works as the README says: its whole story holds, also after its policy files were edited, and nothing of it stays behind.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry_tests::{eventually, run};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::program;

/// The story as a debug build on a busy machine may play it; a release build keeps to its own 90 s.
const WITHIN: &str = "400";
const LIMIT: Duration = Duration::from_secs(420);

#[tokio::test]
async fn every_step_of_the_story_holds() -> Result<()> {
    let _room = equerry_tests::whole_machine().await?;
    let said = run(program(), &["demo", "--check", "--within", WITHIN], LIMIT).await?.succeeded()?;
    for step in equerry::demo::check::STEPS {
        ensure!(
            said.out.lines().any(|line| line.starts_with(&format!("ok  {step} "))),
            "no line says that {step} held:\n{}",
            said.out
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_story_still_holds_after_its_policies_were_edited() -> Result<()> {
    let _room = equerry_tests::whole_machine().await?;
    let dir = tempfile::tempdir()?;
    let policies = dir.path().join("demo");
    equerry::demo::documents::Policies::built_in().write(&policies)?;
    edit(&policies.join("6-canary.yaml"), &[("weight: 90", "weight: 70"), ("weight: 10}", "weight: 30}")])?;
    edit(
        &policies.join("5-tenants.yaml"),
        &[
            ("requests: 200", "requests: 600"),
            ("window: 5s", "window: 6s"),
            ("{name: tenant, value: acme}", "{name: org.id, value: acme-inc}"),
        ],
    )?;
    edit(&policies.join("4-tokens.yaml"), &[("{claim: sub, header: x-user}", "{claim: email, header: x-mail}")])?;
    edit(&dir.path().join("demo-story").join("breaker.yaml"), &[("min: 1s", "min: 2s")])?;
    let policies = policies.display().to_string();
    let said = run(
        program(),
        &["demo", "--check", "--within", WITHIN, "--policies", &policies, "--step", "canary,jwt,breaker,quota"],
        LIMIT,
    )
    .await?;
    let said = said.succeeded()?;
    ensure!(said.out.contains("x-mail"), "the edited header is not in\n{}", said.out);
    ensure!(said.out.contains("of 600 admitted"), "the edited quota is not in\n{}", said.out);
    Ok(())
}

#[tokio::test]
async fn a_demo_that_is_interrupted_leaves_nothing_behind() -> Result<()> {
    let _room = equerry_tests::whole_machine().await?;
    let mut demo = Demo::start().await?;
    let children = demo.children()?;
    ensure!(
        children.len() == 9,
        "the demo has {} children, not a control plane, four applications and four sidecars",
        children.len()
    );
    demo.signal(Signal::INT)?;
    let status = tokio::time::timeout(Duration::from_secs(20), demo.child.wait())
        .await
        .context("waiting for the demo's end")??;
    ensure!(status.success(), "the demo ended with {status}");
    demo.nothing_is_left(&children).await
}

#[tokio::test]
async fn a_demo_that_is_killed_takes_its_children_along() -> Result<()> {
    let _room = equerry_tests::whole_machine().await?;
    let mut demo = Demo::start().await?;
    let children = demo.children()?;
    demo.signal(Signal::KILL)?;
    demo.child.wait().await?;
    all_gone(&children).await
}

#[tokio::test]
async fn a_demo_whose_child_crashes_names_the_child_and_ends() -> Result<()> {
    let _room = equerry_tests::whole_machine().await?;
    let mut demo = Demo::start().await?;
    let children = demo.children()?;
    let victim = children
        .iter()
        .find(|child| command_line(**child).contains("orders") && command_line(**child).contains("proxy"))
        .context("orders' sidecar")?;
    kill_process(Pid::from_raw(*victim).context("a process id")?, Signal::KILL)?;
    let status = tokio::time::timeout(Duration::from_secs(20), demo.child.wait())
        .await
        .context("waiting for the demo's end")??;
    ensure!(status.code() == Some(1), "the demo ended with {status}");
    let mut said = String::new();
    demo.child.stderr.take().context("its stderr")?.read_to_string(&mut said).await?;
    ensure!(said.contains("orders-sidecar has ended"), "the demo does not name the child: {said}");
    demo.nothing_is_left(&children).await
}

/// A demo with its live table, in a temporary directory of its own.
struct Demo {
    child: Child,
    temporary: tempfile::TempDir,
}

impl Demo {
    async fn start() -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let mut command = Command::new(program());
        command
            .arg("demo")
            .env("TMPDIR", temporary.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut demo = Self { child: command.spawn()?, temporary };
        let mut out = demo.child.stdout.take().context("its stdout")?;
        let mut seen = String::new();
        // The table's second edge is there once calls go all the way through.
        let table = async {
            let mut part = [0; 4096];
            while !seen.contains("orders -> inventory-v1") {
                let read = out.read(&mut part).await?;
                ensure!(read > 0, "the demo ended: {seen}");
                seen.push_str(&String::from_utf8_lossy(&part[..read]));
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(90), table).await.context("waiting for the demo's table")??;
        // Somebody must go on reading, or the demo would wait for its reader.
        tokio::spawn(async move { tokio::io::copy(&mut out, &mut tokio::io::sink()).await });
        Ok(demo)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .context("the demo has ended")?;
        Ok(kill_process(id, signal)?)
    }

    fn children(&self) -> Result<Vec<i32>> {
        let own = self.child.id().context("the demo has ended")?;
        let text = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let listed: Vec<i32> = text.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        // Children of other threads are listed with those.
        let mut all = listed;
        for task in std::fs::read_dir(format!("/proc/{own}/task"))?.flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().filter_map(|id| id.parse::<i32>().ok()));
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    async fn nothing_is_left(&self, children: &[i32]) -> Result<()> {
        all_gone(children).await?;
        let left: Vec<PathBuf> =
            std::fs::read_dir(self.temporary.path())?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }
}

async fn all_gone(children: &[i32]) -> Result<()> {
    eventually(Duration::from_secs(10), "all children to be gone", async || {
        let alive: Vec<String> = children
            .iter()
            .map(|child| command_line(*child))
            .filter(|line| line.contains("equerry-under-test"))
            .collect();
        if alive.is_empty() { Ok(Some(())) } else { anyhow::bail!("{alive:?}") }
    })
    .await
}

fn command_line(process: i32) -> String {
    std::fs::read(format!("/proc/{process}/cmdline"))
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .unwrap_or_default()
}

fn edit(file: &Path, changes: &[(&str, &str)]) -> Result<()> {
    let mut text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    for (from, to) in changes {
        ensure!(text.contains(from), "{} has no {from:?}", file.display());
        text = text.replace(from, to);
    }
    Ok(std::fs::write(file, text)?)
}

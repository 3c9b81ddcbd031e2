//! The install page, followed to the letter: every command and file of it, in order, on two machines of which each has systemd as
//! its first process. Then what the units promise: ready when they say so, unprivileged, reloaded, drained and restarted without loss.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use equerry_tests::machine::{Machine, PROGRAM, blocks, connect};
use equerry_tests::{eventually, whole_machine};

use crate::program;

/// Of the whole page, what is about two machines: the rest is about other programs.
const FROM: &str = "## Two machines by hand";
const TO: &str = "## Being told";
const SOON: Duration = Duration::from_secs(30);

/// The two machines of the page, by their addresses.
struct Site {
    first: Machine,
    second: Machine,
}

impl Site {
    /// As they are before anything is installed: the first has the repository's `deploy` and what a build leaves, the second what is
    /// carried over.
    async fn found() -> Result<Self> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let unit = |name: &str| std::fs::read(deploy.join("systemd").join(name)).with_context(|| name.to_owned());
        // The same mains as the programs of those names.
        let main = |words: &str| format!("#!/bin/sh\nexec {PROGRAM} {words} \"$@\"\n").into_bytes();
        let proxy = ("equerry-proxy.service", unit("equerry-proxy.service")?, 0o644);
        let first = [
            ("target/dist/equerry", main(""), 0o755),
            ("target/dist/equerry-proxy", main("proxy"), 0o755),
            ("target/dist/equerry-control-plane", main("control-plane"), 0o755),
            ("deploy/systemd/equerry-proxy.service", proxy.1.clone(), 0o644),
            ("deploy/systemd/equerry-control-plane.service", unit("equerry-control-plane.service")?, 0o644),
        ];
        let second = [("equerry-proxy", main("proxy"), 0o755), proxy];
        let first = Machine::start("10.0.0.1", program(), &first).await?;
        let second = Machine::start("10.0.0.2", program(), &second).await?;
        connect((&first, "10.0.0.1"), (&second, "10.0.0.2")).await?;
        Ok(Self { first, second })
    }

    fn at(&self, address: &str) -> Result<&Machine> {
        match address {
            "10.0.0.1" => Ok(&self.first),
            "10.0.0.2" => Ok(&self.second),
            _ => bail!("there is no machine {address}"),
        }
    }

    /// One file of the page: its first line says where.
    async fn file(&self, lines: &[String], at: &str) -> Result<()> {
        let path = lines[0].strip_prefix("# ").context("a file begins with its path")?;
        let text = lines.join("\n");
        self.at(at)?.sh(&format!("mkdir -p \"$(dirname {path})\" && cat > {path} <<'END'\n{text}\nEND")).await.map(drop)
    }

    /// One command of the page, and what it is to say.
    async fn command(&self, at: &str, line: &str, shown: &[String]) -> Result<()> {
        if line.starts_with("cargo build") {
            return Ok(());
        }
        let out = self.at(at)?.sh(line).await?;
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut said = out.lines().map(words);
        for shown in shown.iter().map(|line| words(line)).filter(|line| !line.is_empty()) {
            ensure!(said.any(|said| said == shown), "{at}# {line}\nthe page shows\n{shown}\nand it says\n{out}");
        }
        if line.contains("token create join --namespace shop --account inventory") {
            // "Carry it over."
            let token = self.first.sh("cat inventory.token").await?;
            self.second.sh(&format!("(umask 077; echo {} > inventory.token)", token.trim())).await?;
        }
        Ok(())
    }

    /// Every block between two headings, in order.
    async fn follow(&self, page: &str) -> Result<usize> {
        let (mut given, mut at) = (0, "10.0.0.1".to_owned());
        let mut rest = page;
        for (kind, lines) in blocks(page)? {
            let (before, after) = rest.split_once(&lines.join("\n")).context("the blocks of the page")?;
            // The text before a file says on which machine it is.
            let named = ["10.0.0.1", "10.0.0.2"].map(|place| (before.rfind(&format!("n {place}:")), place));
            if let Some((Some(_), place)) = named.into_iter().max() {
                at = place.to_owned();
            }
            rest = after;
            if kind == "yaml" {
                self.file(&lines, &at).await?;
                continue;
            }
            ensure!(kind == "console", "what is a block of {kind:?}?");
            let prompt = |line: &str| {
                Some((line.get(..8)?.to_owned(), line.get(8..)?.trim_start_matches(['#', '$', ' ']).to_owned()))
            };
            let commands: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].starts_with("10.0.0.")).collect();
            ensure!(commands.first() == Some(&0), "a block that says nowhere where it is typed: {lines:?}");
            for (number, begins) in commands.iter().enumerate() {
                let ends = commands.get(number + 1).copied().unwrap_or(lines.len());
                let (place, line) = prompt(&lines[*begins]).context("a command")?;
                self.command(&place, &line, &lines[begins + 1..ends]).await?;
                given += 1;
            }
        }
        Ok(given)
    }

    /// `systemctl show` of one property.
    async fn property(&self, at: &Machine, unit: &str, name: &str) -> Result<String> {
        Ok(at.sh(&format!("systemctl show -P {name} {unit}")).await?.trim().to_owned())
    }
}

#[tokio::test]
async fn the_install_page_followed_to_the_letter_makes_a_mesh_of_two_machines() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root makes machines");
        return Ok(());
    }
    let _alone = whole_machine().await?;
    if !Machine::possible(program()).await? {
        return Ok(());
    }
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/README.md"))?;
    let page = page.split_once(FROM).and_then(|(_, rest)| rest.split_once(TO)).context("the page has its sections")?.0;
    let (install, recover) = page.split_once("## Backup and restore").context("the page tells of backups")?;
    let site = Site::found().await?;
    let given = site.follow(install).await?;
    ensure!(given > 25, "only {given} commands were found");
    refusals_are_told(&site).await?;
    they_run_unprivileged(&site).await?;
    a_reload_loses_nothing(&site).await?;
    a_stop_drains(&site).await?;
    a_crash_is_mended(&site).await?;
    site.follow(recover).await?;
    // The mesh goes on where it was: same identities, same policy.
    eventually(SOON, "both sidecars to be back in step", async || {
        let status = site.first.sh("equerry status").await?;
        ensure!(status.contains("2 of 2 proxies connected, 2 in step"), "{status}");
        Ok(Some(()))
    })
    .await?;
    site.first.sh("curl -sSf -H 'Host: inventory.shop' http://127.0.0.1:15001/").await?;
    Ok(())
}

/// What the page says of the same call on the other machine.
async fn refusals_are_told(site: &Site) -> Result<()> {
    let answer = site.second.sh("curl -sS -i -H 'Host: inventory.shop' http://127.0.0.1:15001/").await?;
    ensure!(answer.starts_with("HTTP/1.1 403") && answer.contains("authz_denied"), "{answer}");
    let log = site.second.sh("journalctl -u equerry-proxy -n 4 -o cat").await?;
    ensure!(log.contains("authz_denied"), "the log does not tell: {log}");
    Ok(())
}

/// systemd started them as the units say: as nobody who could do more.
async fn they_run_unprivileged(site: &Site) -> Result<()> {
    for (machine, unit, user) in [
        (&site.first, "equerry-control-plane", "equerry"),
        (&site.first, "equerry-proxy", "equerry-proxy"),
        (&site.second, "equerry-proxy", "equerry-proxy"),
    ] {
        ensure!(site.property(machine, unit, "Type").await? == "notify");
        let number = site.property(machine, unit, "MainPID").await?;
        let who = machine.sh(&format!("stat -c %U /proc/{number}")).await?;
        ensure!(who.trim() == user, "{unit} runs as {who}");
        let status = machine.sh(&format!("cat /proc/{number}/status")).await?;
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
            ensure!(status.lines().any(|told| told == line), "{unit} has no {line:?}:\n{status}");
        }
        let log = machine.sh(&format!("journalctl -u {unit} -o cat")).await?;
        for sign in ["Operation not permitted", "Permission denied", "Read-only file system"] {
            ensure!(!log.contains(sign), "what hardens {unit} is in its way: {log}");
        }
    }
    Ok(())
}

/// Calls go on while the units of both machines are reloaded.
async fn a_reload_loses_nothing(site: &Site) -> Result<()> {
    let loading = "failed=0; for n in $(seq 60); do curl -sf -o /dev/null -H 'Host: inventory.shop' http://127.0.0.1:15001/ || failed=$((failed + 1)); done; echo $failed";
    let reload = async {
        for machine in [&site.second, &site.first, &site.second, &site.first] {
            machine.sh("systemctl reload equerry-proxy").await?;
        }
        site.first.sh("systemctl reload equerry-control-plane").await
    };
    let (failed, reloaded) = tokio::join!(site.first.sh(loading), reload);
    reloaded?;
    ensure!(failed?.trim() == "0", "calls failed while units were reloaded");
    for machine in [&site.first, &site.second] {
        ensure!(site.property(machine, "equerry-proxy", "NRestarts").await? == "0");
    }
    Ok(())
}

/// A long answer is under way when its sidecar is stopped: it comes whole, and the stop takes that long.
async fn a_stop_drains(site: &Site) -> Result<()> {
    const SIZE: &str = "67108864";
    site.second.sh(&format!("truncate -s {SIZE} /usr/share/common-licenses/long")).await?;
    let call = "curl -sSf -o /dev/null -w '%{size_download}' --limit-rate 16M -H 'Host: inventory.shop' http://127.0.0.1:15001/long";
    let stop = async {
        eventually(SOON, "the call to be under way", async || {
            let log = site.second.sh("journalctl -u inventory -o cat").await?;
            Ok(log.contains("GET /long").then_some(()))
        })
        .await?;
        let begun = Instant::now();
        site.second.sh("systemctl stop equerry-proxy").await?;
        Ok::<_, anyhow::Error>(begun.elapsed())
    };
    let (came, took) = tokio::join!(site.first.sh(call), stop);
    ensure!(came?.trim() == SIZE, "the answer was cut off");
    let took = took?;
    ensure!(took > Duration::from_secs(1), "the unit stopped within {took:?}, before the answer was over");
    ensure!(site.property(&site.second, "equerry-proxy", "Result").await? == "success");
    site.second.sh("systemctl start equerry-proxy").await?;
    eventually(SOON, "inventory to be called again", async || {
        let called =
            site.first.try_sh("curl -sSf -o /dev/null -H 'Host: inventory.shop' http://127.0.0.1:15001/").await?;
        Ok((called.code == Some(0)).then_some(()))
    })
    .await
}

/// What dies is started again, with the identity it had: its join token is long gone.
async fn a_crash_is_mended(site: &Site) -> Result<()> {
    for (machine, unit) in [(&site.second, "equerry-proxy"), (&site.first, "equerry-control-plane")] {
        machine.sh(&format!("systemctl kill -s KILL {unit}")).await?;
        eventually(SOON, "the unit to be up again", async || {
            let restarts = site.property(machine, unit, "NRestarts").await?;
            let state = site.property(machine, unit, "ActiveState").await?;
            Ok((restarts == "1" && state == "active").then_some(()))
        })
        .await?;
    }
    Ok(())
}

//! Processor time of a request, found of all targets by turns of a tenth of a second.
//!
//! A shared machine is fast in one second and slow in the next, and two proxies that are measured one after the other differ by the
//! seconds that they had. Here every target has a load generator of its own, and all of them are stopped (`SIGSTOP`), proxies and
//! load, but the one whose turn it is, there and back, until each has had its time: what slows the machine for a while slows all alike.
//! Stopped together they go on as if nothing had been: no answers have piled up meanwhile.
//!
//! Many connections are made before the first turn: handshakes are none of a request's cost, and one that is stopped halfway runs out of
//! its time. What was answered until then, as the application counts, is taken off what the load generator counted.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::load::{self, Load};
use super::machine;
use super::measure::Target;
use super::peers::Site;
use super::tools;

/// How long a turn is.
const TURN: Duration = Duration::from_millis(100);
/// How long the account of a process that was stopped may still move.
const REST: Duration = Duration::from_millis(50);
/// How long a load generator may take to end.
const END: Duration = Duration::from_secs(5);

/// Microseconds of processor time that a request takes at each target, which all get `load` for a `time`, in turns.
///
/// # Errors
/// When a load generator fails, or a target answers nothing.
pub(crate) fn processor_time(site: &Site, targets: &[Target], load: &Load, time: Duration) -> Result<Vec<f64>> {
    let mut players = Vec::with_capacity(targets.len());
    for target in targets {
        players.push(Player::ready(site, target, load).context(target.name)?);
    }
    for round in 0..time.as_millis() / TURN.as_millis() {
        let there_and_back = |place: usize| if round % 2 == 0 { place } else { targets.len() - 1 - place };
        for player in (0..targets.len()).map(there_and_back) {
            players[player].turn()?;
        }
    }
    players.into_iter().zip(targets).map(|(player, target)| player.end(load).context(target.name)).collect()
}

/// A target and its load generator, stopped but in their turns. When this is dropped the load is ended and the proxies go on.
#[derive(Debug)]
struct Player {
    child: Option<Child>,
    proxies: Vec<u32>,
    /// Where a load generator writes what it does not print.
    log: PathBuf,
    /// Answers before the first turn.
    before: u64,
    /// Nanoseconds that the proxies ran in all turns.
    ran: u64,
}

impl Player {
    /// Starts the load, and stops it once its connections are made.
    fn ready(site: &Site, target: &Target, load: &Load) -> Result<Self> {
        let log = site.dir.join(format!("turns-{}.log", target.port));
        let mut command = load::endless(site, load, target.port, &target.headers, &log)?;
        let proxies = target.pids();
        let connecting = load.connecting();
        let already = connecting.map(|_| counted_by_application(site)).transpose()?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut player = Self { child: Some(child.context("starting the load")?), proxies, log, before: 0, ran: 0 };
        // Of those that several targets share, the last one's turn has stopped them.
        player.let_proxies(Signal::CONT);
        if let Some(connecting) = connecting {
            std::thread::sleep(connecting);
        }
        player.signal(Signal::STOP)?;
        // What was asked is answered; the load finds it when its first turn comes.
        at_rest(&player.proxies, connecting.unwrap_or(REST));
        player.let_proxies(Signal::STOP);
        if let Some(already) = already {
            player.before = counted_by_application(site)?.saturating_sub(already + 1);
        }
        Ok(player)
    }

    fn turn(&mut self) -> Result<()> {
        let before = machine::ran(&self.proxies);
        self.let_proxies(Signal::CONT);
        self.signal(Signal::CONT)?;
        self.until_stopped(before)
    }

    fn until_stopped(&mut self, before: u64) -> Result<()> {
        std::thread::sleep(TURN);
        self.let_proxies(Signal::STOP);
        self.signal(Signal::STOP)?;
        self.ran += at_rest(&self.proxies, REST).saturating_sub(before);
        Ok(())
    }

    /// Its last, short turn, and what a request took in all of them.
    fn end(mut self, load: &Load) -> Result<f64> {
        let before = machine::ran(&self.proxies);
        self.let_proxies(Signal::CONT);
        self.signal(Signal::CONT)?;
        // Interrupted, wrk tells what it counted; h2load has written down every answer, and may have been told to ignore interrupts.
        let last = if matches!(load, Load::Http2 { .. }) { Signal::TERM } else { Signal::INT };
        let output = self.ended_by(last)?.wait_with_output()?;
        self.ran += at_rest(&self.proxies, REST).saturating_sub(before);
        let said = String::from_utf8_lossy(&output.stdout);
        let answers = load::answers(load, &self.log, &said)?.saturating_sub(self.before);
        ensure!(answers > 0, "nothing was answered but {} before the first turn: {said}", self.before);
        Ok(self.ran as f64 / 1e3 / answers as f64)
    }

    /// The load generator, once it has ended.
    fn ended_by(&mut self, signal: Signal) -> Result<Child> {
        let deadline = Instant::now() + END;
        while self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            ensure!(Instant::now() < deadline, "the load does not end within {END:?} of being told to");
            // Again and again: wrk ends when its first thread hears of it, and any of them may.
            self.signal(signal)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.take().context("it has ended")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.as_ref().and_then(|child| process(child.id()));
        kill_process(id.context("it has ended")?, signal).context("the load has ended before its time")
    }

    fn let_proxies(&self, signal: Signal) {
        for id in self.proxies.iter().filter_map(|id| process(*id)) {
            // Of one that has ended its load tells.
            let _ = kill_process(id, signal);
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.let_proxies(Signal::CONT);
    }
}

fn process(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

/// How many requests the application has had, this one included.
fn counted_by_application(site: &Site) -> Result<u64> {
    let port = site.words.get("APP").context("there is no application")?.parse()?;
    let (status, said) = tools::get(port, "/count", &[])?;
    // Three sums follow their title: of connections accepted, of connections handled, of requests.
    let sums = said.lines().skip_while(|line| !line.contains("requests")).nth(1);
    let requests = sums.and_then(|sums| sums.split_whitespace().nth(2)?.parse().ok());
    requests
        .filter(|_| status == 200)
        .with_context(|| format!("the application does not tell its count: {status} {said}"))
}

/// What these processes ran, once they run no more, or after `limit`.
fn at_rest(processes: &[u32], limit: Duration) -> u64 {
    let deadline = Instant::now() + limit;
    let mut last = machine::ran(processes);
    loop {
        std::thread::sleep(Duration::from_millis(2));
        let now = machine::ran(processes);
        if now == last || Instant::now() > deadline {
            return now;
        }
        last = now;
    }
}

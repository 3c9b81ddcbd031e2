//! What the kernel says about processes: who belongs to whom, how long each ran on a processor, what it keeps in memory.

use std::fs;
use std::process::{Command, Stdio};

/// The proxies' core.
pub(crate) const PROXIES: usize = 0;
/// The core of load and application.
pub(crate) const LOAD: usize = 1;

/// A process and its descendants.
pub(crate) fn family(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, parent(pid)?)))
        .collect();
    let mut all = vec![root];
    let mut seen = 0;
    while let Some(&next) = all.get(seen) {
        all.extend(parents.iter().filter(|(_, parent)| *parent == next).map(|(pid, _)| *pid));
        seen += 1;
    }
    all
}

fn parent(pid: u32) -> Option<u32> {
    // The name, in brackets, may hold anything; the parent is the second word behind it.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Nanoseconds that all threads of these processes ran on a processor, by the scheduler's account.
pub(crate) fn ran(pids: &[u32]) -> u64 {
    let threads = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

/// Resident KiB of these processes together.
pub(crate) fn resident(pids: &[u32]) -> u64 {
    status(pids, &["VmRSS:"])
}

/// Resident KiB that are the processes' own: heap, stacks and shared memory, without pages of files such as their program.
pub(crate) fn own(pids: &[u32]) -> u64 {
    status(pids, &["RssAnon:", "RssShmem:"])
}

/// The sum of these lines of each process's status.
fn status(pids: &[u32], names: &[&str]) -> u64 {
    let statuses = pids.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let line = |line: &str| {
        let value = names.iter().find_map(|name| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    statuses.flat_map(|status| status.lines().filter_map(line).collect::<Vec<_>>()).sum()
}

/// Runnable tasks, averaged over a minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Nanoseconds that each processor was busy with anything, or stolen by another machine, by `/proc/stat` (in ticks of 10 ms).
pub(crate) fn busy() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let words: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    let idle: u64 = words.iter().skip(3).take(2).sum();
    words.iter().take(8).sum::<u64>().saturating_sub(idle) * 10_000_000
}

/// What the machine is, in one line.
pub(crate) fn described() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()));
    let cores = read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "{cores} cores, {}, Linux {}",
        model.unwrap_or_else(|| "unknown processor".to_owned()),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// Lets this program, and what it starts from now on, run wherever there is room.
pub(crate) fn rest_anywhere() {
    let _ = Command::new("taskset")
        .args(["-p", "ffffffff", &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status();
}

/// Keeps this program itself, and what it starts, off the proxies' core.
pub(crate) fn rest_on(core: usize) {
    // Without it the figures are noisier, no more.
    let _ = Command::new("taskset")
        .args(["-cp", &core.to_string(), &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status();
}

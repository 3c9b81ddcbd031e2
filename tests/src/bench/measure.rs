//! Targets of a scenario, measured in turn, round after round; and what each came to.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::load::{self, Load, Sample};
use super::peers::{Site, Standing};
use super::server::Server;
use super::{machine, say, tools, turns};

/// Load right before each measurement: latencies while connections are made are not those of requests.
const WARM: Duration = Duration::from_secs(1);

/// So many times as long is a target asked that answered nothing: on a crowded machine hundreds of connections are made slowly.
const LONGEST: u32 = 8;

/// What a target is to us: the colour of its bar, and what ratios are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// The build under test.
    Ours,
    /// Somebody else's proxy.
    Peer,
    /// What nobody can be below.
    Floor,
}

/// One thing to put load on.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its name in tables.
    pub(crate) name: &'static str,
    /// Whose it is.
    pub(crate) side: Side,
    /// Where load goes.
    pub(crate) port: u16,
    /// Headers of each request.
    pub(crate) headers: Vec<String>,
    /// Processes whose time counts, started for this target alone.
    pub(crate) servers: Vec<Server>,
    /// Processes whose time counts, kept elsewhere.
    pub(crate) shared: Vec<u32>,
}

impl Target {
    /// A peer that stands.
    pub(crate) fn peer(name: &'static str, standing: Standing) -> Self {
        Self {
            name,
            side: Side::Peer,
            port: standing.port,
            headers: Vec::new(),
            servers: standing.servers,
            shared: Vec::new(),
        }
    }

    /// One of ours.
    pub(crate) fn ours(name: &'static str, port: u16, service: &str, pids: Vec<u32>) -> Self {
        Self {
            name,
            side: Side::Ours,
            port,
            headers: vec![format!("Host: {service}")],
            servers: Vec::new(),
            shared: pids,
        }
    }

    /// The same with one more header.
    pub(crate) fn with(mut self, header: String) -> Self {
        self.headers.push(header);
        self
    }

    /// The processes whose time counts.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.servers.iter().flat_map(Server::family).chain(self.shared.iter().copied()).collect()
    }
}

/// What a target came to over all rounds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// The target.
    pub(crate) name: &'static str,
    /// Whose it is.
    pub(crate) side: Side,
    /// The median of each figure over the rounds.
    pub(crate) median: Sample,
    /// Smallest and largest processor time of a request over the rounds.
    pub(crate) cpu_range: (f64, f64),
    /// Every round.
    pub(crate) rounds: Vec<Sample>,
}

impl Row {
    /// What a target came to in these rounds.
    pub(crate) fn of(name: &'static str, side: Side, rounds: Vec<Sample>) -> Self {
        let median = |of: fn(&Sample) -> f64| {
            let mut all: Vec<f64> = rounds.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            // Of an even number the lower middle: a median must be something that was measured.
            all.get(all.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
        };
        let cpu = |pick: fn(f64, f64) -> f64, from| rounds.iter().map(|sample| sample.cpu_micros).fold(from, pick);
        Self {
            name,
            side,
            median: Sample {
                requests: median(|sample| sample.requests as f64) as u64,
                per_second: median(|sample| sample.per_second),
                errors: rounds.iter().map(|sample| sample.errors).sum(),
                cpu_micros: median(|sample| sample.cpu_micros),
                p50: median(|sample| sample.p50),
                p99: median(|sample| sample.p99),
                p999: median(|sample| sample.p999),
                resident_mib: median(|sample| sample.resident_mib),
                foreign: median(|sample| sample.foreign),
            },
            cpu_range: (cpu(f64::min, f64::MAX), cpu(f64::max, 0.0)),
            rounds,
        }
    }
}

/// Measures all targets `rounds` times: rates and latencies one after the other, then processor time by turns.
///
/// # Errors
/// When one cannot be measured.
pub(crate) fn all(
    site: &Site,
    targets: &[Target],
    load: &Load,
    rounds: usize,
    time: Duration,
    application: &[u32],
) -> Result<Vec<Row>> {
    for target in targets {
        // Peers that speak HTTP/2 alone would not answer this; h2load's first answer is theirs.
        if target.side == Side::Ours || !matches!(load, Load::Http2 { .. }) {
            warm(target).with_context(|| format!("{} does not answer 200", target.name))?;
        }
    }
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); targets.len()];
    for round in 1..=rounds {
        let place = if rounds > 1 { format!("round {round}/{rounds}  ") } else { String::new() };
        let mut found = Vec::with_capacity(targets.len());
        for target in targets {
            let put = |time| load::put(site, load, target.port, &target.headers, time, &target.pids(), application);
            // Connections open and caches fill; whether anything was answered is seen right after.
            let _ = put(WARM);
            let mut longer = time;
            let sample = loop {
                match put(longer) {
                    Ok(sample) => break sample,
                    Err(error) if longer >= time * LONGEST => return Err(error).context(target.name),
                    Err(error) => say(&format!("  {} is asked once more, for longer: {error:#}", target.name)),
                }
                longer *= 2;
            };
            let errors = if sample.errors > 0 { format!("  {} ERRORS", sample.errors) } else { String::new() };
            say(&format!(
                "  {place}{:<28} {:>8.0}/s  p99 {:>7.0} µs{errors}  (others {:.0}%, load {:.1})",
                target.name,
                sample.per_second,
                sample.p99,
                sample.foreign * 100.0,
                machine::load_average()
            ));
            found.push(sample);
        }
        // As fast as they can, connections open and caches filled by what was just measured: what a request costs.
        if !matches!(load, Load::Paced { .. }) {
            let costs = turns::processor_time(site, targets, load, time)?;
            found.iter_mut().zip(costs).for_each(|(sample, cost)| sample.cpu_micros = cost);
        }
        let each: Vec<String> =
            targets.iter().zip(&found).map(|(target, one)| format!("{} {:.1}", target.name, one.cpu_micros)).collect();
        say(&format!("  {place}µs CPU/request: {}", each.join("; ")));
        samples.iter_mut().zip(found).for_each(|(samples, sample)| samples.push(sample));
    }
    Ok(targets.iter().zip(samples).map(|(target, rounds)| Row::of(target.name, target.side, rounds)).collect())
}

/// Waits until a target answers: endpoints and connections come by themselves.
///
/// # Errors
/// When it does not within ten seconds.
pub(crate) fn warm(target: &Target) -> Result<()> {
    let headers: Vec<&str> = target.headers.iter().map(String::as_str).collect();
    let mut last = String::new();
    for _ in 0..100 {
        match tools::get(target.port, "/", &headers) {
            Ok((200, _)) => return Ok(()),
            Ok((status, said)) => last = format!("{status} {said}"),
            Err(error) => last = format!("{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("{last}")
}

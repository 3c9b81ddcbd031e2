//! The soak: a pair under full policy and full load for long, and whether its memory stands still.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::found::{Bar, Figure, Found, Series};
use super::ground::Ground;
use super::load::{self, Sample};
use super::machine;
use super::pairs::{Pair, full_policies};
use super::scenarios::closed;
use super::{measure, say};

/// Between two looks at memory, at most.
const STEP: Duration = Duration::from_secs(10);
/// There are so many looks at least: then some lie in each tenth.
const LOOKS: u32 = 20;
/// The last tenth may hold this much more than the second one: of ten minutes, minute 10 of minute 2.
const GROWTH: f64 = 1.05;

/// Puts S2p's load on a pair for `ground.time` and watches its resident memory.
///
/// # Errors
/// When something does not come up, or does not answer.
pub(crate) fn run(ground: &Ground) -> Result<Found> {
    full_policies(ground)?;
    let pair = Pair::start(ground, "client-on", "server-on", ground.app, true, &[])?;
    let target =
        pair.target("equerry pair", "server-on").with(format!("Authorization: Bearer {}", ground.mesh.token()));
    measure::warm(&target)?;
    let sides = [("client's sidecar", &pair.client), ("server's sidecar", &pair.server)];
    let (pids, began, end) = (target.pids(), Instant::now(), ground.time);
    let (sample, series) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut series = sides.map(|(of, _)| Series { of, what: "resident memory, MiB", points: Vec::new() });
            for at in looks(end) {
                std::thread::sleep(at.saturating_sub(began.elapsed()));
                for ((_, side), series) in sides.iter().zip(&mut series) {
                    let mib = machine::resident(&side.server.family()) as f64 / 1024.0;
                    series.points.push((at.as_secs_f64(), mib));
                    // Twenty gigabytes of log say nothing about memory.
                    side.access_log.as_deref().map(emptied).transpose()?;
                }
                let [client, server] = &series;
                let last = |of: &Series| of.points.last().map_or(0.0, |point| point.1);
                say(&format!(
                    "  {:>4} s  client's {:.1} MiB  server's {:.1} MiB",
                    at.as_secs(),
                    last(client),
                    last(server)
                ));
            }
            anyhow::Ok(series)
        });
        let sample =
            load::put(&ground.site, &closed(64), target.port, &target.headers, end, &pids, &ground.application());
        (sample, watch.join())
    });
    let series = series.map_err(|_| anyhow::anyhow!("the watch ended early"))??;
    Ok(judged(&sample.context("the load")?, series, end))
}

/// When memory is looked at, in a soak that lasts for `time`.
fn looks(time: Duration) -> impl Iterator<Item = Duration> {
    let step = STEP.min(time / LOOKS);
    (1..).map(move |n| step * n).take_while(move |at| *at < time)
}

/// Empties a log that is open elsewhere, as logrotate's copytruncate does.
fn emptied(log: &Path) -> Result<()> {
    OpenOptions::new().write(true).truncate(true).open(log).with_context(|| format!("emptying {}", log.display()))?;
    Ok(())
}

fn judged(sample: &Sample, series: [Series; 2], time: Duration) -> Found {
    let mut found = Found::default();
    for (what, value, unit) in [
        ("requests/s", sample.per_second, ""),
        ("CPU", sample.cpu_micros, "µs"),
        ("requests failed", sample.errors as f64, ""),
    ] {
        found.figures.push(Figure { of: "equerry pair", what, value, unit });
    }
    found.bars.push(Bar {
        says: "requests failed ≤ 0".to_owned(),
        ratio: sample.errors as f64,
        limit: 0.0,
        between: None,
    });
    for series in series {
        let tenth = time.as_secs_f64() / 10.0;
        let mean = |from: f64, to: f64| {
            let within: Vec<f64> =
                series.points.iter().filter(|(at, _)| *at > from && *at <= to).map(|(_, mib)| *mib).collect();
            (!within.is_empty()).then(|| within.iter().sum::<f64>() / within.len() as f64)
        };
        if let (Some(early), Some(late)) = (mean(tenth, 2.0 * tenth), mean(9.0 * tenth, 10.0 * tenth)) {
            let says = format!("{}: resident in the last tenth ≤ {GROWTH} × in the second", series.of);
            found.bars.push(Bar { says, ratio: late / early, limit: GROWTH, between: None });
        }
        found.series.push(series);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_is_judged_however_short_it_is() {
        for seconds in [7, 60, 100, 109, 600, 3_600] {
            let time = Duration::from_secs(seconds);
            let series = |grows: f64| {
                let points = looks(time).map(|at| (at.as_secs_f64(), 10.0 + grows * at.as_secs_f64())).collect();
                Series { of: "one", what: "resident memory, MiB", points }
            };
            let found = judged(&Sample::default(), [series(0.0), series(1.0)], time);
            let over: Vec<bool> = found.bars.iter().map(|bar| bar.ratio > bar.limit).collect();
            assert_eq!(over, [false, false, true], "{seconds} s");
        }
    }
}

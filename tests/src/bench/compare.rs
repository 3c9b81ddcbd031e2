//! Whether two runs agree: every ratio of processor time that S1 to S4 of both hold, within ten percent.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::found::ratio;

/// Two runs agree when each ratio of one is within this share of the other's.
const AGREE: f64 = 0.10;

#[derive(Debug, Deserialize)]
struct Run {
    date: String,
    scenarios: Vec<Scenario>,
}

#[derive(Debug, Deserialize)]
struct Scenario {
    id: String,
    tables: Vec<Table>,
}

#[derive(Debug, Deserialize)]
struct Table {
    load: String,
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    side: String,
    rounds: Vec<Round>,
}

#[derive(Debug, Deserialize)]
struct Round {
    cpu_micros: f64,
}

/// A ratio within one run.
#[derive(Debug, Clone, PartialEq)]
struct Ratio {
    says: String,
    value: f64,
}

/// The table of both runs' ratios, and whether all agree.
///
/// # Errors
/// When a file is not a run's, or the two have no ratio in common.
pub(crate) fn run(first: &Path, second: &Path) -> Result<(String, bool)> {
    let read = |path: &Path| {
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice::<Run>(&text).with_context(|| format!("{} is not a run of this bench", path.display()))
    };
    let (first, second) = (read(first)?, read(second)?);
    let theirs = ratios(&second);
    let both: Vec<(Ratio, f64)> = ratios(&first)
        .into_iter()
        .filter_map(|ours| {
            let other = theirs.iter().find(|other| other.says == ours.says)?.value;
            Some((ours, other))
        })
        .collect();
    if both.is_empty() {
        bail!("the two runs have no ratio of S1 to S4 in common");
    }
    let mut text =
        format!("\n  {:<86} {:>20} {:>20}  apart\n", "CPU per request, ours of theirs", first.date, second.date);
    let mut apart = 0;
    for (ratio, other) in &both {
        let difference = other / ratio.value - 1.0;
        let agrees = within(ratio.value, *other);
        apart += usize::from(!agrees);
        let verdict = if agrees { "" } else { "  APART" };
        let _ = writeln!(
            text,
            "  {:<86} {:>20.3} {other:>20.3} {:>+5.1}%{verdict}",
            ratio.says,
            ratio.value,
            difference * 100.0
        );
    }
    let _ = writeln!(text, "\n  {} ratios, {apart} more than {:.0}% apart", both.len(), AGREE * 100.0);
    Ok((text, apart == 0))
}

fn within(first: f64, second: f64) -> bool {
    (second / first - 1.0).abs() <= AGREE
}

/// Each of ours divided by each peer, and by the first of ours.
fn ratios(run: &Run) -> Vec<Ratio> {
    let mut all = Vec::new();
    let asked = |id: &str| ["S1", "S2", "S3", "S4"].iter().any(|start| id.starts_with(start));
    for scenario in run.scenarios.iter().filter(|scenario| asked(&scenario.id)) {
        for table in &scenario.tables {
            let ours: Vec<&Row> = table.rows.iter().filter(|row| row.side == "ours").collect();
            let peers = table.rows.iter().filter(|row| row.side == "peer");
            let others: Vec<&Row> = ours.first().copied().into_iter().chain(peers).collect();
            for (one, other) in ours.iter().flat_map(|one| others.iter().map(move |other| (one, other))) {
                let cpu = |row: &Row| row.rounds.iter().map(|round| round.cpu_micros).collect::<Vec<_>>();
                if let Some(value) = ratio(&cpu(one), &cpu(other)).filter(|_| one.name != other.name) {
                    let says = format!("{} {}: {} / {}", scenario.id, table.load, one.name, other.name);
                    all.push(Ratio { says, value });
                }
            }
        }
    }
    all
}

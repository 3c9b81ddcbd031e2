//! What a run found, for people (a table, a chart) and for programs (JSON).

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::found::Found;
use super::ground::Ground;
use super::machine;
use super::scenarios::Scenario;

/// The tables of one scenario.
pub(crate) fn table(scenario: &Scenario, found: &Found) -> String {
    let mut text = format!("\n{}  {}\n", scenario.id, scenario.title);
    for table in &found.tables {
        let _ = writeln!(
            text,
            "\n  {:<28} {:>9} {:>9} {:>9} {:>9} {:>15} {:>8}",
            table.load, "req/s", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs/request", "RSS MiB"
        );
        for row in &table.rows {
            let of = &row.median;
            let (low, high) = row.cpu_range;
            let range = if row.rounds.len() > 1 { format!("  ({low:.1} - {high:.1})") } else { String::new() };
            let errors = if of.errors > 0 { format!("  {} ERRORS", of.errors) } else { String::new() };
            let _ = writeln!(
                text,
                "  {:<28} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>15.1} {:>8.1}{range}{errors}",
                row.name, of.per_second, of.p50, of.p99, of.p999, of.cpu_micros, of.resident_mib
            );
        }
    }
    for figure in &found.figures {
        let _ = writeln!(text, "          {:>9.1} {:<4} {}, {}", figure.value, figure.unit, figure.of, figure.what);
    }
    for bar in &found.bars {
        let verdict = if bar.passed() { "pass  " } else { "BEHIND" };
        let _ = writeln!(text, "  {verdict}  {:.2}  {}", bar.ratio, bar.says);
    }
    text
}

/// Writes `DIR/DATE.json`, and the same as `latest.json`.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn json(
    ground: &Ground,
    dir: &Path,
    command: &str,
    load_before: f64,
    rounds: usize,
    all: &[(&Scenario, Found)],
) -> Result<String> {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0)?.format(&Rfc3339)?;
    let versions: serde_json::Map<_, _> = ["nginx", "haproxy", "envoy", "wrk", "h2load"]
        .iter()
        .map(|name| ((*name).to_owned(), ground.site.version(name).into()))
        .collect();
    let scenarios: Vec<_> = all.iter().map(|(scenario, found)| json!({"id": scenario.id, "title": scenario.title, "tables": found.tables, "bars": found.bars, "figures": found.figures, "series": found.series})).collect();
    let report = json!({
        "date": now, "command": command, "machine": machine::described(), "load_average_before": load_before, "rounds": rounds,
        "seconds": ground.time.as_secs(), "versions": versions, "missing": ground.missing(), "scenarios": scenarios,
    });
    let text = serde_json::to_string_pretty(&report)?;
    let file = dir.join(format!("{}.json", now.replace(':', "-")));
    std::fs::write(&file, &text).with_context(|| format!("writing {}", file.display()))?;
    std::fs::write(dir.join("latest.json"), &text)?;
    Ok(file.display().to_string())
}

/// All bars of a run in few lines: how many are reached, and which are not. And whether all are.
pub(crate) fn verdict(all: &[(&Scenario, Found)]) -> (String, bool) {
    let bars: Vec<_> =
        all.iter().flat_map(|(scenario, found)| found.bars.iter().map(|bar| (scenario.id, bar))).collect();
    let behind: Vec<_> = bars.iter().filter(|(_, bar)| !bar.passed()).collect();
    let mut text = format!("{} of {} bars reached\n", bars.len() - behind.len(), bars.len());
    for (id, bar) in &behind {
        let _ = writeln!(text, "  BEHIND  {:.2}  {id}  {}", bar.ratio, bar.says);
    }
    (text, behind.is_empty())
}

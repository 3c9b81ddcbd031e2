//! What a run found, for people (a table, a chart) and for programs (JSON).

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ground::Ground;
use super::machine;
use super::measure::{Row, Side};
use super::scenarios::{Found, Scenario, Table};

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
        let _ = writeln!(text, "          {:>9.1} {:<4} {}", figure.value, figure.unit, figure.what);
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
    all: &[(&Scenario, Found)],
) -> Result<String> {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0)?.format(&Rfc3339)?;
    let versions: serde_json::Map<_, _> = ["nginx", "haproxy", "envoy", "wrk", "h2load"]
        .iter()
        .map(|name| ((*name).to_owned(), ground.site.version(name).into()))
        .collect();
    let scenarios: Vec<_> = all.iter().map(|(scenario, found)| json!({"id": scenario.id, "title": scenario.title, "tables": found.tables, "bars": found.bars, "figures": found.figures})).collect();
    let report = json!({
        "date": now, "command": command, "machine": machine::described(), "load_average_before": load_before, "rounds": ground.rounds,
        "seconds": ground.time.as_secs(), "versions": versions, "missing": ground.missing(), "scenarios": scenarios,
    });
    let text = serde_json::to_string_pretty(&report)?;
    let file = dir.join(format!("{}.json", now.replace(':', "-")));
    std::fs::write(&file, &text).with_context(|| format!("writing {}", file.display()))?;
    std::fs::write(dir.join("latest.json"), &text)?;
    Ok(file.display().to_string())
}

/// Writes one chart for each table of a scenario: CPU microseconds per request, a bar for each target.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn charts(dir: &Path, scenario: &Scenario, found: &Found) -> Result<()> {
    for (n, table) in found.tables.iter().enumerate() {
        let suffix = if found.tables.len() > 1 { format!("-{}", n + 1) } else { String::new() };
        std::fs::write(dir.join(format!("{}{suffix}.svg", scenario.id)), chart(scenario, table))?;
    }
    Ok(())
}

const LINE: usize = 34;
const NAMES: usize = 210;
const BARS: f64 = 420.0;

fn chart(scenario: &Scenario, table: &Table) -> String {
    let most = table.rows.iter().map(|row| row.median.cpu_micros).fold(1e-9, f64::max);
    let height = 86 + LINE * table.rows.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"16\" font-weight=\"bold\" fill=\"#1f2937\">{}: {}</text>\n\
         <text x=\"16\" y=\"50\" fill=\"#4b5563\">{}: CPU microseconds per request of the proxy processes (less is better)</text>\n",
        scenario.id,
        escaped(scenario.title),
        escaped(&table.load)
    );
    for (n, row) in table.rows.iter().enumerate() {
        let y = 68 + LINE * n;
        let width = row.median.cpu_micros / most * BARS;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#1f2937\">{}</text>\n\
             <rect x=\"{NAMES}\" y=\"{y}\" width=\"{width:.1}\" height=\"22\" rx=\"3\" fill=\"{}\"/>\n\
             <text x=\"{:.1}\" y=\"{}\" fill=\"#1f2937\">{:.1}</text>",
            NAMES - 10,
            y + 16,
            escaped(row.name),
            colour(row),
            NAMES as f64 + width + 8.0,
            y + 16,
            row.median.cpu_micros
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn colour(row: &Row) -> &'static str {
    match row.side {
        Side::Ours => "#0f766e",
        Side::Peer => "#94a3b8",
        Side::Floor => "#d6d3d1",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

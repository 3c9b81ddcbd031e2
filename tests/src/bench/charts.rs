//! Charts: one SVG for each table, each kind of figure, and each series of a scenario, readable in a browser and in a README.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::found::{Found, Series};
use super::measure::Side;
use super::scenarios::Scenario;

const WIDTH: usize = 760;
const LINE: usize = 34;
const NAMES: usize = 210;
const BARS: f64 = 420.0;
const OURS: &str = "#0f766e";
const PEER: &str = "#94a3b8";
const FLOOR: &str = "#d6d3d1";

/// One bar: its name, its value, its colour.
type Bar<'a> = (&'a str, f64, &'static str);

/// Writes the charts of a scenario into `dir`.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn write(dir: &Path, scenario: &Scenario, found: &Found) -> Result<()> {
    let file = |suffix: &str, svg: String| {
        let path = dir.join(format!("{}{suffix}.svg", scenario.id));
        std::fs::write(&path, svg).with_context(|| format!("writing {}", path.display()))
    };
    for (n, table) in found.tables.iter().enumerate() {
        let suffix = if found.tables.len() > 1 { format!("-{}", n + 1) } else { String::new() };
        let bars: Vec<Bar<'_>> =
            table.rows.iter().map(|row| (row.name, row.median.cpu_micros, colour(row.side))).collect();
        let of = format!("{}: CPU microseconds per request of the proxy processes (less is better)", table.load);
        file(&suffix, chart(scenario, &of, &bars))?;
    }
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for figure in &found.figures {
        if !kinds.contains(&(figure.what, figure.unit)) {
            kinds.push((figure.what, figure.unit));
        }
    }
    for (what, unit) in kinds {
        let same = found.figures.iter().filter(|figure| figure.what == what);
        let bars: Vec<Bar<'_>> = same
            .map(|figure| (figure.of, figure.value, if figure.of.starts_with("equerry") { OURS } else { PEER }))
            .collect();
        if bars.len() > 1 {
            let named: String = what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            file(&format!("-{named}"), chart(scenario, &format!("{what}, {unit} (less is better)"), &bars))?;
        }
    }
    if let Some(first) = found.series.first() {
        file("", lines(scenario, first.what, &found.series))?;
    }
    Ok(())
}

fn colour(side: Side) -> &'static str {
    match side {
        Side::Ours => OURS,
        Side::Peer => PEER,
        Side::Floor => FLOOR,
    }
}

fn begin(scenario: &Scenario, of: &str, height: usize) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"16\" font-weight=\"bold\" fill=\"#1f2937\">{}: {}</text>\n\
         <text x=\"16\" y=\"50\" fill=\"#4b5563\">{}</text>\n",
        scenario.id,
        escaped(scenario.title),
        escaped(of)
    )
}

fn chart(scenario: &Scenario, of: &str, bars: &[Bar<'_>]) -> String {
    let most = bars.iter().map(|(_, value, _)| *value).fold(1e-9, f64::max);
    let mut svg = begin(scenario, of, 86 + LINE * bars.len());
    for (n, (name, value, colour)) in bars.iter().enumerate() {
        let y = 68 + LINE * n;
        let width = (value / most).max(0.0) * BARS;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#1f2937\">{}</text>\n\
             <rect x=\"{NAMES}\" y=\"{y}\" width=\"{width:.1}\" height=\"22\" rx=\"3\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{}\" fill=\"#1f2937\">{value:.1}</text>",
            NAMES - 10,
            y + 16,
            escaped(name),
            NAMES as f64 + width + 8.0,
            y + 16,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Series over seconds, from zero upwards: what stands still is flat.
fn lines(scenario: &Scenario, what: &str, series: &[Series]) -> String {
    const LEFT: f64 = 60.0;
    const TOP: f64 = 70.0;
    const WIDE: f64 = 560.0;
    const HIGH: f64 = 220.0;
    let all = || series.iter().flat_map(|one| one.points.iter());
    let last = all().map(|(at, _)| *at).fold(1.0, f64::max);
    let most = all().map(|(_, value)| *value).fold(1e-9, f64::max);
    let mut svg = begin(scenario, &format!("{what}, over {last:.0} seconds"), 330);
    let _ = writeln!(
        svg,
        "<path d=\"M{LEFT} {TOP} V{} H{}\" fill=\"none\" stroke=\"#9ca3af\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#4b5563\">{most:.1}</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#4b5563\">0</text>",
        TOP + HIGH,
        LEFT + WIDE,
        LEFT - 8.0,
        TOP + 10.0,
        LEFT - 8.0,
        TOP + HIGH,
    );
    for (n, one) in series.iter().enumerate() {
        let colour = [OURS, "#b45309"][n % 2];
        let at = |(second, value): &(f64, f64)| {
            format!("{:.1},{:.1}", LEFT + second / last * WIDE, TOP + HIGH - value / most * HIGH)
        };
        let points: Vec<String> = one.points.iter().map(at).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            LEFT + 10.0 + 180.0 * n as f64,
            TOP + HIGH + 24.0,
            escaped(one.of),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

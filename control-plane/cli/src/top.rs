//! `equerry top`: who calls whom now, how often, how fast and how badly; live in a terminal, once through a pipe.

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, ValueEnum};
use equerry_control_plane::serve::admin::shapes::{CallList, EdgeReply, EndReply, SideReply};

use crate::args::{Output, OutputArgs, duration};
use crate::client::Client;
use crate::describe::{milliseconds, numbers};
use crate::failure::Failure;
use crate::get::{Query, plain};
use crate::out;

/// Fewer lines are left on the smallest screens: the head takes three.
const FEWEST: usize = 5;

/// What a wide terminal shows instead of the worst end: all of them, and what there is of TCP.
const WIDE: [&str; 6] = ["P95", "REQUESTS", "TCP", "BYTES IN", "BYTES OUT", "ENDS"];

/// `equerry top`
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Only where the caller or the Service is of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Only this caller
    #[arg(long, value_name = "NAMESPACE/ACCOUNT")]
    pub(crate) source: Option<String>,
    /// Only to this Service
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) destination: Option<String>,
    /// What comes first
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub(crate) sort: TopSort,
    /// How often it is shown anew, such as 2s
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub(crate) every: Duration,
    /// Show it once, in a terminal too; through a pipe it is shown once anyway
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What comes first in `equerry top`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopSort {
    /// The most requests a second
    #[default]
    Requests,
    /// The most failures a second
    Failed,
    /// The most refusals a second
    Refused,
    /// The slowest
    P99,
}

impl TopSort {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Failed => "failures",
            Self::Refused => "refusals",
            Self::P99 => "p99",
        }
    }
}

pub(crate) async fn run(args: &TopArgs, client: &mut Client) -> Result<(), Failure> {
    let path = path_of(args);
    let live =
        !args.once && std::io::stdout().is_terminal() && matches!(args.output.output, Output::Table | Output::Wide);
    loop {
        let mut list: CallList = client.get(&path).await?;
        if live {
            out::redraw(page(&mut list, args, Some(screen())));
        } else if !plain(args.output.output, &list) {
            out::data(page(&mut list, args, None));
        }
        if !live {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(args.every) => {}
            ended = tokio::signal::ctrl_c() => {
                return ended.map_err(|error| Failure::refused(format_args!("cannot wait for Ctrl-C: {error}")));
            }
        }
    }
}

fn path_of(args: &TopArgs) -> String {
    let mut query = Query::new("/api/v1/calls");
    query.add("namespace", args.namespace.as_deref());
    query.add("source", args.source.as_deref());
    query.add("destination", args.destination.as_deref());
    query.path()
}

/// Lines of the terminal.
fn screen() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(24, |size| usize::from(size.ws_row)).max(FEWEST + 4)
}

/// The head, the table, and how many lines did not fit.
fn page(list: &mut CallList, args: &TopArgs, lines: Option<usize>) -> String {
    let head = format!(
        "{} sidecars report; the last {} s, sorted by {}{}",
        list.reporting,
        list.window_seconds,
        args.sort.word(),
        if lines.is_some() { "; Ctrl-C ends it" } else { "" }
    );
    let head = out::styled(out::DIM, head);
    if list.items.is_empty() {
        return format!("{head}\n\nnobody called anybody (sidecars report every few seconds)");
    }
    list.items.sort_by(|a, b| rank(b, args.sort).total_cmp(&rank(a, args.sort)));
    let room = lines.map_or(usize::MAX, |lines| lines.saturating_sub(4).max(FEWEST));
    let wide = args.output.output == Output::Wide;
    let rows: Vec<_> = list.items.iter().take(room).filter_map(|edge| row(edge, wide)).collect();
    let mut headings = vec!["FROM", "TO", "REQUESTS/S", "FAILED/S", "REFUSED/S", "P50", "P99", "SEEN BY"];
    headings.extend(if wide { &WIDE[..] } else { &["WORST END"] });
    let table = out::table(&headings, &rows);
    let left = list.items.len().saturating_sub(room);
    let left =
        if left > 0 { format!("\n{}", out::styled(out::DIM, format_args!("and {left} more"))) } else { String::new() };
    format!("{head}\n\n{table}{left}")
}

/// What the sidecars of the callee saw, else those of the caller: calls that never arrived are known to these alone.
fn side(edge: &EdgeReply) -> Option<&SideReply> {
    match (&edge.callee, &edge.caller) {
        (Some(callee), Some(caller)) if caller.failed > callee.failed => Some(caller),
        (Some(callee), _) => Some(callee),
        (None, caller) => caller.as_ref(),
    }
}

fn rank(edge: &EdgeReply, sort: TopSort) -> f64 {
    let Some(side) = side(edge) else { return 0.0 };
    match sort {
        TopSort::Requests => side.requests_per_second,
        TopSort::Failed => side.failed_per_second,
        TopSort::Refused => side.refused_per_second,
        TopSort::P99 => side.p99_ms.unwrap_or(0.0),
    }
}

fn row(edge: &EdgeReply, wide: bool) -> Option<Vec<String>> {
    let side = side(edge)?;
    let seen_by = match (&edge.caller, &edge.callee) {
        (Some(_), Some(_)) => "both",
        (Some(_), None) => "caller",
        _ => "callee",
    };
    let mut row = vec![edge.source.clone(), edge.destination.clone()];
    row.extend(numbers(side));
    row.push(seen_by.to_owned());
    let told = |end: &EndReply| format!("{} {} ({})", end.status, end.reason, end.requests);
    if wide {
        row.push(milliseconds(side.p95_ms));
        row.extend([side.requests, side.connections, side.bytes_in, side.bytes_out].map(|number| number.to_string()));
        let ends: Vec<String> = side.ends.iter().map(told).collect();
        row.push(if ends.is_empty() { "-".to_owned() } else { ends.join(", ") });
    } else {
        let worst = side.ends.iter().find(|end| end.reason != "ok" || end.status >= 500);
        row.push(worst.map_or_else(|| "-".to_owned(), told));
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TopArgs,
    }

    fn side_of(rate: f64, failed: u64) -> serde_json::Value {
        json!({"requestsPerSecond": rate, "failedPerSecond": failed as f64 / 60.0, "refusedPerSecond": 0.0, "p50Ms": 1.0, "p99Ms": 9.0, "requests": 60,
            "failed": failed, "refused": 0, "connections": 0, "bytesIn": 0, "bytesOut": 0, "lastReportUnixMs": 1,
            "ends": [{"status": 200, "reason": "ok", "requests": 50}, {"status": 503, "reason": "breaker_open", "requests": failed}]})
    }

    #[test]
    fn the_busiest_come_first_and_what_only_the_caller_saw_fail_shows() {
        let mut list: CallList = serde_json::from_value(json!({"windowSeconds": 60, "reporting": 3, "items": [
            {"source": "shop/a", "destination": "shop/quiet", "callee": side_of(1.0, 0)},
            {"source": "shop/a", "destination": "shop/busy", "caller": side_of(90.0, 6), "callee": side_of(80.0, 0)}]}))
        .unwrap();
        let args = Line::parse_from(["top"]).args;
        let text = anstream::adapter::strip_str(&page(&mut list, &args, None)).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "3 sidecars report; the last 60 s, sorted by requests");
        assert!(
            lines[3].starts_with("shop/a   shop/busy    90.0") && lines[3].ends_with("both      503 breaker_open (6)"),
            "{text}"
        );
        assert!(lines[4].starts_with("shop/a   shop/quiet   1.00"), "{text}");
    }

    #[test]
    fn a_wide_screen_shows_every_end_and_what_there_is_of_tcp() {
        let mut busy = side_of(80.0, 6);
        (busy["p95Ms"], busy["connections"], busy["bytesIn"], busy["bytesOut"]) =
            (json!(7.5), json!(4), json!(1234), json!(99));
        let mut list: CallList = serde_json::from_value(json!({"windowSeconds": 60, "reporting": 1, "items": [
            {"source": "shop/a", "destination": "shop/busy", "callee": busy}]}))
        .unwrap();
        let text = page(&mut list, &Line::parse_from(["top", "-o", "wide"]).args, None);
        let text = anstream::adapter::strip_str(&text).to_string();
        for (heading, cell) in
            [("P95", "7.5 ms"), ("REQUESTS", "60"), ("TCP", "4"), ("BYTES IN", "1234"), ("BYTES OUT", "99")]
        {
            assert!(text.contains(heading) && text.contains(&format!("   {cell}")), "{heading} {cell}: {text}");
        }
        assert!(text.ends_with("200 ok (50), 503 breaker_open (6)"), "{text}");
    }

    #[test]
    fn a_small_screen_says_how_much_it_leaves_out() {
        let items: Vec<_> = (0..40).map(|n| json!({"source": "shop/a", "destination": format!("shop/s{n}"), "callee": side_of(f64::from(n), 0)})).collect();
        let mut list: CallList =
            serde_json::from_value(json!({"windowSeconds": 60, "reporting": 1, "items": items})).unwrap();
        let text = page(&mut list, &Line::parse_from(["top"]).args, Some(20));
        assert!(text.lines().count() <= 20 && text.contains("and 24 more"), "{text}");
    }
}

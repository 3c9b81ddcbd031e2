//! An explanation for people: one line a step, a mark, what was looked at, why, and where it was written.

use equerry_policies::policy::Origin;
use equerry_traffic::explain::{Outcome, Step};

use super::walk::{Explanation, Stage, Verdict};
use crate::out;

/// The whole explanation.
pub(super) fn tell(explanation: &Explanation) -> String {
    let mut lines = vec![format!("{} from {}", out::styled(out::HEAD, &explanation.request), explanation.from)];
    if let Some(live) = &explanation.live {
        lines.push(format!("as {} decides now, at epoch {}", live.id, live.epoch));
    }
    let refused_here = !explanation.verdict.allowed && explanation.callees.is_empty();
    if !explanation.caller.is_empty() || explanation.live.is_none() {
        lines.push(format!("\n{}", out::styled(out::HEAD, "the caller's sidecar")));
        stages(&explanation.caller, refused_here, &mut lines);
    }
    for callee in &explanation.callees {
        let account = callee.account.as_ref().map_or_else(String::new, |account| format!(", running as {account}"));
        let share = if explanation.callees.len() > 1 {
            format!(", {:.1}% of the requests", callee.percent)
        } else {
            String::new()
        };
        lines.push(format!(
            "\n{}",
            out::styled(
                out::HEAD,
                format_args!("the sidecar of {} port {}{account}{share}", callee.service, callee.port)
            )
        ));
        stages(&callee.stages, !callee.verdict.allowed, &mut lines);
        if explanation.callees.len() > 1 {
            lines.push(format!("  {}", verdict(&callee.verdict)));
        }
    }
    let refusing: f64 =
        explanation.callees.iter().filter(|callee| !callee.verdict.allowed).map(|callee| callee.percent).sum();
    let part =
        if refusing > 0.0 && refusing < 99.95 { format!(" ({refusing:.1}% of the requests)") } else { String::new() };
    lines.push(format!("\n{}{part}", verdict(&explanation.verdict)));
    if explanation.live.is_some() && explanation.verdict.allowed && explanation.callees.is_empty() {
        lines.push(
            "to leave; what its callee would say, the callee's sidecar tells: --proxy there, --from this one"
                .to_owned(),
        );
    }
    lines.join("\n")
}

fn verdict(verdict: &Verdict) -> String {
    let status = verdict.status.map_or_else(String::new, |status| format!(" {status}"));
    let detail = verdict.detail.as_deref().unwrap_or_default();
    if verdict.allowed {
        let told = if detail.is_empty() { String::new() } else { format!("{status}: {detail}") };
        return format!("{}{told}", out::styled(out::GOOD, "allowed"));
    }
    let place = verdict
        .origin
        .as_ref()
        .map(place)
        .filter(|place| !place.is_empty())
        .map_or_else(String::new, |place| format!(" ({place})"));
    format!("{}{status} {}: {detail}{place}", out::styled(out::BAD, "refused"), verdict.reason)
}

fn stages(stages: &[Stage], refused: bool, lines: &mut Vec<String>) {
    for (index, stage) in stages.iter().enumerate() {
        let last = refused && index + 1 == stages.len();
        for (number, step) in stage.steps.iter().enumerate() {
            let name = if number == 0 { &*stage.name } else { "" };
            lines.push(line(name, step, last));
        }
    }
}

/// `refusing`: the stage ended the request, so what decided is bad news.
fn line(stage: &str, step: &Step, refusing: bool) -> String {
    let (mark, style) = match (step.outcome, refusing) {
        (Outcome::Decided, false) => ("+", out::GOOD),
        (Outcome::Decided, true) => ("x", out::BAD),
        (Outcome::NoMatch, true) => ("-", out::NOTE),
        (Outcome::NoMatch | Outcome::TooLate | Outcome::NotHere, _) => ("-", out::DIM),
        (Outcome::Noted, _) => ("!", out::NOTE),
    };
    let place = place(&step.origin);
    let place = if place.is_empty() { String::new() } else { out::styled(out::DIM, format_args!("  [{place}]")) };
    format!("  {stage:<13} {} {}: {}{place}", out::styled(style, mark), step.subject, step.because)
}

/// `FILE:LINE`.
fn place(origin: &Origin) -> String {
    match (&origin.file, origin.line) {
        (Some(file), 0) => file.clone(),
        (Some(file), line) => format!("{file}:{line}"),
        (None, _) => String::new(),
    }
}

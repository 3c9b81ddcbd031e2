//! `equerry tap`: single calls as they end, anywhere in the mesh, with the reason of each that did not end well.

use std::collections::BTreeMap;

use clap::Args;
use equerry_control_plane::serve::admin::shapes::{SampleList, SampleReply};
use equerry_traffic::refusal::Reason;
use serde_json::Value;

use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::get::{Query, plain};
use crate::out;

/// `equerry tap`
#[derive(Debug, Args)]
#[command(
    after_help = "Each look is written into the audit log; it takes the role operator.\n\nExamples:\n  equerry tap -n shop --failed\n  equerry tap --destination shop/orders --status 5xx\n  equerry tap --recent --failed --count 20"
)]
pub(crate) struct TapArgs {
    /// Only what sidecars of this namespace see
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Only what the sidecar of this instance sees
    #[arg(long, value_name = "NAMESPACE/ID")]
    pub(crate) instance: Option<String>,
    /// Only of this caller
    #[arg(long, value_name = "NAMESPACE/ACCOUNT")]
    pub(crate) source: Option<String>,
    /// Only to this Service
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) destination: Option<String>,
    /// Only calls coming in, or going out
    #[arg(long, value_name = "inbound|outbound")]
    pub(crate) direction: Option<String>,
    /// Only this method
    #[arg(long, value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// Only paths that begin so
    #[arg(long, value_name = "PREFIX")]
    pub(crate) path: Option<String>,
    /// Only this status, or a hundred of them: 503, 5xx
    #[arg(long, value_name = "STATUS")]
    pub(crate) status: Option<String>,
    /// Only what ended so, such as authz_denied
    #[arg(long, value_name = "REASON")]
    pub(crate) reason: Option<String>,
    /// Only what this tenant was charged for
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Only what failed or was refused
    #[arg(long)]
    pub(crate) failed: bool,
    /// Show calls that ended lately instead, and return
    #[arg(long)]
    pub(crate) recent: bool,
    /// Return after so many
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// At most so many a second
    #[arg(long, default_value_t = 100, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with = "recent")]
    pub(crate) per_second: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

pub(crate) async fn run(args: &TapArgs, client: &mut Client) -> Result<(), Failure> {
    if args.recent {
        let mut query = Query::new("/api/v1/calls/recent");
        filter(args, &mut query);
        query.add("limit", args.count.map(|count| count.min(1_000).to_string()).as_deref());
        let list: SampleList = client.get(&query.path()).await?;
        return recent(args.output.output, &list);
    }
    let mut query = Query::new("/api/v1/calls/tap");
    filter(args, &mut query);
    query.add("perSecond", Some(args.per_second.to_string()).as_deref());
    let mut events = client.events(&query.path()).await?;
    let mut seen = Seen::default();
    let ended = loop {
        let event = tokio::select! {
            event = events.next() => event?,
            ended = tokio::signal::ctrl_c() => break ended.map_err(|error| Failure::refused(format_args!("cannot wait for Ctrl-C: {error}"))),
        };
        let Some(event) = event else {
            break Err(Failure::refused("the control plane ended the stream").hint("run the command again"));
        };
        match event.name.as_str() {
            "call" => {
                let sample: SampleReply = event.read()?;
                seen.call(&sample);
                tell(args.output.output, &sample);
                if args.count.is_some_and(|count| seen.calls >= count) {
                    break Ok(());
                }
            }
            "told" => seen.told(&event.read::<Value>()?),
            "error" => {
                let problem: Value = event.read()?;
                let detail = problem.get("detail").and_then(Value::as_str).unwrap_or("the control plane ended it");
                break Err(Failure::refused(detail));
            }
            _ => {}
        }
    };
    if args.output.output != Output::Json {
        out::say(seen.legend());
    }
    ended
}

fn filter(args: &TapArgs, query: &mut Query) {
    let texts = [
        ("namespace", &args.namespace),
        ("instance", &args.instance),
        ("source", &args.source),
        ("destination", &args.destination),
        ("direction", &args.direction),
        ("method", &args.method),
        ("path", &args.path),
        ("status", &args.status),
        ("reason", &args.reason),
        ("tenant", &args.tenant),
    ];
    for (name, value) in texts {
        query.add(name, value.as_deref());
    }
    query.add("failed", args.failed.then_some("1"));
}

fn recent(output: Output, list: &SampleList) -> Result<(), Failure> {
    if plain(output, list) {
        return Ok(());
    }
    let mut seen = Seen::default();
    for sample in list.items.iter().rev() {
        seen.call(sample);
        tell(output, sample);
    }
    out::say(seen.legend());
    if list.answered < list.asked || list.left_out > 0 {
        let out = list.left_out;
        out::say(format_args!("{} of {} sidecars answered in time; {out} were not asked", list.answered, list.asked));
    }
    Ok(())
}

fn tell(output: Output, sample: &SampleReply) {
    match output {
        Output::Json => out::data(serde_json::json!(sample)),
        Output::Yaml => out::data(format_args!("{}\n---", out::yaml(sample))),
        Output::Name => out::data(sample.request_id.as_deref().unwrap_or("-")),
        Output::Table | Output::Wide => out::data(line(sample, output == Output::Wide)),
    }
}

/// One call on one line: when, where, who to whom, what, and how it ended.
fn line(sample: &SampleReply, wide: bool) -> String {
    let well = sample.reason == "ok" && sample.status < 500;
    let style = match sample.status {
        _ if !well => out::BAD,
        400..=499 => out::NOTE,
        _ => out::GOOD,
    };
    let status = if sample.status == 0 { sample.protocol.clone() } else { sample.status.to_string() };
    let way = if sample.direction == "inbound" { "in " } else { "out" };
    let clock = sample.started_unix_ms / 1000 % 86_400;
    let mut text = format!(
        "{} {way} {} -> {}  {} {}  {}  {:.1} ms",
        out::styled(
            out::DIM,
            format_args!(
                "{:02}:{:02}:{:02}.{:03}",
                clock / 3600,
                clock / 60 % 60,
                clock % 60,
                sample.started_unix_ms % 1000
            )
        ),
        sample.source.as_deref().unwrap_or("unknown"),
        sample.destination.as_deref().unwrap_or("unknown"),
        sample.method.as_deref().unwrap_or("-"),
        sample.path.as_deref().unwrap_or("-"),
        out::styled(style, status),
        sample.duration_ms,
    );
    if sample.attempts > 1 {
        text.push_str(&format!("  {} tries", sample.attempts));
    }
    if sample.reason != "ok" {
        text.push_str(&format!("  {}", out::styled(style, &sample.reason)));
    }
    for more in explained(sample) {
        text.push_str(&format!("  {}", out::styled(out::DIM, more)));
    }
    if wide {
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        text.push_str(&format!(
            "  seen by {} route {} upstream {} tenant {} bytes {}/{} request {} trace {} epoch {}",
            sample.instance,
            or(&sample.route),
            or(&sample.upstream),
            or(&sample.tenant),
            sample.bytes_in,
            sample.bytes_out,
            or(&sample.request_id),
            or(&sample.trace_id),
            sample.epoch
        ));
    }
    text
}

/// Policy and detail; what only repeats the reason, or a part of the other, is left out.
fn explained(sample: &SampleReply) -> Vec<&str> {
    let mut texts: Vec<&str> = [&sample.policy, &sample.detail].into_iter().flatten().map(String::as_str).collect();
    texts.retain(|text| !text.is_empty() && *text != sample.reason);
    texts.dedup();
    let repeats = |text: &str| texts.iter().any(|other| *other != text && other.contains(text));
    texts.iter().copied().filter(|text| !repeats(text)).collect()
}

/// What went by.
#[derive(Debug, Default)]
struct Seen {
    calls: u64,
    reasons: BTreeMap<String, u64>,
    proxies: u64,
    dropped: u64,
}

impl Seen {
    fn call(&mut self, sample: &SampleReply) {
        self.calls += 1;
        *self.reasons.entry(sample.reason.clone()).or_default() += 1;
    }

    fn told(&mut self, told: &Value) {
        let number = |name| told.get(name).and_then(Value::as_u64).unwrap_or_default();
        (self.proxies, self.dropped) = (number("proxies"), number("dropped"));
    }

    /// How many calls went by, and what each reason among them means.
    fn legend(&self) -> String {
        let mut text = format!("{} calls", self.calls);
        if self.dropped > 0 {
            text.push_str(&format!("; {} more were left out (--per-second shows more)", self.dropped));
        }
        for (word, count) in self.reasons.iter().filter(|(word, _)| *word != "ok") {
            let meaning = Reason::ALL
                .iter()
                .find(|reason| reason.as_str() == word)
                .map_or("of another version", |reason| reason.meaning());
            text.push_str(&format!("\n  {count} x {word}: {meaning}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(status: u16, reason: &str) -> SampleReply {
        SampleReply {
            instance: "shop/orders-1".to_owned(),
            direction: "inbound".to_owned(),
            started_unix_ms: 3_723_004,
            duration_ms: 1.25,
            source: Some("shop/frontend".to_owned()),
            destination: Some("shop/orders".to_owned()),
            method: Some("GET".to_owned()),
            path: Some("/orders/7".to_owned()),
            protocol: "HTTP/2".to_owned(),
            status,
            reason: reason.to_owned(),
            attempts: 1,
            ..SampleReply::default()
        }
    }

    #[test]
    fn a_call_is_one_line_and_a_refusal_names_its_reason_and_policy() {
        let shown = |sample: &SampleReply| anstream::adapter::strip_str(&line(sample, false)).to_string();
        assert_eq!(
            shown(&sample(200, "ok")),
            "01:02:03.004 in  shop/frontend -> shop/orders  GET /orders/7  200  1.2 ms"
        );
        let refused = SampleReply {
            policy: Some("AuthorizationPolicy shop/no-delete".to_owned()),
            ..sample(403, "policy_denied")
        };
        assert!(shown(&refused).ends_with("403  1.2 ms  policy_denied  AuthorizationPolicy shop/no-delete"));
    }

    #[test]
    fn nothing_is_said_twice() {
        let twice = |detail: &str| {
            let sample = SampleReply {
                policy: Some("shop/no-delete rules[0]".to_owned()),
                detail: Some(detail.to_owned()),
                ..sample(403, "authz_denied")
            };
            anstream::adapter::strip_str(&line(&sample, false)).to_string()
        };
        let once = "403  1.2 ms  authz_denied  shop/no-delete rules[0]";
        assert!(twice("authz_denied").ends_with(once), "{}", twice("authz_denied"));
        assert!(twice("shop/no-delete rules[0]").ends_with(once));
        let longer = "shop/no-delete rules[0] forbids it";
        assert!(twice(longer).ends_with(&format!("authz_denied  {longer}")), "{}", twice(longer));
        assert!(twice("as orders-1 saw it").ends_with(&format!("{once}  as orders-1 saw it")));
    }

    #[test]
    fn the_legend_says_what_each_reason_means_and_what_was_left_out() {
        let mut seen = Seen::default();
        seen.call(&sample(200, "ok"));
        seen.call(&sample(503, Reason::BreakerOpen.as_str()));
        seen.told(&serde_json::json!({"proxies": 2, "dropped": 7}));
        let legend = seen.legend();
        assert!(legend.starts_with("2 calls; 7 more were left out"), "{legend}");
        assert!(
            legend.contains(&format!("1 x {}: {}", Reason::BreakerOpen.as_str(), Reason::BreakerOpen.meaning())),
            "{legend}"
        );
    }
}

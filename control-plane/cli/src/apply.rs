//! `equerry apply`: makes documents true, all or none, and with `--wait` proves that every connected proxy has them.

use std::time::{Duration, Instant};

use equerry_control_plane::serve::admin::shapes::{ApplyReply, EpochReply, EpochState, Problem};
use http::{Method, StatusCode};
use serde_json::json;

use crate::args::{ApplyArgs, Output};
use crate::client::Client;
use crate::complaints;
use crate::explain;
use crate::failure::{Code, Failure};
use crate::files;
use crate::out;

/// The first wait between two looks at an epoch; it doubles up to the longest.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_millis(200);

pub(crate) async fn run(args: &ApplyArgs, client: &mut Client) -> Result<(), Failure> {
    let output = args.output.output;
    let files = files::collect(&args.files.files)?;
    if !args.skip_tests {
        explain::before_apply(client, &files).await?;
    }
    let path = if args.dry_run { "/api/v1/apply?dryRun=true" } else { "/api/v1/apply" };
    let started = Instant::now();
    let answer = client.ask(Method::POST, path, Some(&json!({"files": files}))).await?;
    if answer.status == StatusCode::UNPROCESSABLE_ENTITY {
        let problem: Problem = answer.read()?;
        if problem.complaints.is_empty() {
            return Err(answer.failure());
        }
        return Err(complaints::show(&problem.complaints, "; nothing was changed", output));
    }
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    let reply: ApplyReply = answer.read()?;
    if matches!(output, Output::Table | Output::Wide) {
        complaints::warn(&reply.warnings);
    }
    if !args.wait {
        tell(&reply, output);
        return Ok(());
    }
    if matches!(output, Output::Table | Output::Wide | Output::Name) {
        tell(&reply, output);
    }
    let proof = wait(client, reply.epoch, started, args.timeout).await?;
    let took = started.elapsed();
    if matches!(output, Output::Json | Output::Yaml) {
        let both = json!({"epoch": reply.epoch, "changes": reply.changes, "warnings": reply.warnings, "complete": proof.complete, "milliseconds": took.as_millis() as u64, "proxies": proof.proxies});
        out::data(if output == Output::Json { out::json(&both) } else { out::yaml(&both) });
    }
    let live = verdict(&proof, took, args.timeout)?;
    if matches!(output, Output::Table | Output::Wide | Output::Name) {
        out::data(live);
    }
    Ok(())
}

/// What was changed, one document a line, then the epoch.
fn tell(reply: &ApplyReply, output: Output) {
    match output {
        Output::Json => out::data(out::json(reply)),
        Output::Yaml => out::data(out::yaml(reply)),
        Output::Name => reply
            .changes
            .iter()
            .for_each(|change| out::data(name_of(&change.kind, change.namespace.as_deref(), &change.name))),
        Output::Table | Output::Wide => {
            for change in &reply.changes {
                let style = if change.action == "unchanged" { out::DIM } else { out::GOOD };
                let dry = if reply.dry_run { " (dry run)" } else { "" };
                out::data(format_args!(
                    "{} {}{dry}",
                    name_of(&change.kind, change.namespace.as_deref(), &change.name),
                    out::styled(style, &change.action)
                ));
            }
            if !reply.dry_run {
                out::data(format_args!("epoch {}", reply.epoch));
            }
        }
    }
}

/// `HTTPRoute/shop/orders`, or `Tenant/acme`.
pub(crate) fn name_of(kind: &str, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{kind}/{namespace}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

/// Looks at the epoch until it is complete, a proxy refused it, or the time is over.
async fn wait(client: &mut Client, epoch: u64, started: Instant, timeout: Duration) -> Result<EpochReply, Failure> {
    let path = format!("/api/v1/epochs/{epoch}");
    let mut pause = FIRST_LOOK;
    loop {
        let reply: EpochReply = client.get(&path).await?;
        let nacked = reply.proxies.iter().any(|proxy| proxy.state == EpochState::Nacked);
        if reply.complete || nacked || started.elapsed() >= timeout {
            return Ok(reply);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

/// The proof in words, or the failure that ends with 3 or 4.
fn verdict(reply: &EpochReply, took: Duration, timeout: Duration) -> Result<String, Failure> {
    let named = |state: EpochState| {
        reply
            .proxies
            .iter()
            .filter(|proxy| proxy.state == state)
            .map(|proxy| proxy.instance.as_str())
            .collect::<Vec<_>>()
    };
    let (acked, pending, away) = (named(EpochState::Acked), named(EpochState::Pending), named(EpochState::Away));
    let nacked: Vec<_> = reply.proxies.iter().filter(|proxy| proxy.state == EpochState::Nacked).collect();
    let connected = acked.len() + pending.len() + nacked.len();
    if !away.is_empty() {
        out::say(format_args!("{}: {} (will get it when back)", out::styled(out::NOTE, "away"), away.join(", ")));
    }
    if !nacked.is_empty() {
        let mut message =
            format!("epoch {} was refused by {} of {connected} connected proxies", reply.epoch, nacked.len());
        for proxy in nacked {
            message.push_str(&format!("\n  {}: {}", proxy.instance, proxy.complaints.join("; ")));
        }
        return Err(Failure::refused(message).with_code(Code::Nacked).hint(
            "those proxies keep the last good version of what they refused; their program is of another version than the control plane's: `equerry get proxies` shows both",
        ));
    }
    if !reply.complete {
        let message = format!(
            "epoch {} is not live everywhere after {}: {} of {connected} connected proxies have it, waiting for {}",
            reply.epoch,
            written(timeout),
            acked.len(),
            pending.join(", ")
        );
        return Err(Failure::refused(message).with_code(Code::Timeout).hint(format_args!(
            "it is stored and will arrive; `equerry get epoch {}` shows how far it is",
            reply.epoch
        )));
    }
    Ok(format!(
        "epoch {} {} on {} of {connected} connected proxies in {}",
        reply.epoch,
        out::styled(out::GOOD, "live"),
        acked.len(),
        written(took)
    ))
}

/// `38 ms`, `1.24 s`.
fn written(took: Duration) -> String {
    if took < Duration::from_secs(1) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{:.2} s", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use equerry_control_plane::serve::admin::shapes::EpochProxy;

    use super::*;

    fn reply(complete: bool, states: &[(&str, EpochState)]) -> EpochReply {
        let proxies = states.iter().map(|(instance, state)| EpochProxy {
            instance: (*instance).to_owned(),
            state: *state,
            complaints: vec!["unknown field x".to_owned()],
        });
        EpochReply { epoch: 7, complete, proxies: proxies.collect() }
    }

    #[test]
    fn a_refused_epoch_ends_with_4_and_the_complaint_even_before_the_time_is_over() {
        let reply = reply(false, &[("a", EpochState::Acked), ("b", EpochState::Nacked), ("c", EpochState::Pending)]);
        let failure = verdict(&reply, Duration::from_millis(5), Duration::from_secs(30)).unwrap_err();
        assert_eq!(failure.code, Code::Nacked);
        assert_eq!(failure.message, "epoch 7 was refused by 1 of 3 connected proxies\n  b: unknown field x");
    }

    #[test]
    fn a_late_epoch_ends_with_3_and_names_those_waited_for() {
        let reply = reply(false, &[("a", EpochState::Acked), ("b", EpochState::Pending), ("c", EpochState::Away)]);
        let failure = verdict(&reply, Duration::from_secs(30), Duration::from_secs(30)).unwrap_err();
        assert_eq!(failure.code, Code::Timeout);
        assert!(failure.message.ends_with("1 of 2 connected proxies have it, waiting for b"), "{}", failure.message);
    }

    #[test]
    fn those_away_hold_nobody_up() {
        let live = verdict(
            &reply(true, &[("a", EpochState::Acked), ("b", EpochState::Away)]),
            Duration::from_millis(38),
            Duration::from_secs(30),
        )
        .unwrap();
        assert_eq!(
            anstream::adapter::strip_str(&live).to_string(),
            "epoch 7 live on 1 of 1 connected proxies in 38 ms"
        );
    }
}

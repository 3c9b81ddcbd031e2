//! `equerry certs`: what anchors what, who holds which certificate until when, and when the mesh goes dark if nothing renews.
//!
//! `rotate` and `trust` (revoke, restore) change whom the mesh believes.

mod rotate;
mod trust;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use equerry_control_plane::serve::admin::shapes::{AnchorReply, CertificateReport, LeafReply};

use crate::args::{OutputArgs, duration};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::get::plain;
use crate::out;

/// What signs should be replaced with more than this left; the alert rules say the same.
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// `equerry certs`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "A workload's certificate is renewed at two thirds of its life. --expiring counts roots and issuing certificates that end within the time, and workloads' certificates that should have been renewed long ago: those with less than a quarter of their life left. With one or more it exits with 1.\n\nExamples:\n  equerry certs\n  equerry certs --expiring 14d\n  equerry certs rotate start --wait\n  equerry certs revoke shop/frontend --reason 'laptop stolen' --wait"
)]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    command: Option<CertsCommand>,
    /// Show only what ends within this time, such as 14d, and exit with 1 if there is any
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    expiring: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What can be done with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Replace the root that everything is anchored in, one step at a time, stranding nobody
    Rotate {
        #[command(subcommand)]
        step: Step,
    },
    /// Believe an identity no more: no certificate for it, and its connections end throughout the mesh
    Revoke {
        /// NAMESPACE/ACCOUNT, or spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT
        #[arg(value_name = "IDENTITY")]
        identity: String,
        /// Why, for the audit log and those who come later
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Believe a revoked identity again
    Restore {
        /// NAMESPACE/ACCOUNT, or spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT
        #[arg(value_name = "IDENTITY")]
        identity: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show identities that are revoked
    Revocations {
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// A step of a rotation.
#[derive(Debug, Subcommand)]
pub(crate) enum Step {
    /// Bring a new root in: both are believed from now on, the old one still signs
    Start {
        #[command(flatten)]
        bring: BringArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take the next step: the new root signs; then the old one is believed no more
    Advance {
        /// Leave behind who would be stranded: each needs a new join token
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show how far it is, and who holds up the next step
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give it up, while the new root has signed nothing yet
    Cancel,
}

/// An authority that is brought instead of made.
#[derive(Debug, Args)]
pub(crate) struct BringArgs {
    /// PEM of somebody else's root
    #[arg(long, value_name = "FILE", requires_all = ["issuer_cert", "issuer_key"])]
    root: Option<PathBuf>,
    /// PEM of an issuing certificate under it, then of those between the two
    #[arg(long, value_name = "FILE", requires = "root")]
    issuer_cert: Option<PathBuf>,
    /// PEM of that certificate's key (PKCS#8)
    #[arg(long, value_name = "FILE", requires = "root")]
    issuer_key: Option<PathBuf>,
}

/// Whether to wait until every proxy has it.
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Return when nobody lacks it any more
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 30s or 2m
    #[arg(long, default_value = "1m", value_parser = duration, value_name = "DURATION", requires = "wait")]
    timeout: Duration,
}

pub(crate) async fn run(args: &CertsArgs, client: &mut Client) -> Result<(), Failure> {
    match &args.command {
        None => show(args, client).await,
        Some(CertsCommand::Rotate { step }) => rotate::run(step, client).await,
        Some(CertsCommand::Revoke { identity, reason, wait }) => trust::revoke(identity, reason, wait, client).await,
        Some(CertsCommand::Restore { identity, wait }) => trust::restore(identity, wait, client).await,
        Some(CertsCommand::Revocations { output }) => trust::list(output, client).await,
    }
}

async fn show(args: &CertsArgs, client: &mut Client) -> Result<(), Failure> {
    let mut report: CertificateReport = client.get("/api/v1/certificates").await?;
    let soon = args.expiring.map(|within| expiring(&report, within));
    if let Some(within) = args.expiring {
        let (now, lifetime) = (report.now_unix, report.lifetime_seconds);
        report.rotation.anchors.retain(|anchor| anchor_ends(anchor, now, within));
        report.leaves.retain(|leaf| leaf_ends(leaf, now, lifetime, within));
    }
    if !plain(args.output.output, &report) {
        if args.expiring.is_none() || soon > Some(0) {
            tell(&report);
        }
        if let (Some(0), Some(within)) = (soon, args.expiring) {
            out::data(format_args!("nothing ends within {}", apart(within.as_secs())));
        }
    }
    match (soon, args.expiring) {
        (Some(count), Some(within)) if count > 0 => Err(Failure::refused(format_args!(
            "{count} certificate{} end{} within {}",
            if count == 1 { "" } else { "s" },
            if count == 1 { "s" } else { "" },
            apart(within.as_secs())
        ))
        .with_code(Code::Refused)
        .hint("a root or an issuing certificate: `equerry certs rotate start`; a workload's: its sidecar cannot renew, look into its log")),
        _ => Ok(()),
    }
}

/// How many certificates end within a time although somebody should have seen to it.
fn expiring(report: &CertificateReport, within: Duration) -> usize {
    let anchors = report.rotation.anchors.iter().filter(|anchor| anchor_ends(anchor, report.now_unix, within));
    let leaves = report.leaves.iter().filter(|leaf| leaf_ends(leaf, report.now_unix, report.lifetime_seconds, within));
    anchors.count() + leaves.count()
}

fn anchor_ends(anchor: &AnchorReply, now: u64, within: Duration) -> bool {
    anchor.root_not_after_unix.min(anchor.issuing_not_after_unix).saturating_sub(now) <= within.as_secs()
}

/// A workload's certificate is short-lived on purpose: only one that should have been renewed long ago counts, and only
/// where a proxy still shows it.
fn leaf_ends(leaf: &LeafReply, now: u64, lifetime: u64, within: Duration) -> bool {
    leaf.instance.is_some() && leaf.not_after_unix.saturating_sub(now) <= within.as_secs().min(lifetime / 4)
}

/// Certificates that somebody should see to, one line each: what signs ends within a month, or what a proxy shows was not renewed.
pub(crate) fn overdue(report: &CertificateReport) -> Vec<String> {
    let now = report.now_unix;
    let anchors = report.rotation.anchors.iter().filter(|anchor| anchor.signs && anchor_ends(anchor, now, MONTH));
    let anchors = anchors.map(|anchor| {
        let end = anchor.root_not_after_unix.min(anchor.issuing_not_after_unix);
        format!("what signs every certificate ends in {}: `equerry certs`", ends(end, now))
    });
    let leaves = report.leaves.iter().filter(|leaf| leaf_ends(leaf, now, report.lifetime_seconds, MONTH));
    let leaves = leaves.map(|leaf| {
        let (who, end) = (leaf.instance.as_deref().unwrap_or(&leaf.spiffe_id), ends(leaf.not_after_unix, now));
        format!("{who}: its certificate was not renewed and ends in {end}; its log says why")
    });
    anchors.chain(leaves).collect()
}

fn tell(report: &CertificateReport) {
    let (now, rotation) = (report.now_unix, &report.rotation);
    let phase = match rotation.phase.as_str() {
        "trusting" => "; rotation under way: both roots are believed, the old one signs",
        "issuing" => "; rotation under way: both roots are believed, the new one signs",
        _ => "",
    };
    out::data(format_args!("trust domain {}, generation {}{phase}\n", report.trust_domain, rotation.generation));
    let anchors: Vec<Vec<String>> = rotation.anchors.iter().map(|anchor| anchor_row(anchor, now)).collect();
    out::data(out::table(&["ROOT", "SIGNS", "MADE BY", "ROOT ENDS IN", "ISSUER ENDS IN"], &anchors));
    let leaf = |leaf: &LeafReply| {
        let signing = rotation.anchors.iter().find(|anchor| Some(&anchor.pin) == leaf.root.as_ref());
        vec![
            leaf.spiffe_id.clone(),
            leaf.instance.clone().unwrap_or_else(|| "- (nobody connected shows it)".to_owned()),
            leaf.root.as_deref().map_or("?", short).to_owned()
                + if signing.is_some_and(|one| !one.signs) { " (old)" } else { "" },
            leaf.generation.map_or_else(|| "?".to_owned(), |generation| generation.to_string()),
            ends(leaf.not_after_unix, now),
        ]
    };
    let leaves: Vec<Vec<String>> = report.leaves.iter().map(leaf).collect();
    if leaves.is_empty() {
        out::data("\nno workload holds a certificate yet: `equerry token create join` lets one in");
    } else {
        out::data(format_args!(
            "\n{}",
            out::table(&["IDENTITY", "INSTANCE", "ROOT", "GENERATION", "ENDS IN"], &leaves)
        ));
    }
    for leaf in &report.leaves {
        if let (Some(instance), Some(doubt)) = (&leaf.instance, &leaf.doubt) {
            out::data(format_args!("\n{instance} is not believed about its certificate: {doubt}"));
        }
    }
    if let Some(dark) = &report.dark {
        let issuing = rotation.anchors.iter().find(|anchor| anchor.signs).map(|anchor| anchor.issuing_not_after_unix);
        out::data(format_args!(
            "\nif nothing renews from now on, {} goes dark first, in {}, and the whole mesh in {}{}",
            dark.first,
            ends(dark.first_unix, now),
            ends(dark.last_unix, now),
            issuing.map(|end| format!("; what signs ends in {}", ends(end, now))).unwrap_or_default()
        ));
    }
    if report.revoked > 0 {
        out::data(format_args!("{} identities are revoked: `equerry certs revocations`", report.revoked));
    }
}

fn anchor_row(anchor: &AnchorReply, now: u64) -> Vec<String> {
    let signs = match (anchor.signs, anchor.coming) {
        (true, _) => out::styled(out::GOOD, "yes"),
        (false, true) => "not yet".to_owned(),
        (false, false) => "no more".to_owned(),
    };
    let made = if anchor.brought { "brought" } else { "this control plane" };
    let (root, issuing) = (ends(anchor.root_not_after_unix, now), ends(anchor.issuing_not_after_unix, now));
    vec![short(&anchor.pin).to_owned(), signs, made.to_owned(), root, issuing]
}

/// Enough of a pin to tell it from others.
fn short(pin: &str) -> &str {
    pin.get(..12).unwrap_or(pin)
}

/// How far away a moment is.
fn ends(at: u64, now: u64) -> String {
    if at <= now { out::styled(out::BAD, "over") } else { apart(at - now) }
}

/// `25 s`, `12 min`, `7 h`, `30 d`: as exact as anybody needs.
fn apart(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(instance: Option<&str>, left: u64) -> LeafReply {
        LeafReply {
            spiffe_id: "spiffe://equerry.local/ns/shop/sa/web".into(),
            instance: instance.map(str::to_owned),
            serial: None,
            root: None,
            not_after_unix: 1000 + left,
            generation: None,
            doubt: None,
        }
    }

    #[test]
    fn a_short_life_is_no_alarm_but_a_renewal_that_did_not_come_is() {
        let fortnight = Duration::from_secs(14 * 86_400);
        let day = 86_400;
        assert!(!leaf_ends(&leaf(Some("shop/web-1"), day / 3), 1000, day, fortnight), "just before its renewal");
        assert!(leaf_ends(&leaf(Some("shop/web-1"), day / 5), 1000, day, fortnight));
        assert!(!leaf_ends(&leaf(None, day / 5), 1000, day, fortnight), "nobody shows it");
        assert!(!leaf_ends(&leaf(Some("shop/web-1"), day / 5), 1000, day, Duration::from_secs(60)));
    }

    #[test]
    fn whichever_ends_first_of_root_and_issuer_counts() {
        let anchor = |root, issuing| AnchorReply {
            pin: "ab".into(),
            signs: true,
            coming: false,
            brought: false,
            root_not_after_unix: root,
            issuing_not_after_unix: issuing,
        };
        let within = Duration::from_secs(100);
        assert!(!anchor_ends(&anchor(2000, 2000), 1000, within));
        assert!(anchor_ends(&anchor(1100, 2000), 1000, within));
        assert!(anchor_ends(&anchor(2000, 1099), 1000, within));
        assert!(anchor_ends(&anchor(2000, 900), 1000, within), "over already");
    }

    #[test]
    fn what_somebody_should_see_to_is_named_with_its_end() {
        let report = |issuing: u64, leaves: serde_json::Value| -> CertificateReport {
            serde_json::from_value(serde_json::json!({"trustDomain": "equerry.local", "nowUnix": 1000, "lifetimeSeconds": 86_400,
                "phase": "steady", "generation": 1, "waiting": [], "revoked": 0, "leaves": leaves,
                "anchors": [{"pin": "ab", "signs": true, "coming": false, "brought": false, "rootNotAfterUnix": 1_000_000_000, "issuingNotAfterUnix": issuing}]}))
            .unwrap()
        };
        let leaf = |left: u64| serde_json::json!([{"spiffeId": "spiffe://equerry.local/ns/shop/sa/web", "instance": "shop/web-1", "notAfterUnix": 1000 + left}]);
        assert_eq!(overdue(&report(900_000_000, leaf(30_000))), [""; 0]);
        assert_eq!(
            overdue(&report(1000 + 20 * 86_400, leaf(7_500))),
            [
                "what signs every certificate ends in 20 d: `equerry certs`",
                "shop/web-1: its certificate was not renewed and ends in 2 h; its log says why"
            ]
        );
    }

    #[test]
    fn distances_are_read_at_a_glance() {
        assert_eq!([25, 720, 25_200, 3_000_000].map(apart), ["25 s", "12 min", "7 h", "34 d"]);
    }
}

//! `equerry certs revoke`, `restore` and `revocations`: who is believed no more.

use std::time::{Duration, Instant};

use equerry_control_plane::serve::admin::shapes::{
    CertificateReport, RevocationAnswer, RevocationList, RevocationReply, RevocationRequest,
};
use equerry_policies::names::SpiffeId;
use http::Method;

use super::WaitArgs;
use crate::args::OutputArgs;
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::get::plain;
use crate::out;

const REVOCATIONS: &str = "/api/v1/certificates/revocations";
/// Between two looks at who has it.
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn revoke(identity: &str, reason: &str, wait: &WaitArgs, client: &mut Client) -> Result<(), Failure> {
    let request = RevocationRequest { identity: identity.to_owned(), reason: reason.to_owned() };
    let answer: RevocationAnswer = client.json(Method::POST, REVOCATIONS, Some(&request)).await?;
    let new = if answer.changed { "revoked" } else { "was revoked already" };
    out::data(format_args!("{} {new} (generation {} of trust)", answer.spiffe_id, answer.generation));
    in_force(&answer, wait, client).await
}

pub(super) async fn restore(identity: &str, wait: &WaitArgs, client: &mut Client) -> Result<(), Failure> {
    let account = match SpiffeId::parse(identity) {
        Ok(id) => {
            let report: CertificateReport = client.get("/api/v1/certificates").await?;
            if id.trust_domain.as_str() != report.trust_domain {
                let told = format_args!("found {id}, expected an identity of trust domain {}", report.trust_domain);
                return Err(Failure::refused(told));
            }
            id.account_name().to_string()
        }
        Err(_) => identity.to_owned(),
    };
    let answer: RevocationAnswer =
        client.json(Method::DELETE, &format!("{REVOCATIONS}/{account}"), None::<&()>).await?;
    out::data(format_args!("{} is believed again (generation {} of trust)", answer.spiffe_id, answer.generation));
    in_force(&answer, wait, client).await
}

/// With `--wait`, returns when every proxy that is connected acts on it.
async fn in_force(answer: &RevocationAnswer, wait: &WaitArgs, client: &mut Client) -> Result<(), Failure> {
    if !wait.wait {
        return Ok(());
    }
    let began = Instant::now();
    loop {
        let report: CertificateReport = client.get("/api/v1/certificates").await?;
        let shown = report.leaves.iter().filter(|leaf| leaf.instance.is_some());
        let shown: Vec<_> = shown.filter(|leaf| leaf.spiffe_id != answer.spiffe_id).collect();
        let late: Vec<&str> = shown
            .iter()
            .filter(|leaf| leaf.generation.unwrap_or(0) < answer.generation)
            .filter_map(|leaf| leaf.instance.as_deref())
            .collect();
        if late.is_empty() {
            out::data(said(shown.len(), report.limited, began.elapsed()));
            return Ok(());
        }
        if began.elapsed() >= wait.timeout {
            return Err(Failure::refused(format_args!("not in force yet on {}", late.join(", ")))
                .with_code(Code::Timeout)
                .hint("it is stored, and each acts on it as soon as it hears of it; a proxy of an older version never does"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What was seen, and no more: a token that is limited sees the proxies of some namespaces.
fn said(count: usize, limited: bool, took: Duration) -> String {
    let (whose, took) = (if limited { " that this token sees" } else { "" }, took.as_millis());
    let others = if limited { "; how others stand, an unlimited token can tell" } else { "" };
    format!("in force on {count} of {count} connected proxies{whose} in {took} ms{others}")
}

pub(super) async fn list(output: &OutputArgs, client: &mut Client) -> Result<(), Failure> {
    let list: RevocationList = client.get(REVOCATIONS).await?;
    if plain(output.output, &list) {
        return Ok(());
    }
    if list.items.is_empty() {
        out::data("no identity is revoked");
        return Ok(());
    }
    let at = |unix| equerry_certs::rfc3339(std::time::UNIX_EPOCH + Duration::from_secs(unix));
    let row = |one: &RevocationReply| {
        let reason = if one.reason.is_empty() { "-" } else { &one.reason };
        vec![one.spiffe_id.clone(), at(one.at_unix), one.by.clone(), reason.to_owned()]
    };
    let rows: Vec<_> = list.items.iter().map(row).collect();
    out::data(out::table(&["IDENTITY", "SINCE", "BY", "REASON"], &rows));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_claims_no_more_than_the_token_sees() {
        let took = Duration::from_millis(7);
        assert_eq!(said(3, false, took), "in force on 3 of 3 connected proxies in 7 ms");
        let limited = said(3, true, took);
        assert!(limited.contains("that this token sees") && limited.contains("how others stand"), "{limited}");
    }
}

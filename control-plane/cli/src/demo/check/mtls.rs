//! Only mutual TLS between members of the mesh: the chain answers, plain text and strangers do not.

use anyhow::{Context, Result, bail, ensure};

use super::{Story, knock, request_id};
use crate::demo::web::Caller;

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    let (frontend, orders) = (story.home("frontend")?, story.home("orders")?);
    let id = request_id("mtls");
    let bearer = story.bearer();
    let headers = [("authorization", bearer.as_str()), ("x-request-id", id.as_str())];
    let answer = frontend.front_door().get("frontend", "/stock", &headers).await?;
    ensure!(answer.status == 200, "frontend answered {}", answer.shown());
    let told = answer.json();
    let chain = ["/app", "/next/app", "/next/next/app"]
        .map(|place| told.pointer(place).and_then(|name| name.as_str()).unwrap_or("nobody").to_owned());
    ensure!(chain[1] == "orders" && chain[2].starts_with("inventory"), "the call went {}", chain.join(" -> "));

    let plain =
        Caller::local(orders.inbound.number()).get("orders", "/stock", &[("authorization", bearer.as_str())]).await;
    let plain = match plain {
        Ok(answer) if answer.status == 403 && answer.shown().contains("tls_required") => "403 tls_required".to_owned(),
        Ok(answer) => bail!("a plain-text call to orders' inbound port was answered {}", answer.shown()),
        Err(error) => format!("{:#}", error),
    };
    let trust = knock::trust(story.town)?;
    let other_domain = stranger_refused(story, "other.example", &trust).await?;
    let same_name = stranger_refused(story, "equerry.local", &trust).await?;
    ensure!(knock::get_over_tls(orders, &trust, None).await.is_err(), "a TLS call without a certificate was answered");

    let line = orders.logged_inbound(&id).await?;
    for (key, account) in [("source_principal", "frontend"), ("destination_principal", "orders")] {
        let expected = format!("spiffe://equerry.local/ns/shop/sa/{account}");
        ensure!(line[key] == expected.as_str(), "orders' access log says {key} {}, not {expected}", line[key]);
    }
    Ok(format!(
        "{} answers; plain text to orders' inbound: {plain}; certificate of another trust domain: {other_domain}; of another authority under our name: \
         {same_name}; access log: {} -> {}",
        chain.join(" -> "),
        line["source_principal"].as_str().unwrap_or_default(),
        line["destination_principal"].as_str().unwrap_or_default(),
    ))
}

async fn stranger_refused(story: &Story<'_>, trust_domain: &str, trust: &equerry_certs::TrustBundle) -> Result<String> {
    let stranger = knock::stranger(trust_domain, "frontend").context("making a stranger's certificate")?;
    match knock::get_over_tls(story.home("orders")?, trust, Some(&stranger)).await {
        Ok(status) => bail!("a certificate of {trust_domain} from another authority was let in (status {status})"),
        Err(error) => Ok(format!("{:?}", format!("{:#}", error))),
    }
}

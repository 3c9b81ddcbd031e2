//! Tokens: bad ones are refused with the reason, good ones become headers, forged headers are thrown away.

use anyhow::{Context, Result, bail, ensure};

use super::Story;
use crate::demo::issuer::{self, Issuer};
use crate::demo::web::Answer;

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    let good = story.facts.token();
    let mint = |token| Some(story.issuer.mint(token));
    let cases = [
        ("no token", None, "token_missing"),
        ("expired", mint(&good.clone().expired()), "token_expired"),
        ("wrong audience", mint(&good.clone().audience("somebody-else")), "token_audience"),
        ("unknown key", Some(Issuer::stranger()?.mint(&good)), "token_unknown_key"),
        ("forged signature", Some(Issuer::impostor()?.mint(&good)), "token_invalid"),
        ("alg: none", Some(issuer::unsigned(&good)), "token_algorithm"),
        ("not a token", Some("not.a.token".to_owned()), "token_invalid"),
    ];
    let mut seen = Vec::new();
    for (name, token, reason) in cases {
        if name == "wrong audience" && story.facts.rule.audiences.is_empty() {
            continue;
        }
        let answer = call(story, token.as_deref(), &[]).await?;
        ensure!(answer.status == 401, "{name}: {}", answer.shown());
        let challenge = answer.header("www-authenticate").to_owned();
        // RFC 6750 section 3: a challenge to somebody without a token names no error; the body still does.
        let told = if token.is_none() {
            challenge.starts_with("Bearer") && answer.json()["reason"] == reason
        } else {
            challenge.contains(reason)
        };
        ensure!(told, "{name}: WWW-Authenticate does not say {reason}: {challenge:?}");
        seen.push(format!("{name} 401 {reason}"));
    }
    seen.push(claims_arrive(story).await?);
    Ok(seen.join("; "))
}

/// Good tokens of a tenant and of nobody, each sent with forged copies of every header that claims are told in.
async fn claims_arrive(story: &Story<'_>) -> Result<String> {
    let told = &story.facts.rule.claims_to_headers;
    let forged: Vec<(&str, &str)> = told.iter().map(|one| (one.header.as_str(), "mallory")).collect();
    let of_tenant = story.facts.token().tenant(story.facts.tenant("globex")?);
    let mut arrived = Vec::new();
    for token in [&of_tenant, &story.facts.token()] {
        let answer = call(story, Some(&story.issuer.mint(token)), &forged).await?;
        ensure!(answer.status == 200, "a good token: {}", answer.shown());
        let json = answer.json();
        let headers = json.get("headers").context("orders did not tell its headers")?;
        for one in told {
            let seen = headers.get(&one.header).and_then(|value| value.as_str());
            match (token.text(&one.claim), seen) {
                (Some(claim), Some(seen)) if claim == seen => arrived.push(format!("{}: {seen}", one.header)),
                (None, None) => {}
                (claim, seen) => bail!("header {} is {seen:?} where the token says {claim:?}", one.header),
            }
        }
    }
    arrived.sort();
    arrived.dedup();
    Ok(format!("good token 200, orders sees {}; forged copies are gone", arrived.join(", ")))
}

/// Calls orders through frontend's sidecar, as its application does.
async fn call(story: &Story<'_>, token: Option<&str>, headers: &[(&str, &str)]) -> Result<Answer> {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers = headers.to_vec();
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    story.home("frontend")?.through_sidecar().get("orders", "/stock", &headers).await
}

//! Only orders may call inventory; a refusal is named the same way in log, answer and `explain`.

use anyhow::{Context, Result, ensure};

use super::{Story, request_id};

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    let allowed = story.home("orders")?.through_sidecar().get("inventory", "/stock", &[]).await?;
    ensure!(allowed.status == 200, "orders was answered {}", allowed.shown());

    let id = request_id("authorization");
    let answer = story.home("frontend")?.through_sidecar().get("inventory", "/stock", &[("x-request-id", &id)]).await?;
    ensure!(answer.status == 403, "frontend was answered {}", answer.shown());
    let problem = answer.json();
    ensure!(problem["reason"] == "authz_denied", "frontend was answered {}", answer.shown());

    let [v1, v2] = story.inventories()?;
    let (first, second) = (Box::pin(v1.logged_inbound(&id)), Box::pin(v2.logged_inbound(&id)));
    let (line, _) = futures_util::future::select_ok([first, second]).await?;
    let cause = line["policy"].as_str().with_context(|| format!("the access log names no policy: {line}"))?.to_owned();
    ensure!(cause.contains("shop/inventory-callers"), "the access log names {cause:?}");
    ensure!(line["reason"] == "authz_denied", "the access log's reason is {}", line["reason"]);
    ensure!(mentions(&problem, &cause), "the answer does not say {cause:?}: {problem}");

    let policies = story.town.policies().display().to_string();
    let explained = story
        .town
        .equerry(&[
            "explain",
            "--policies",
            &policies,
            "--from",
            "shop/frontend",
            "-o",
            "json",
            "http://inventory/stock",
        ])
        .await?;
    ensure!(
        explained.code == Some(5),
        "explain ended with {:?}, not 5 (refused): {}",
        explained.code,
        explained.everything()
    );
    let explanation: serde_json::Value = serde_json::from_str(&explained.out).context("reading what explain said")?;
    ensure!(mentions(&explanation, &cause), "explain does not say {cause:?}: {explanation}");
    Ok(format!("orders 200; frontend 403, and access log, answer and explain all say {cause:?}"))
}

/// Whether any text in it contains `words`.
fn mentions(value: &serde_json::Value, words: &str) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains(words),
        serde_json::Value::Array(all) => all.iter().any(|one| mentions(one, words)),
        serde_json::Value::Object(all) => all.values().any(|one| mentions(one, words)),
        _ => false,
    }
}

//! Traffic splits by weight, and a change of weights costs no call.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Story;
use crate::demo::driver;
use crate::demo::web::Answer;

/// Calls counted for each split.
const CALLS: usize = 2000;

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    let bearer = story.bearer();
    let before = driver::many(CALLS, |_| story.front_call(&bearer)).await;
    let before = split(&before, &story.facts.canary).context("as the set has it")?;

    // Calls go on while the weights change.
    let (change, during) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            story.apply("even-split.yaml").await
        },
        driver::steady(200.0, tokio::time::sleep(Duration::from_millis(1200)), |_| story.front_call(&bearer)),
    );
    change?;
    if let Some(failure) = driver::first_failure(&during) {
        bail!("a call failed while the weights changed: {failure}");
    }
    let after = driver::many(CALLS, |_| story.front_call(&bearer)).await;
    let after = split(&after, &story.facts.even).context("after even-split.yaml")?;
    story.restore().await?;
    Ok(format!(
        "{CALLS} calls: {before}; changed under {} calls, none failed; then {CALLS} calls: {after}",
        during.len()
    ))
}

/// Who answered, checked against the expected shares: each within four standard deviations.
fn split(outcomes: &[Result<Answer>], shares: &BTreeMap<String, f64>) -> Result<String> {
    if let Some(failure) = driver::first_failure(outcomes) {
        bail!("a call failed: {failure}");
    }
    let mut answered: BTreeMap<String, u32> = shares.keys().map(|name| (name.clone(), 0)).collect();
    for answer in outcomes.iter().flatten() {
        let who = answer.json().pointer("/next/next/app").and_then(|name| name.as_str()).unwrap_or("nobody").to_owned();
        *answered.entry(who).or_default() += 1;
    }
    let total = f64::from(answered.values().sum::<u32>());
    let mut seen = Vec::new();
    for (name, count) in &answered {
        let share = shares.get(name).copied().unwrap_or(0.0);
        let allowed = 4.0 * (total * share * (1.0 - share)).sqrt();
        let off = (f64::from(*count) - total * share).abs();
        ensure!(
            off <= allowed,
            "{name} answered {count} of {total} calls; expected {:.0} +- {allowed:.0}",
            total * share
        );
        seen.push(format!("{name} {count} (expected {:.0} +- {allowed:.0})", total * share));
    }
    Ok(seen.join(", "))
}

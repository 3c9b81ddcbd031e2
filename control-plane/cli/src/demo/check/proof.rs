//! `apply --wait` proves that a change is live; a file with mistakes changes nothing and names every one of them.

use anyhow::{Context, Result, ensure};

use super::Story;

const FOUR_MISTAKES: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: inventory, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: inventry}]
  rules:
  - matchs: [{path: {type: PathPrefix, value: /}}]
    backendRefs:
    - {name: inventory-v1, port: 80}
    - {name: inventory-v2, port: 80, weight: heavy}
    timeouts: {request: ten seconds}
";
/// Line and column of each, and a word its complaint must contain.
const WHERE: [(&str, &str); 4] = [(":5:", "inventry"), (":7:", "matchs"), (":10:", "heavy"), (":11:", "ten seconds")];

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    let said = story.apply("even-split.yaml").await?;
    let live = said
        .lines()
        .rev()
        .find(|line| line.contains("live on"))
        .with_context(|| format!("apply --wait did not say what is live: {said}"))?
        .to_owned();
    let everybody = format!("{n} of {n}", n = story.town.homes.len());
    ensure!(live.contains(&everybody), "apply --wait says {live:?}, not {everybody}");
    ensure!(live.contains(" ms") || live.contains(" s"), "apply --wait does not say how long it took: {live:?}");
    in_step(story).await?;

    let before = epoch(story).await?;
    let file = story.town.dir().join("four-mistakes.yaml");
    std::fs::write(&file, FOUR_MISTAKES).with_context(|| format!("writing {}", file.display()))?;
    let refused = story.town.equerry(&["apply", "--wait", "-f", &file.display().to_string()]).await?;
    ensure!(
        refused.code == Some(1),
        "a file with four mistakes ended with {:?}: {}",
        refused.code,
        refused.everything()
    );
    let text = refused.everything();
    for (place, word) in WHERE {
        let at = format!("{}{place}", file.display());
        let named = text.lines().any(|line| line.contains(&at) && line.contains(word));
        ensure!(named, "no complaint about {word:?} at {at}COLUMN in: {text}");
    }
    let after = epoch(story).await?;
    ensure!(before == after, "a file with mistakes moved the epoch from {before} to {after}");
    story.restore().await?;
    Ok(format!("{live:?}; a file with four mistakes: all four named with line and column, epoch still {after}"))
}

/// `apply --wait` returned: so every proxy's own metrics must say the epoch.
async fn in_step(story: &Story<'_>) -> Result<()> {
    let epoch = epoch(story).await?;
    for home in &story.town.homes {
        let has = home.scrape().await?.sum("equerry_config_epoch", &[]);
        #[expect(clippy::cast_precision_loss, reason = "epochs of the story are far below 2^52")]
        let enough = has >= epoch as f64;
        ensure!(enough, "apply --wait returned for epoch {epoch}, but {}'s sidecar has {has}", home.resident.name);
    }
    Ok(())
}

async fn epoch(story: &Story<'_>) -> Result<u64> {
    let status = story.status().await?;
    status
        .pointer("/controlPlane/epoch")
        .and_then(serde_json::Value::as_u64)
        .with_context(|| format!("the status names no epoch: {status}"))
}

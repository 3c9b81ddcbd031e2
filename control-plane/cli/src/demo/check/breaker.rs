//! One instance breaks: it is left alone, probed by one call per penalty, and comes back; callers notice nothing.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::sync::Notify;

use super::{Story, within};
use crate::demo::driver;
use crate::demo::town::Home;

/// Calls a second while it happens, and how many begin at once: with several in flight the balancer needs both instances.
const PACE: f64 = 240.0;
const BURST: u32 = 8;
/// Calls that may already be on their way when the breaker opens.
const IN_FLIGHT: usize = 16;
/// Failed probes that are waited for.
const PROBES: usize = 2;
/// Penalties may be this much shorter than written, for clocks read at different moments.
const TOLERANCE: f64 = 0.9;

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    story.apply("breaker.yaml").await?;
    let broken = story.home("inventory-v2")?;
    let caller = story.home("orders")?.through_sidecar();
    let over = Notify::new();
    let (seen, outcomes) = tokio::join!(
        async {
            let seen = break_and_heal(story, broken).await;
            over.notify_one();
            seen
        },
        driver::in_bursts(PACE, BURST, over.notified(), |_| caller.get("inventory", "/stock", &[])),
    );
    let seen = seen?;
    if let Some(failure) = driver::first_failure(&outcomes) {
        bail!("a GET failed meanwhile: {failure}");
    }
    story.restore().await?;
    Ok(format!("{seen}; all {} GETs meanwhile succeeded", outcomes.len()))
}

async fn break_and_heal(story: &Story<'_>, broken: &Home) -> Result<String> {
    let (shortest, longest) = story.facts.penalty;
    let failures = story.facts.failures as usize;
    within(Duration::from_secs(5), "calls to inventory-v2 while it is well", async || took(broken, 5).await).await?;
    broken.forget().await?;
    broken.fail(1.0, None).await?;
    let gap = shortest.mul_f64(TOLERANCE);
    let limit = Duration::from_secs(5) + longest * 4;
    let probes = within(limit, "failed probes of inventory-v2", async || {
        let bursts = bursts(&broken.arrivals().await?, gap);
        Ok(if bursts.len() > PROBES { Ok(bursts) } else { Err(format!("calls came in groups of {bursts:?}")) })
    })
    .await?;
    let (first, probes) = (probes[0], &probes[1..]);
    ensure!(
        (failures..=failures + IN_FLIGHT).contains(&first),
        "it got {first} calls before the breaker opened, not {failures} and a few in flight"
    );
    ensure!(probes.iter().all(|calls| *calls == 1), "penalties were followed by {probes:?} calls, not one each");

    broken.fail(0.0, None).await?;
    broken.forget().await?;
    within(longest * 3 + Duration::from_secs(5), "inventory-v2 to get traffic again", async || took(broken, 20).await)
        .await?;
    Ok(format!(
        "after {first} failing calls inventory-v2 got none for at least {shortest:?}, then {} probes of one call each; healed, it got traffic again",
        probes.len()
    ))
}

async fn took(home: &Home, calls: usize) -> Result<Result<(), String>> {
    let taken = home.arrivals().await?.len();
    Ok(if taken >= calls { Ok(()) } else { Err(format!("{taken} calls")) })
}

/// Sizes of the groups that arrivals fall into when no pause within a group is as long as `gap`.
fn bursts(arrivals_ms: &[u64], gap: Duration) -> Vec<usize> {
    let gap = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
    arrivals_ms.chunk_by(|a, b| b.saturating_sub(*a) < gap).map(<[u64]>::len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_fall_into_groups_by_their_pauses() {
        assert_eq!(bursts(&[0, 1, 2, 1100, 3300], Duration::from_secs(1)), [3, 1, 1]);
        assert_eq!(bursts(&[], Duration::from_secs(1)), [0_usize; 0]);
    }
}

//! A tenant over its quota is held to it, over all instances together; another tenant is untouched.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};

use super::Story;
use crate::demo::driver;

/// How much more than its quota the tenant asks for.
const DEMAND: f64 = 2.0;
/// Calls a second of the other tenant.
const OTHER_PACE: f64 = 10.0;
/// No call begins this close to the end of a window, so that each is surely counted in the window it was made in.
const MARGIN: Duration = Duration::from_millis(300);

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    let (quota, window) = story.facts.quota("acme")?;
    let (acme, globex) = (story.bearer_of("acme")?, story.bearer_of("globex")?);
    let caller = story.home("orders")?.through_sidecar();
    let as_tenant = |bearer: &str| {
        let bearer = bearer.to_owned();
        async move { caller.get("inventory", "/stock", &[("authorization", bearer.as_str())]).await }
    };
    // A first call in the window before tells the sidecars that this tenant is awake.
    as_tenant(&acme).await?;
    tokio::time::sleep(until_next(window) + Duration::from_millis(20)).await;
    let length = until_next(window).saturating_sub(MARGIN);
    #[expect(clippy::cast_precision_loss, reason = "quotas of the story are far below 2^52")]
    let pace = quota as f64 * DEMAND / length.as_secs_f64();
    let (outcomes, others) = tokio::join!(
        driver::steady(pace, tokio::time::sleep(length), |_| as_tenant(&acme)),
        driver::steady(OTHER_PACE, tokio::time::sleep(length), |_| as_tenant(&globex)),
    );
    ensure!(
        until_next(window) > Duration::ZERO && until_next(window) <= MARGIN + Duration::from_millis(50),
        "answers came after the window had ended"
    );

    let admitted = driver::with_status(&outcomes, 200) as u64;
    let refused = driver::with_status(&outcomes, 429) as u64;
    let asked = outcomes.len() as u64;
    ensure!(admitted + refused == asked, "acme saw something else than 200 and 429: {:?}", strange(&outcomes));
    ensure!(admitted <= quota, "{admitted} calls of acme were admitted in a window of {quota}");
    ensure!(
        admitted * 10 >= quota * 9,
        "only {admitted} calls of acme were admitted in a window of {quota}, though it made {asked}"
    );
    if let Some(failure) = driver::first_failure(&others) {
        bail!("globex was touched: {failure}");
    }
    let limits = limits_told(&outcomes)?;
    Ok(format!(
        "acme made {asked} calls in a window of {window:?}: {admitted} of {quota} admitted, {refused} times 429 with {limits}; all {} of globex passed",
        others.len()
    ))
}

fn strange(outcomes: &[Result<crate::demo::web::Answer>]) -> Option<String> {
    outcomes.iter().find_map(|outcome| match outcome {
        Ok(answer) if matches!(answer.status, 200 | 429) => None,
        Ok(answer) => Some(answer.shown()),
        Err(error) => Some(format!("{error:#}")),
    })
}

/// Every 429 must say what the limit is and when to come back.
fn limits_told(outcomes: &[Result<crate::demo::web::Answer>]) -> Result<String> {
    let mut told = String::new();
    for answer in outcomes.iter().flatten().filter(|answer| answer.status == 429) {
        let (limit, after) = (answer.header("ratelimit"), answer.header("retry-after"));
        ensure!(
            !limit.is_empty() && after.parse::<u64>().is_ok(),
            "a 429 without RateLimit or Retry-After: {:?}",
            answer.headers
        );
        told = format!("RateLimit: {limit}, Retry-After: {after}");
    }
    Ok(told)
}

/// Time to the next window: windows are aligned to Unix time.
fn until_next(window: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let into = now.as_nanos() % window.as_nanos().max(1);
    window.saturating_sub(Duration::from_nanos(u64::try_from(into).unwrap_or(0)))
}

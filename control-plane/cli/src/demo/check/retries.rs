//! Retries hide a flaky service from its callers, and a budget keeps them from making a bad day worse.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Story;
use crate::demo::driver;
use crate::demo::scrape::Scrape;

/// GETs made against each share of failures.
const CALLS: usize = 1000;
/// POSTs made, all of which fail.
const POSTS: usize = 20;
/// Calls after which the budget must have stopped a retry, whatever earlier steps left in it.
const MOST_CALLS: usize = 10_000;
const RETRIES: &str = "equerry_retries_total";

pub(super) async fn check(story: &Story<'_>) -> Result<String> {
    story.apply("retries.yaml").await?;
    let flaky = flaky(story).await?;
    let broken = broken(story).await?;
    let posts = posts(story).await?;
    story.restore().await?;
    Ok(format!("{flaky}; {broken}; {posts}"))
}

/// One in ten GETs fails: the caller sees next to nothing, for little more load.
async fn flaky(story: &Story<'_>) -> Result<String> {
    make_fail(story, 0.1, "GET").await?;
    let outcomes = calls(story, "GET", CALLS).await?;
    let failed = CALLS - driver::with_status(&outcomes, 200);
    let added = arrivals(story).await?.saturating_sub(CALLS);
    ensure!(failed * 100 < CALLS, "at 10% failures the caller saw {failed} of {CALLS} calls fail");
    ensure!(added * 100 < CALLS * 20, "at 10% failures {CALLS} calls made {added} more");
    ensure!(added > 0, "nothing was retried");
    Ok(format!("10% failing: {failed} of {CALLS} GETs failed for the caller, {added} tries added"))
}

/// Six in ten fail: the budget, once what earlier calls left of it is spent, stops retries, and says so in metrics and log.
async fn broken(story: &Story<'_>) -> Result<String> {
    make_fail(story, 0.6, "GET").await?;
    let orders = story.home("orders")?;
    let caller = orders.through_sidecar();
    let id = super::request_id("budget");
    let headers = [("x-request-id", id.as_str())];
    let before = orders.scrape().await?;
    let (mut made, mut failed, mut skipped) = (0, 0, 0.0);
    while skipped == 0.0 && made < MOST_CALLS {
        let outcomes = driver::many(CALLS, |_| caller.get("inventory", "/stock", &headers)).await;
        made += CALLS;
        failed += CALLS - driver::with_status(&outcomes, 200);
        skipped = grown(&before, &orders.scrape().await?, "skipped_budget");
    }
    let added = arrivals(story).await?.saturating_sub(made);
    ensure!(skipped > 0.0, "at 60% failures the budget stopped no retry of {made} calls ({added} tries added)");
    let logged = super::within(
        Duration::from_secs(5),
        "a line with retry_outcome skipped_budget in orders' access log",
        async || {
            let log = tokio::fs::read_to_string(orders.access_log()).await?;
            let lines = log.lines().filter(|line| line.contains(&id) && line.contains("skipped_budget")).count();
            Ok(if lines > 0 { Ok(lines) } else { Err("none".to_owned()) })
        },
    )
    .await?;
    Ok(format!(
        "60% failing: {failed} of {made} failed, {added} tries added, {RETRIES}{{outcome=\"skipped_budget\"}} grew by {skipped}, and {logged} log lines say so"
    ))
}

/// A POST is tried once.
async fn posts(story: &Story<'_>) -> Result<String> {
    make_fail(story, 1.0, "POST").await?;
    let outcomes = calls(story, "POST", POSTS).await?;
    let arrived = arrivals(story).await?;
    ensure!(
        driver::with_status(&outcomes, 503) == POSTS,
        "failing POSTs were answered otherwise: {:?}",
        driver::first_failure(&outcomes)
    );
    ensure!(arrived == POSTS, "{POSTS} POSTs arrived {arrived} times");
    Ok(format!("{POSTS} failing POSTs arrived {arrived} times"))
}

async fn make_fail(story: &Story<'_>, share: f64, method: &str) -> Result<()> {
    for home in story.inventories()? {
        home.fail(share, Some(method)).await?;
        home.forget().await?;
    }
    Ok(())
}

async fn calls(story: &Story<'_>, method: &str, count: usize) -> Result<Vec<Result<crate::demo::web::Answer>>> {
    let caller = story.home("orders")?.through_sidecar();
    Ok(driver::many(count, |_| caller.call(method, "inventory", "/stock", &[])).await)
}

async fn arrivals(story: &Story<'_>) -> Result<usize> {
    let [v1, v2] = story.inventories()?;
    Ok(v1.arrivals().await?.len() + v2.arrivals().await?.len())
}

fn grown(before: &Scrape, after: &Scrape, outcome: &str) -> f64 {
    after.sum(RETRIES, &[("outcome", outcome)]) - before.sum(RETRIES, &[("outcome", outcome)])
}

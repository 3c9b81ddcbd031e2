//! The demo as people see it: live traffic, one line per edge of the mesh, and five things to try next.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::check::Story;
use super::driver;
use super::say;
use super::scrape::{Scrape, quantile, since};
use super::town::{Home, Town};

/// Calls a second of the driver.
const PACE: f64 = 40.0;
/// How often the table is drawn.
const REDRAW: Duration = Duration::from_secs(1);
/// Tokens are minted anew for every so many calls, so that none expires while the demo runs.
const MINT_EVERY: usize = 1000;

/// Drives traffic and shows it until it is dropped.
///
/// # Errors
/// When the policies name no tenant the driver can speak for.
pub async fn show(story: &Story<'_>) -> Result<()> {
    say(&things_to_try(story.town));
    tokio::select! {
        shown = draw(story.town) => shown,
        driven = drive(story) => driven,
    }
}

async fn drive(story: &Story<'_>) -> Result<()> {
    let frontend = story.town.home("frontend")?;
    loop {
        let mut tokens = vec![story.issuer.mint(&story.facts.token())];
        for tenant in ["acme", "globex"] {
            tokens.push(story.issuer.mint(&story.facts.token().tenant(story.facts.tenant(tenant)?)));
        }
        let tokens: Vec<String> = tokens.into_iter().map(|token| format!("Bearer {token}")).collect();
        let length = Duration::from_secs_f64(f64::from(u32::try_from(MINT_EVERY).unwrap_or(u32::MAX)) / PACE);
        driver::steady(PACE, tokio::time::sleep(length), |number| {
            let headers = [("authorization", tokens[number % tokens.len()].as_str())];
            async move { frontend.front_door().get("frontend", "/", &headers).await }
        })
        .await;
    }
}

async fn draw(town: &Town) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let mut before = look(town).await;
    let mut lines_drawn = 0;
    loop {
        tokio::time::sleep(REDRAW).await;
        let now = look(town).await;
        let lines = table(town, &before, &now);
        // On a terminal each table takes the place of the one before it.
        let back = if terminal && lines_drawn > 0 { format!("\x1b[{lines_drawn}A\x1b[J") } else { String::new() };
        say(&format!("{back}{}", lines.join("\n")));
        lines_drawn = lines.len();
        before = now;
    }
}

async fn look(town: &Town) -> Vec<Scrape> {
    let mut scrapes = Vec::new();
    for home in &town.homes {
        // A sidecar that is being restarted by hand shows as silent for a moment.
        scrapes.push(home.scrape().await.unwrap_or_default());
    }
    scrapes
}

fn table(town: &Town, before: &[Scrape], now: &[Scrape]) -> Vec<String> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut lines = vec![format!(
        "{clock}  {:<28}{:>8}{:>10}{:>10}{:>10}  {:<6}{:>6}",
        "EDGE", "RATE", "SUCCESS", "P50", "P99", "MTLS", "EPOCH"
    )];
    for ((home, before), now) in town.homes.iter().zip(before).zip(now) {
        let Some(caller) = caller_of(town, home) else { continue };
        lines.push(edge(&format!("{caller} -> {}", home.resident.name), before, now));
    }
    lines
}

/// Who calls this resident: whoever calls a Service it runs for.
fn caller_of<'a>(town: &'a Town, home: &Home) -> Option<&'a str> {
    let calls = |other: &&Home| other.resident.calls.is_some_and(|service| service == home.resident.account);
    town.homes.iter().find(calls).map(|other| other.resident.name)
}

const INBOUND: (&str, &str) = ("direction", "inbound");
const REQUESTS: &str = "equerry_requests_total";
const DURATION: &str = "equerry_request_duration_seconds";

fn edge(name: &str, before: &Scrape, now: &Scrape) -> String {
    let count = |scrape: &Scrape| scrape.sum(REQUESTS, &[INBOUND]);
    let good = |scrape: &Scrape| {
        scrape
            .with(REQUESTS, &[INBOUND])
            .filter(|s| s.labels.get("code").is_some_and(|c| c.starts_with('2')))
            .map(|s| s.value)
            .sum()
    };
    let grown = |of: &dyn Fn(&Scrape) -> f64| (of(now) - of(before)).max(0.0);
    let calls = grown(&count);
    let success = if calls > 0.0 { format!("{:.1}%", 100.0 * grown(&good) / calls) } else { "-".to_owned() };
    let times = since(&now.histogram(DURATION, &[INBOUND]), &before.histogram(DURATION, &[INBOUND]));
    let time =
        |share| quantile(share, &times).map_or_else(|| "-".to_owned(), |seconds| format!("{:.1} ms", seconds * 1000.0));
    let secured = now
        .with(REQUESTS, &[INBOUND])
        .filter(|s| s.value > 0.0)
        .all(|s| s.labels.get("tls").is_some_and(|tls| !matches!(tls.as_str(), "none" | "false" | "")));
    let epoch = now.with("equerry_config_epoch", &[]).map(|s| s.value).fold(0.0, f64::max);
    format!(
        "          {name:<28}{:>8}{success:>10}{:>10}{:>10}  {:<6}{epoch:>6}",
        format!("{:.0}/s", calls / REDRAW.as_secs_f64()),
        time(0.5),
        time(0.99),
        if secured { "yes" } else { "NO" },
    )
}

fn things_to_try(town: &Town) -> String {
    let equerry = town.program().display();
    let dir = town.dir().display();
    let front = town.homes.first().map(|home| home.app.address()).unwrap_or_default();
    let broken = town.homes.last().map(|home| (home.resident.name, home.controls.address())).unwrap_or_default();
    let settings: Vec<String> =
        town.settings().iter().map(|(name, value)| format!("{name}={}", value.display())).collect();
    format!(
        "A mesh of {} applications runs on this machine, under {dir}\n\
         Admin API: https://{}   (token in {})\n\n\
         In another terminal, first:\n  export EQUERRY_DEMO_DIR={dir} {}\n\
         then try:\n\
         1. be a customer        curl -s -H \"authorization: Bearer $({equerry} demo token --tenant acme)\" http://{front}/hello\n\
         2. carry a bad token    curl -si -H \"authorization: Bearer $({equerry} demo token --expired)\" http://{front}/hello\n\
         3. send half to v2      {equerry} apply --wait -f {}\n\
         4. break {:<14} curl -s -X POST 'http://{}/fail?rate=1'     (heal it with rate=0)\n\
         5. ask why              {equerry} explain --policies {} --from shop/frontend http://inventory/\n\n\
         Ctrl-C ends everything.\n",
        town.homes.len(),
        town.admin.address(),
        town.control_plane_state().join("admin.token").display(),
        settings.join(" "),
        town.story("even-split.yaml").display(),
        broken.0,
        broken.1,
        town.policies().display(),
    )
}

//! `equerry quota`: what tenants have spent in the present windows, and which sidecar holds what.

use equerry_control_plane::serve::admin::shapes::{QuotaReply, UsageList, UsageReply};

use crate::args::{Output, QuotaArgs};
use crate::client::Client;
use crate::delete::escaped;
use crate::failure::Failure;
use crate::get::plain;
use crate::out;

/// From this share on a quota is worth a look.
const NEAR: u64 = 80;

pub(crate) async fn run(args: &QuotaArgs, client: &mut Client) -> Result<(), Failure> {
    let items = match &args.tenant {
        Some(tenant) => {
            let path = format!("/api/v1/tenants/{}/usage", escaped(tenant));
            vec![client.get::<UsageReply>(&path).await?]
        }
        None => client.get::<UsageList>("/api/v1/usage").await?.items,
    };
    match args.output.output {
        output if plain(output, &serde_json::json!({"items": items})) => {}
        Output::Name => items.iter().for_each(|item| out::data(&item.tenant)),
        _ if items.iter().all(|item| item.quotas.is_empty()) => {
            out::say("no tenant has a quota: a Tenant document's spec.quotas gives it one");
        }
        output => out::data(table(&items, output == Output::Wide)),
    }
    Ok(())
}

fn table(items: &[UsageReply], wide: bool) -> String {
    let mut headings = vec!["TENANT", "QUOTA", "SPENT", "OF", "SHARE", "WINDOW", "LEFT", "SERVICES"];
    if wide {
        headings.push("HELD BY (SPENT/GRANTED)");
    }
    let quotas = items.iter().flat_map(|item| item.quotas.iter().map(move |quota| (item, quota)));
    let rows: Vec<_> = quotas.map(|(item, quota)| row(&item.tenant, quota, wide)).collect();
    out::table(&headings, &rows)
}

fn row(tenant: &str, quota: &QuotaReply, wide: bool) -> Vec<String> {
    let share = quota.spent.saturating_mul(100).checked_div(quota.limit).unwrap_or(100);
    let style = match share {
        100.. => out::BAD,
        NEAR.. => out::NOTE,
        _ => out::GOOD,
    };
    let mut row = vec![
        tenant.to_owned(),
        quota.quota.rsplit('/').next().unwrap_or_default().to_owned(),
        quota.spent.to_string(),
        quota.limit.to_string(),
        out::styled(style, format_args!("{share} %")),
        format!("{} s", quota.window_seconds),
        format!("{}.{} s", quota.ends_in_ms / 1000, quota.ends_in_ms % 1000 / 100),
        if quota.services.is_empty() { "-".to_owned() } else { quota.services.join(",") },
    ];
    if wide {
        let shares = quota.shares.iter().map(|share| format!("{} {}/{}", share.instance, share.spent, share.granted));
        let shares: Vec<_> = shares.collect();
        row.push(if shares.is_empty() { "-".to_owned() } else { shares.join(", ") });
    }
    row
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_quota_is_told_with_its_share_its_window_and_who_holds_it() {
        let usage: UsageReply = serde_json::from_value(
            json!({"tenant": "acme", "quotas": [{"quota": "acme/0", "services": ["shop/orders"],
            "beganUnix": 0, "windowSeconds": 60, "limit": 1000, "granted": 950, "spent": 900, "endsInMs": 12_340,
            "shares": [{"instance": "shop/orders-1", "granted": 950, "spent": 900}]}]}),
        )
        .unwrap();
        let table = anstream::adapter::strip_str(&table(&[usage], true)).to_string();
        let line = table.lines().nth(1).unwrap();
        assert_eq!(
            line,
            "acme     0       900     1000   90 %    60 s     12.3 s   shop/orders   shop/orders-1 900/950"
        );
    }
}

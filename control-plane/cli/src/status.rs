//! `equerry status`: is the mesh well? Proxies and what they have, services and who stands behind them.

use equerry_control_plane::serve::admin::shapes::{ProxyList, ServiceList, VersionReply};
use serde_json::json;

use crate::args::Output;
use crate::client::Client;
use crate::failure::Failure;
use crate::get::plain;
use crate::out;
use crate::rows::{proxies_table, services_table};

pub(crate) async fn run(output: Output, client: &mut Client) -> Result<(), Failure> {
    let version: VersionReply = client.get("/api/v1/version").await?;
    let proxies: ProxyList = client.get("/api/v1/proxies").await?;
    let services: ServiceList = client.get("/api/v1/services").await?;
    if plain(output, &json!({"controlPlane": version, "proxies": proxies.items, "services": services.items})) {
        return Ok(());
    }
    let connected = proxies.items.iter().filter(|proxy| proxy.connected).count();
    let in_step = proxies
        .items
        .iter()
        .filter(|proxy| proxy.connected && proxy.nack.is_none() && proxy.acked_epoch >= proxy.wanted_epoch)
        .count();
    out::data(format_args!(
        "control plane {}, epoch {}; {connected} of {} proxies connected, {in_step} in step",
        version.version,
        version.epoch,
        proxies.items.len()
    ));
    if proxies.items.is_empty() {
        out::data(
            "\nno proxy has joined yet: `equerry token create join --namespace NS --account ACCOUNT` lets one in",
        );
    } else {
        out::data(format_args!("\n{}", proxies_table(&proxies.items, false)));
    }
    if services.items.is_empty() {
        out::data("\nthere are no services yet: `equerry apply -f FILE`");
    } else {
        out::data(format_args!("\n{}", services_table(&services.items, false)));
    }
    Ok(())
}

/// The control plane's version, after this program's own.
pub(crate) async fn version(client: &mut Client) -> Result<(), Failure> {
    let reply: VersionReply = client.get("/api/v1/version").await?;
    out::data(format_args!("control plane {} (epoch {})", reply.version, reply.epoch));
    Ok(())
}

//! A store that an older version left is taken over by this one: everything is there, and what is new begins.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use equerry_certs::Request;
use equerry_tests::{Mesh, api, grpc};
use serde_json::Value;

use crate::program;

/// The secrets behind the hashes of the store: the admin's token, and the part of frontend's join token before its pin.
const ADMIN: &str = "eqa1.276b8843ef429cab.Pvwe551teduQyxP_OiBGlI-SwtZqE3SqMgZcNX4BWOY";
const FRONTEND: &str = "eqj1.65a2a264a21111a3.h_g4Hog_cUn0YIrtQBWRZaBg3LRLcEDPI7vuB4WXZU4";

fn leave_behind(state: &Path) -> Result<()> {
    std::fs::create_dir_all(state)?;
    let store = rusqlite::Connection::open(state.join("equerry.db"))?;
    store.execute_batch(include_str!("schema1.sql"))?;
    let version: u32 = store.pragma_query_value(None, "user_version", |row| row.get(0))?;
    ensure!(version == 1, "the dump is of schema {version}");
    let token = state.join("admin.token");
    Ok(std::fs::File::options().write(true).create_new(true).mode(0o600).open(token)?.write_all(ADMIN.as_bytes())?)
}

#[tokio::test]
async fn a_store_of_the_first_schema_is_taken_over_with_all_it_holds() -> Result<()> {
    let mesh = Mesh::plan(program(), &[]).await?;
    leave_behind(&mesh.town.control_plane_state())?;
    // Ready means that the token of then is still good.
    mesh.town.start_control_plane(&[]).await?;

    ensure!(mesh.epoch().await? == 2, "epochs go on");
    for (kind, name) in [
        ("authorizationpolicy", "frontend-calls-orders"),
        ("httproute", "orders"),
        ("service", "orders"),
        ("tenant", "acme"),
        ("mesh", "default"),
    ] {
        let said = mesh.town.equerry(&["get", kind, name, "-n", "shop", "-o", "yaml"]).await?.succeeded();
        let said = said.with_context(|| format!("{kind} {name}"))?;
        ensure!(said.out.contains(&format!("name: {name}")), "{}", said.out);
    }
    let (_, admins) = api::ask(&mesh.town, "GET", "/api/v1/admin-tokens", bytes::Bytes::new()).await?;
    let admins: Value = serde_json::from_str(&admins)?;
    ensure!(admins["items"][0]["role"] == "admin" && admins["items"][0]["id"] == "276b8843ef429cab", "{admins}");

    // A join token of then lets its workload in once; its pin is of the authority, which is another one here.
    let fresh = mesh.town.join_token("frontend", "10m").await?;
    let pin = fresh.rsplit('.').next().context("a token ends with its pin")?;
    let signed = grpc::sign(&mesh.town, &format!("{FRONTEND}.{pin}"), Request::new()?.csr_der, 0).await?;
    ensure!(signed.as_deref().is_ok_and(|id| id == "spiffe://equerry.local/ns/shop/sa/frontend"), "{signed:?}");
    let again = grpc::sign(&mesh.town, &format!("{FRONTEND}.{pin}"), Request::new()?.csr_der, 0).await?;
    ensure!(again.is_err_and(|status| status.message().contains("used")), "the old token lets in twice");

    // What is new has begun: the change is written down, and proves itself.
    mesh.town.equerry(&["delete", "tenant", "acme"]).await?.succeeded()?;
    ensure!(mesh.epoch().await? == 3);
    mesh.town.equerry(&["audit", "verify"]).await?.succeeded()?;
    let listed = mesh.town.equerry(&["audit", "list", "-o", "json"]).await?.succeeded()?.out;
    ensure!(listed.contains("acme") && listed.contains("first (admin)") || listed.contains("\"admin\""), "{listed}");

    // And it is a store of this version from now on.
    mesh.town.kill_control_plane().await;
    mesh.town.start_control_plane(&[]).await?;
    ensure!(mesh.epoch().await? == 3);
    Ok(())
}

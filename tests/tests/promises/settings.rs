//! What the operator says, by flag, variable and file: what is in force can be seen and, where it may, changed while a sidecar
//! works.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry::demo::driver;
use equerry::demo::process::run_to_end;
use equerry::demo::web::Caller;
use equerry_tests::{Mesh, eventually};
use rustix::process::Signal;

use crate::{PAIR, program};

/// Every setting of the sidecar with a value of its form; where one rules out another, the other is left out below.
const SIDECAR: [(&str, &str); 31] = [
    ("control-plane", "mesh.example.com:15012"),
    ("join-token", "eqj1.id.SECRET.pin"),
    ("join-token-file", "/run/token"),
    ("instance", "orders-1"),
    ("label", "app=orders,version=v1"),
    ("app-port", "8080,9090=9091"),
    ("tcp", "5432=db.shop"),
    ("state-dir", "/tmp/nowhere"),
    ("outbound", "127.0.0.1:1"),
    ("inbound", "127.0.0.1:2"),
    ("advertise", "10.0.0.1:2"),
    ("admin", "127.0.0.1:3"),
    ("telemetry", "127.0.0.1:4"),
    ("dns", "10.0.0.53"),
    ("jwks-allow", "10.0.0.0/8"),
    ("mesh-protocol", "http1"),
    ("workers", "1"),
    ("max-connections", "100"),
    ("access-log", "off"),
    ("otlp-endpoint", "https://127.0.0.1:4318"),
    ("otlp-ca", "/tmp/ca.pem"),
    ("otlp-headers", "x-key=SECRET"),
    ("otlp-headers-file", "/tmp/headers"),
    ("trace-sampling", "0.5"),
    ("trace-headers", "b3"),
    ("health-path", "/healthz"),
    ("health-status", "200-299"),
    ("health-grpc", "shop.v1.Orders"),
    ("health-port", "81"),
    ("drain-timeout", "5s"),
    ("log", "warn"),
];
const CONTROL_PLANE: [(&str, &str); 13] = [
    ("state-dir", "/tmp/nowhere"),
    ("store", "sqlite:/tmp/nowhere/e.db"),
    ("grpc", "127.0.0.1:1"),
    ("admin", "127.0.0.1:2"),
    ("advertise", "mesh.example.com,10.0.0.1"),
    ("trust-domain", "example.com"),
    ("certificate-lifetime", "12h"),
    ("root", "/tmp/root.pem"),
    ("issuer-cert", "/tmp/issuer.pem"),
    ("issuer-key", "/tmp/issuer.key"),
    ("audit-retention", "90d"),
    ("max-pages", "1000"),
    ("log", "warn"),
];

/// What `--print-config` prints: each setting with who said it.
async fn printed(command: &[&str], given: &[(String, OsString)]) -> Result<(String, BTreeMap<String, String>)> {
    let args: Vec<OsString> = command.iter().chain(&["--print-config"]).map(OsString::from).collect();
    let given: Vec<(&str, OsString)> = given.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let said = run_to_end(program(), &args, &given, Duration::from_secs(20)).await?.succeeded()?.out;
    let line = |line: &str| {
        let (setting, source) = line.rsplit_once(" # ")?;
        let (name, _) = setting.trim_start_matches("# ").split_once(": ")?;
        Some((name.to_owned(), source.to_owned()))
    };
    let sources = said.lines().map(|text| line(text).with_context(|| format!("cannot read {text:?}")));
    let sources = sources.collect::<Result<_>>()?;
    Ok((said, sources))
}

fn variable(setting: &str) -> String {
    format!("EQUERRY_{}", setting.replace('-', "_").to_uppercase())
}

#[tokio::test]
async fn every_setting_of_both_programs_can_be_given_by_a_variable_and_is_printed_with_it() -> Result<()> {
    let minimal = ["proxy", "run", "--control-plane", "x:1", "--instance", "a"];
    for (usual, command, all, excluded) in [
        (
            &minimal[..],
            &["proxy", "run"][..],
            &SIDECAR[..],
            &[["join-token-file", "health-grpc", "otlp-headers"], ["join-token", "health-path", "otlp-headers-file"]][..],
        ),
        (&["control-plane", "serve"], &["control-plane", "serve"], &CONTROL_PLANE, &[["", "", ""]]),
    ] {
        let (_, known) = printed(usual, &[]).await?;
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        ensure!(known.keys().all(|name| names.contains(&name.as_str())), "{:?} are not tested here", known.keys());
        ensure!(known.len() == all.len(), "{} settings are printed, {} known", known.len(), all.len());
        let mut seen = 0;
        for left_out in excluded {
            let without_path = left_out.contains(&"health-path");
            let wanted = |name: &str| !(left_out.contains(&name) || without_path && name == "health-status");
            let given: Vec<_> = all.iter().filter(|(name, _)| wanted(name)).collect();
            let variables: Vec<_> = given.iter().map(|(name, value)| (variable(name), OsString::from(value))).collect();
            let (text, sources) = printed(command, &variables).await?;
            ensure!(!text.contains("SECRET"), "a secret is shown: {text}");
            for (name, _) in given {
                ensure!(
                    sources.get(*name) == Some(&variable(name)),
                    "{name} was said by {:?}:\n{text}",
                    sources.get(*name)
                );
                seen += 1;
            }
        }
        ensure!(seen >= all.len(), "only {seen} were tried");
    }
    Ok(())
}

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: signed, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: inventory}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /signed}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-api-key, value: SECRET-1}, {name: x-color, value: light-blue}]}
    backendRefs: [{name: inventory, port: 80}]
";

#[tokio::test]
async fn a_sidecar_at_work_shows_what_is_in_force_reloads_and_logs_more_for_a_while() -> Result<()> {
    let mesh = Mesh::plan(program(), &PAIR).await?;
    mesh.town.start_control_plane(&[]).await?;
    mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
    for home in &mesh.town.homes {
        mesh.town.start_app(home).await?;
    }
    let file = mesh.file("sidecar.yaml", "log: info\nmax-connections: 500\n")?;
    mesh.start_sidecars(&["--config", &file.display().to_string()]).await?;
    mesh.settle().await?;
    mesh.apply(ROUTE).await?;
    let orders = mesh.town.home("orders")?;
    let admin = Caller::local(orders.admin.number());

    let shown = admin.get("localhost", "/config", &[]).await?;
    let text = String::from_utf8_lossy(&shown.body).into_owned();
    let read = shown.json();
    ensure!(read["epoch"] == mesh.epoch().await? && read["settings"]["max-connections"]["value"] == 500, "{text}");
    ensure!(read["settings"]["max-connections"]["source"] == file.display().to_string().as_str(), "{text}");
    ensure!(text.contains("light-blue") && text.contains("x-api-key"), "the route in force is not shown: {text}");
    let token = std::fs::read_to_string(orders.state_dir().join("../join-token"))?;
    let secret = token.split('.').nth(2).context("a join token has a secret")?;
    for hidden in ["SECRET-1", "PRIVATE KEY", secret, token.trim()] {
        ensure!(!text.contains(hidden), "{hidden} is shown: {text}");
    }

    // A reload while calls are under way: none is lost.
    let bearer = mesh.bearer()?;
    let headers = [("authorization", bearer.as_str())];
    let (over, begun) = (tokio::sync::Notify::new(), std::cell::Cell::new(0));
    let (reloaded, outcomes) = tokio::join!(
        async {
            let reloaded = reload(&mesh, &file).await;
            // A reload may take no longer than a few calls: those just after it count as well.
            let more = begun.get() + 10;
            let after = async || Ok((begun.get() > more).then_some(()));
            let called = eventually(Duration::from_secs(20), "calls after the reload", after).await;
            over.notify_one();
            reloaded.and(called)
        },
        driver::steady(100.0, over.notified(), |_| {
            begun.set(begun.get() + 1);
            orders.through_sidecar().get("inventory", "/", &headers)
        }),
    );
    reloaded?;
    if let Some(failure) = driver::first_failure(&outcomes) {
        anyhow::bail!("a call failed in a reload: {failure}");
    }

    // One module says more, until that is taken back; what is no level is refused.
    let set = admin.call("PUT", "localhost", "/log?filter=warn,equerry_proxy=trace&for=1m", &[]).await?;
    ensure!(set.status == 200 && set.json()["afterwards"] == "warn", "{}", set.shown());
    let wrong = admin.call("PUT", "localhost", "/log?filter=verbose", &[]).await?;
    ensure!(wrong.status == 400, "{}", wrong.shown());
    let page = admin.call("PUT", "localhost", "/log?filter=info", &[("origin", "https://evil.example")]).await?;
    ensure!(page.status == 403, "a web page changes the log: {}", page.shown());
    let back = admin.call("DELETE", "localhost", "/log", &[]).await?;
    ensure!(back.json() == serde_json::json!({"filter": "warn"}), "{}", back.shown());

    let asked = r#"{"filter": "info,equerry_control_plane=debug", "seconds": 60}"#;
    let (status, said) = equerry_tests::api::ask(&mesh.town, "PUT", "/api/v1/log", asked.into()).await?;
    ensure!(status == 200, "{said}");
    let audit = mesh.town.equerry(&["audit", "list"]).await?.succeeded()?.out;
    ensure!(audit.contains("log.change"), "{audit}");
    Ok(())
}

/// Changes the file and says so: the log changes, and what cannot change is named.
async fn reload(mesh: &Mesh, file: &std::path::Path) -> Result<()> {
    let orders = mesh.town.home("orders")?;
    std::fs::write(file, "log: warn\nmax-connections: 600\n")?;
    mesh.town.signal_sidecar(orders, Signal::HUP).await;
    eventually(Duration::from_secs(10), "the sidecar to say what it reloaded", async || {
        let log = mesh.town.sidecar_log(orders);
        Ok(log.lines().any(|line| line.contains("after a restart") && line.contains("max-connections")).then_some(()))
    })
    .await?;
    // A file that cannot be read changes nothing.
    std::fs::write(file, "log: [\n")?;
    mesh.town.signal_sidecar(orders, Signal::HUP).await;
    eventually(Duration::from_secs(10), "the sidecar to say that it did not reload", async || {
        Ok(mesh.town.sidecar_log(orders).contains("not reloaded").then_some(()))
    })
    .await
}

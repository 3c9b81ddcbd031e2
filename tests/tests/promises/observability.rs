//! The alerts, the dashboard and the scrape configuration of `deploy/` speak of metrics that exist, and real programs make of
//! them what they promise: an outage is told, and its end too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use equerry::demo::ports::HeldPort;
use equerry::demo::process::Process;
use equerry::demo::scrape::Scrape;
use equerry::demo::web::Caller;
use equerry_tests::webhook::Webhook;
use equerry_tests::{Mesh, api, eventually, peers, refuser};
use serde_json::Value;

use crate::{PAIR, program};

/// Families without a member before what they count has happened; a well mesh shows none of them.
const ONLY_WHEN_IT_HAPPENS: [&str; 16] = [
    "equerry_accept_pauses_total",
    "equerry_authz_audit_total",
    "equerry_authz_shadow_total",
    "equerry_breaker_state",
    "equerry_connections_refused_total",
    "equerry_control_plane_admin_refused_total",
    "equerry_endpoint_ejections_total",
    "equerry_endpoint_ejections_withheld_total",
    "equerry_handshake_failures_total",
    "equerry_jwks_age_seconds",
    "equerry_jwks_fetches_total",
    "equerry_quota_total",
    "equerry_retries_total",
    "equerry_spans_total",
    "equerry_tcp_bytes_total",
    "equerry_tcp_connections_total",
];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn text_of(file: &str) -> Result<String> {
    std::fs::read_to_string(deploy().join(file)).with_context(|| format!("reading deploy/{file}"))
}

/// The alerting rules, by name.
fn alerts() -> Result<BTreeMap<String, Value>> {
    let rules: Value = serde_saphyr::from_str(&text_of("prometheus/alerts.yml")?)?;
    let all = rules["groups"].as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array()).flatten();
    Ok(all.map(|rule| (rule["alert"].as_str().unwrap_or_default().to_owned(), rule.clone())).collect())
}

/// Every query of the dashboard with its panel's title, its variables set as Grafana would.
fn panel_queries() -> Result<Vec<(String, String)>> {
    let board: Value = serde_json::from_str(&text_of("grafana/equerry.json")?)?;
    let mut queries = Vec::new();
    for panel in board["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().context("a target without a query")?;
            let query = query.replace("$__rate_interval", "10s").replace("$direction", "outbound");
            let query = query.replace("$destination", ".*");
            ensure!(!query.contains('$'), "the test does not know a variable of {query}");
            queries.push((panel["title"].as_str().unwrap_or_default().to_owned(), query));
        }
    }
    ensure!(queries.len() > 30, "only {} queries were found", queries.len());
    Ok(queries)
}

/// The metrics a query names.
fn metrics_in(query: &str) -> BTreeSet<&str> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("equerry_") || word.starts_with("process_")).collect()
}

/// The commands of ours that a text says between backticks, as one would paste them but for what Prometheus fills in.
fn commands_in(text: &str) -> Vec<Vec<String>> {
    let quoted = text.split('`').skip(1).step_by(2).filter(|said| said.starts_with("equerry"));
    let filled = |word: &str| if word.starts_with("{{") { "name".to_owned() } else { word.to_owned() };
    let words = |said: &str| {
        let said = said.replace("{{ $labels.", "{{$labels.").replace(" }}", "}}");
        said.split_whitespace().take_while(|word| *word != ">").map(filled).collect()
    };
    quoted.map(words).collect()
}

#[tokio::test]
async fn every_command_that_an_alert_tells_people_to_give_is_one() -> Result<()> {
    let mut given = 0;
    for (alert, rule) in alerts()? {
        for words in commands_in(rule["annotations"]["description"].as_str().context("no description")?) {
            let (first, rest) = words.split_first().context("an empty command")?;
            let mut args: Vec<&str> = first.strip_prefix("equerry-").into_iter().collect();
            args.extend(rest.iter().map(String::as_str));
            // Arguments are looked at before help is given.
            args.push("--help");
            let said = equerry_tests::run(program(), &args, Duration::from_secs(60)).await?.succeeded();
            let said = said.with_context(|| format!("{alert}: {}", words.join(" ")))?;
            let whole = said.out.lines().any(|line| line.starts_with("Usage:") && !line.contains("<COMMAND>"));
            ensure!(whole, "{alert}: {} does nothing by itself", words.join(" "));
            given += 1;
        }
    }
    ensure!(given > 20, "only {given} commands were found");
    Ok(())
}

/// The names of what is told now by a mesh's sidecars and its control plane.
async fn told(mesh: &Mesh) -> Result<BTreeSet<String>> {
    let (status, text) = api::ask(&mesh.town, "GET", "/metrics", Bytes::new()).await?;
    ensure!(status == 200, "the control plane's metrics: {status}");
    let mut samples = Scrape::parse(&text).samples;
    for home in &mesh.town.homes {
        samples.extend(home.scrape().await?.samples);
    }
    Ok(samples.into_iter().map(|sample| sample.name).collect())
}

#[tokio::test]
async fn alerts_and_panels_name_only_metrics_that_a_mesh_tells() -> Result<()> {
    let mesh = Mesh::up(program(), &PAIR).await?;
    let told = told(&mesh).await?;
    let source = ["proxy/src/observe/metrics.rs", "proxy/src/observe/standing.rs", "control-plane/src/metrics.rs"];
    let source: Vec<String> =
        source.iter().map(|file| std::fs::read_to_string(deploy().join("..").join(file))).collect::<Result<_, _>>()?;
    let source = source.concat();
    for family in ONLY_WHEN_IT_HAPPENS {
        ensure!(source.contains(&format!("\"{family}\"")), "{family} is no family of either program");
    }
    let mut named = 0;
    let alerts = alerts()?.into_iter().map(|(name, rule)| (name, rule["expr"].as_str().unwrap_or_default().to_owned()));
    for (place, query) in alerts.chain(panel_queries()?) {
        for metric in metrics_in(&query) {
            let known = told.contains(metric) || ONLY_WHEN_IT_HAPPENS.contains(&metric);
            ensure!(known, "{place}: {metric} is not told by a mesh: {query}");
            named += 1;
        }
    }
    ensure!(named > 60, "only {named} metrics were found in alerts and panels");
    Ok(())
}

#[tokio::test]
async fn every_alert_fires_and_resolves_and_says_how_bad_it_is() -> Result<()> {
    let (alerts, tests) = (alerts()?, text_of("prometheus/alerts_test.yml")?);
    ensure!(alerts.len() > 20, "only {} alerts were found", alerts.len());
    let tests: Value = serde_saphyr::from_str(&tests)?;
    let tested: BTreeSet<&str> =
        tests["tests"].as_array().into_iter().flatten().filter_map(|test| test["name"].as_str()).collect();
    for (name, rule) in &alerts {
        ensure!(tested.contains(name.as_str()), "{name} has no test in alerts_test.yml");
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        ensure!(matches!(severity, "critical" | "warning"), "{name} is of severity {severity:?}");
        for text in ["summary", "description"] {
            ensure!(rule["annotations"][text].as_str().is_some_and(|text| text.len() > 20), "{name} has no {text}");
        }
    }
    if !peers::installed("promtool", "apt-get install prometheus")? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    copy_prometheus(dir.path())?;
    let authority = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(dir.path().join("equerry-ca.pem"), authority.cert.pem())?;
    let panels: Vec<Value> = panel_queries()?
        .iter()
        .enumerate()
        .map(|(n, (_, query))| serde_json::json!({"record": format!("panel:{n}"), "expr": query}))
        .collect();
    // YAML takes JSON: the panels' queries, read as recording rules.
    let panels = serde_json::json!({"groups": [{"name": "panels", "rules": panels}]}).to_string();
    std::fs::write(dir.path().join("panels.yml"), panels)?;
    for (what, file) in [
        (["check", "config"], "prometheus.yml"),
        (["check", "rules"], "alerts.yml"),
        (["check", "rules"], "panels.yml"),
        (["test", "rules"], "alerts_test.yml"),
    ] {
        let path = dir.path().join(file).display().to_string();
        let said = peers::run("promtool", &[what[0], what[1], &path]).await?;
        said.succeeded().with_context(|| format!("promtool {} {} {file}", what[0], what[1]))?;
    }
    Ok(())
}

/// How long certificates live here: renewed with 20 s left, and missed with 15.
const SHORT_LIFE: [&str; 3] = ["--short-lived", "--certificate-lifetime", "60s"];

#[tokio::test]
async fn an_outage_a_certificate_a_quota_and_a_refusal_reach_the_webhook_and_so_does_their_end() -> Result<()> {
    for (program, package) in [("prometheus", "prometheus"), ("prometheus-alertmanager", "prometheus-alertmanager")] {
        if !peers::installed(program, &format!("apt-get install {package}"))? {
            return Ok(());
        }
    }
    let mesh = Mesh::plan(program(), &PAIR).await?;
    mesh.town.start_control_plane(&SHORT_LIFE).await?;
    mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
    for home in &mesh.town.homes {
        mesh.town.start_app(home).await?;
    }
    mesh.start_sidecars(&[]).await?;
    mesh.settle().await?;
    let webhook = Webhook::open().await?;
    let watch = Watch::start(&mesh, &webhook)?;
    let orders = mesh.town.home("orders")?;
    let bearer = mesh.bearer()?;
    let calls = async {
        let mut every = tokio::time::interval(Duration::from_millis(50));
        loop {
            every.tick().await;
            // What becomes of each is what Prometheus is to find out.
            let _ = orders.through_sidecar().get("inventory", "/", &[("authorization", &bearer)]).await;
        }
    };
    let story = async {
        every_panel_answers(&mesh, &watch).await?;
        outage(&mesh, &webhook).await?;
        spent_quota(&mesh, &webhook).await?;
        refusal(&mesh, &webhook).await?;
        missed_renewal(&mesh, &webhook).await?;
        edited_audit_log(&mesh, &webhook).await
    };
    tokio::select! {
        () = calls => Ok(()),
        told = story => told,
    }
}

/// The dashboard is looked at while some calls are refused and some fail, so that each of its panels has something to show.
async fn every_panel_answers(mesh: &Mesh, watch: &Watch) -> Result<()> {
    let orders = mesh.town.home("orders")?;
    let inventory: Vec<_> = mesh.town.homes.iter().filter(|home| home.resident.account == "inventory").collect();
    for home in &inventory {
        home.fail(1.0, Some("POST")).await?;
    }
    let bearer = mesh.bearer()?;
    let trouble = async {
        let mut every = tokio::time::interval(Duration::from_millis(300));
        loop {
            every.tick().await;
            // The first is refused by the caller's own sidecar, the second fails at the application.
            let _ = orders.through_sidecar().get("nobody-there", "/", &[]).await;
            let _ = orders.through_sidecar().call("POST", "inventory", "/", &[("authorization", &bearer)]).await;
        }
    };
    tokio::select! {
        () = trouble => {}
        answered = watch.every_panel_answers() => answered?,
    }
    for home in &inventory {
        home.fail(0.0, Some("POST")).await?;
    }
    Ok(())
}

/// Somebody edits the audit log in the store while the control plane is down; what was written is brought back later.
async fn edited_audit_log(mesh: &Mesh, webhook: &Webhook) -> Result<()> {
    let instance = mesh.town.admin.address();
    let edited = Expected {
        alert: "EquerryAuditLogTampered",
        severity: "critical",
        label: ("instance", &instance),
        summary: "is not what was written",
    };
    let store = mesh.town.control_plane_state().join("equerry.db");
    let change = async |from: &str, to: &str| -> Result<()> {
        mesh.town.kill_control_plane().await;
        let line = format!("UPDATE audit SET line = replace(line, '{from}', '{to}') WHERE seq = 2");
        let changed = rusqlite::Connection::open(&store)?.execute(&line, ())?;
        ensure!(changed == 1, "there is no second entry");
        mesh.town.start_control_plane(&SHORT_LIFE).await
    };
    change("\"done\"", "\"DONE\"").await?;
    edited.heard(webhook, "firing").await?;
    let status = mesh.town.equerry(&["status"]).await?.succeeded()?.out;
    ensure!(status.contains("audit log: line 2"), "{status}");
    change("\"DONE\"", "\"done\"").await?;
    edited.heard(webhook, "resolved").await
}

/// Both instances of a Service go, and come back.
async fn outage(mesh: &Mesh, webhook: &Webhook) -> Result<()> {
    const OUTAGE: Expected = Expected {
        alert: "EquerryNoHealthyEndpoint",
        severity: "critical",
        label: ("destination", "shop/inventory"),
        summary: "shop/inventory has no endpoint that can be called",
    };
    let gone: Vec<_> = mesh.town.homes.iter().filter(|home| home.resident.account == "inventory").collect();
    for home in &gone {
        mesh.town.stop_sidecar(home).await;
    }
    OUTAGE.heard(webhook, "firing").await?;
    for home in &gone {
        mesh.town.start_sidecar(home).await?;
    }
    OUTAGE.heard(webhook, "resolved").await
}

/// A tenant asks for more than it may have, and stops.
async fn spent_quota(mesh: &Mesh, webhook: &Webhook) -> Result<()> {
    const SPENT: Expected = Expected {
        alert: "EquerryTenantAtQuota",
        severity: "warning",
        label: ("tenant", "acme"),
        summary: "Tenant acme has spent its quota",
    };
    let facts = mesh.policies.facts()?;
    let token = facts.token().tenant(facts.tenant("acme")?);
    let (bearer, orders) = (format!("Bearer {}", mesh.issuer.mint(&token)), mesh.town.home("orders")?);
    let asks = async {
        loop {
            let _ = orders.through_sidecar().get("inventory", "/stock", &[("authorization", &bearer)]).await;
        }
    };
    tokio::select! {
        () = asks => {}
        told = SPENT.heard(webhook, "firing") => told?,
    }
    SPENT.heard(webhook, "resolved").await
}

/// A proxy of another version refuses what is applied.
async fn refusal(mesh: &Mesh, webhook: &Webhook) -> Result<()> {
    let instance = mesh.town.admin.address();
    let refused = Expected {
        alert: "EquerryConfigurationRefused",
        severity: "warning",
        label: ("instance", &instance),
        summary: "A sidecar refused a part of its configuration (NACK)",
    };
    let refusing = refuser::start(mesh).await?;
    let even = mesh.town.story("even-split.yaml").display().to_string();
    let said = mesh.town.equerry(&["apply", "--wait", "-f", &even]).await?;
    ensure!(said.code == Some(4), "nobody refused: {}", said.everything());
    refused.heard(webhook, "firing").await?;
    drop(refusing);
    refused.heard(webhook, "resolved").await
}

/// The control plane is away when certificates are to be renewed, and comes back before they end.
async fn missed_renewal(mesh: &Mesh, webhook: &Webhook) -> Result<()> {
    let instance = mesh.town.home("orders")?.telemetry.address();
    let missed = Expected {
        alert: "EquerryCertificateExpiring",
        severity: "warning",
        label: ("instance", &instance),
        summary: "was not renewed; it ends in",
    };
    mesh.town.kill_control_plane().await;
    missed.heard(webhook, "firing").await?;
    mesh.town.start_control_plane(&SHORT_LIFE).await?;
    missed.heard(webhook, "resolved").await
}

/// An alert that somebody is to be told of, and of its end.
struct Expected<'a> {
    alert: &'a str,
    severity: &'a str,
    label: (&'a str, &'a str),
    /// A part of it.
    summary: &'a str,
}

impl Expected<'_> {
    /// Waits until those whom it concerns were told that it is `firing` or `resolved`: what is critical goes to the pager,
    /// everything to Slack.
    async fn heard(&self, webhook: &Webhook, status: &str) -> Result<()> {
        let &Self { alert: name, severity, label, summary } = self;
        let is_meant = |alert: &Value| {
            alert["labels"]["alertname"] == name && alert["status"] == status && alert["labels"][label.0] == label.1
        };
        if severity == "critical" {
            eventually(Duration::from_secs(40), &format!("{name} that is {status}, at the webhook"), async || {
                let told = webhook.posted("/alerts");
                let all = told.iter().flat_map(|message| message["alerts"].as_array()).flatten();
                let Some(alert) = all.into_iter().find(|alert| is_meant(alert)) else { bail!("heard {told:?}") };
                ensure!(alert["labels"]["severity"] == severity, "{alert}");
                ensure!(alert["annotations"]["summary"].as_str().is_some_and(|text| text.contains(summary)), "{alert}");
                Ok(Some(()))
            })
            .await?;
        }
        let title = if status == "firing" { severity } else { "resolved" };
        eventually(Duration::from_secs(60), &format!("{name} that is {status}, in Slack"), async || {
            let told = webhook.posted("/slack");
            let says = |message: &Value| {
                let text = message.to_string();
                message["channel"] == "#mesh" && text.contains(&format!("{title}: {name}")) && text.contains(summary)
            };
            ensure!(told.iter().any(says), "heard {told:?}");
            Ok(Some(()))
        })
        .await
    }
}

/// A Prometheus and an Alertmanager, as `deploy/` sets them up, only faster.
struct Watch {
    prometheus: Caller,
    _running: [Process; 2],
    _dir: tempfile::TempDir,
}

impl Watch {
    fn start(mesh: &Mesh, webhook: &Webhook) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |file: &str| dir.path().join(file);
        copy_prometheus(dir.path())?;
        std::fs::copy(mesh.town.control_plane_state().join("ca.pem"), at("equerry-ca.pem"))?;
        let sidecars: Vec<String> = mesh.town.homes.iter().map(|home| home.telemetry.address()).collect();
        std::fs::write(at("sidecars.yml"), serde_json::json!([{"targets": sidecars}]).to_string())?;
        let (prometheus, alertmanager) = (HeldPort::take()?, HeldPort::take()?);
        change(
            &at("prometheus.yml"),
            &[
                ("interval: 15s", "interval: 1s"),
                ("127.0.0.1:15014", &mesh.town.admin.address()),
                ("127.0.0.1:9093", &alertmanager.address()),
            ],
        )?;
        let faster = [
            ("for: 30s", "for: 1s"),
            ("for: 1m", "for: 1s"),
            ("[1m]", "[5s]"),
            ("[10m]", "[8s]"),
            ("< 6 * 3600", "< 15"),
            ("< 3600", "< 1"),
        ];
        change(&at("alerts.yml"), &faster)?;
        std::fs::copy(deploy().join("alertmanager.yml"), at("alertmanager.yml"))?;
        let slack = at("slack-url");
        std::fs::write(&slack, webhook.url("/slack"))?;
        change(
            &at("alertmanager.yml"),
            &[
                ("/etc/alertmanager/slack-url", &slack.display().to_string()),
                ("http://127.0.0.1:9099/alerts", &webhook.url("/alerts")),
                ("group_wait: 30s", "group_wait: 1s"),
                ("group_wait: 10s", "group_wait: 1s"),
                ("group_interval: 5m", "group_interval: 1s"),
            ],
        )?;
        let start = |program: &str, args: &[String]| {
            let args: Vec<_> = args.iter().map(std::ffi::OsString::from).collect();
            Process::start(Path::new(program), program, &args, &at(&format!("{program}.log")))
        };
        prometheus.release();
        alertmanager.release();
        let running = [
            start(
                "prometheus-alertmanager",
                &[
                    format!("--config.file={}", at("alertmanager.yml").display()),
                    format!("--storage.path={}", at("alertmanager-data").display()),
                    format!("--web.listen-address={}", alertmanager.address()),
                    "--cluster.listen-address=".to_owned(),
                ],
            )?,
            start(
                "prometheus",
                &[
                    format!("--config.file={}", at("prometheus.yml").display()),
                    format!("--storage.tsdb.path={}", at("prometheus-data").display()),
                    format!("--web.listen-address={}", prometheus.address()),
                ],
            )?,
        ];
        Ok(Self { prometheus: Caller::local(prometheus.number()), _running: running, _dir: dir })
    }

    /// Every query of the dashboard is understood, and answered with something unless it tells of what has not happened.
    async fn every_panel_answers(&self) -> Result<()> {
        eventually(Duration::from_secs(30), "every target to be scraped", async || {
            let targets = self.ask("up").await?;
            let up = |target: &&Value| target["value"][1] == "1";
            let up = targets.as_array().into_iter().flatten().filter(up).count();
            Ok((up == PAIR.len() + 1).then_some(()))
        })
        .await
        .with_context(|| self._running[1].log_tail(20))?;
        for (panel, query) in panel_queries()? {
            let quiet = metrics_in(&query).iter().all(|metric| ONLY_WHEN_IT_HAPPENS.contains(metric));
            eventually(Duration::from_secs(20), &format!("panel {panel:?}: {query}"), async || {
                let found = self.ask(&query).await?;
                Ok((quiet || found.as_array().is_some_and(|found| !found.is_empty())).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// What Prometheus answers to a query.
    async fn ask(&self, query: &str) -> Result<Value> {
        let coded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.prometheus.get("localhost", &format!("/api/v1/query?query={coded}"), &[]).await?;
        ensure!(answer.status == 200, "{query}: {}", answer.shown());
        Ok(answer.json()["data"]["result"].clone())
    }
}

fn copy_prometheus(to: &Path) -> Result<()> {
    for file in ["prometheus.yml", "alerts.yml", "alerts_test.yml", "sidecars.yml"] {
        std::fs::write(to.join(file), text_of(&format!("prometheus/{file}"))?)?;
    }
    Ok(())
}

/// Changes a file's text; what is to be changed must be there.
fn change(file: &Path, changes: &[(&str, &str)]) -> Result<()> {
    let mut text = std::fs::read_to_string(file)?;
    for (from, to) in changes {
        ensure!(text.contains(from), "{} has no {from}", file.display());
        text = text.replace(from, to);
    }
    Ok(std::fs::write(file, text)?)
}

//! One normal form: in whatever form a path, a host or a header comes, over either version and at either door, it is refused, or
//! route, decision and application go by the same one. The forms and what each is are in `table.txt`.
//!
//! What route and decision should be is not written there: it is worked out here, by comparing plain text, from what the
//! application would see. So nobody can write down a disagreement as expected.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use equerry_tests::by_hand::{Came, Wire, ask_http2, shown, unescaped};
use equerry_tests::witness::{UNREADABLE, Witness};
use equerry_tests::{Mesh, eventually};
use futures_util::stream::{self, StreamExt};
use serde_json::Value;

use crate::{PAIR, program};

const TABLE: &str = include_str!("table.txt");
const SOON: Duration = Duration::from_secs(15);

const DOCUMENTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: admin, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: inventory}]
  rules: [{matches: [{path: {type: PathPrefix, value: /admin}}], backendRefs: [{name: inventory, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: exact, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: inventory}]
  rules: [{matches: [{path: {type: Exact, value: /exact}}], backendRefs: [{name: inventory, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: rest, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: inventory}]
  rules: [{matches: [{path: {type: PathPrefix, value: /}}], backendRefs: [{name: inventory, port: 80}]}]
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  action: DENY
  rules:
  - to: [{operation: {paths: [/admin, '/admin/{**}']}}]
  - to: [{operation: {hosts: [inventory.shop, 'inventory.shop:*']}}]
  - when: [{key: 'request.headers[x-role]', values: [admin]}]
---
apiVersion: equerry.dev/v1
kind: PeerAuthentication
metadata: {name: inventory, namespace: shop}
spec: {selector: {matchLabels: {app: inventory}}, mtls: {mode: PERMISSIVE}}
---
apiVersion: equerry.dev/v1
kind: RequestAuthentication
metadata: {name: inventory, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  jwtRules:
  - issuer: https://login.example.com
    jwks: KEYS
    claimsToHeaders: [{claim: sub, header: x-user}]
";

/// One line of the table.
#[derive(Debug, Clone)]
struct Row {
    section: &'static str,
    version: Option<Version>,
    line: &'static str,
    form: Vec<u8>,
    expected: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// What became of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Refused,
    NoService,
    NoRoute,
    /// By policy, after it was understood.
    Denied,
    /// The application saw this head.
    Seen(String),
}

fn rows() -> Result<Vec<Row>> {
    let (mut section, mut version, mut rows) = ("", None, Vec::new());
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(title) =
            line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|_| !line.contains(" => "))
        {
            (section, version) = match title.split_once(' ').unwrap_or((title, title)) {
                (section, "http/1.1") => (section, Some(Version::Http1)),
                (section, "http/2") => (section, Some(Version::Http2)),
                (section, _) => (section, None),
            };
            continue;
        }
        let (form, expected) = line.split_once(" => ").with_context(|| format!("no => in {line}"))?;
        rows.push(Row { section, version, line, form: unescaped(form)?, expected });
    }
    Ok(rows)
}

/// The head of a request over HTTP/1.1.
fn http1(row: &Row, id: &str) -> Vec<u8> {
    let own = format!("x-request-id: {id}\r\n\r\n");
    let all = |parts: &[&[u8]]| [parts.concat(), own.into_bytes()].concat();
    match row.section {
        "path" => all(&[b"GET ", &row.form, b" HTTP/1.1\r\nhost: inventory\r\n"]),
        "host" => all(&[b"GET /exact HTTP/1.1\r\nhost: ", &row.form, b"\r\n"]),
        "headers" => all(&[b"GET /public HTTP/1.1\r\nhost: inventory\r\n", &row.form, b"\r\n"]),
        _ => all(&[&row.form, b"\r\n"]),
    }
}

/// The fields of a request over HTTP/2.
fn http2<'a>(row: &'a Row, id: &'a str, lower: &'a mut Vec<Vec<u8>>) -> Vec<(&'a [u8], &'a [u8])> {
    let usual = |path: &'a [u8], authority: &'a [u8]| {
        vec![(&b":method"[..], &b"GET"[..]), (b":scheme", b"http"), (b":path", path), (b":authority", authority)]
    };
    let mut fields = match row.section {
        "path" => usual(&row.form, b"inventory"),
        "host" => usual(b"/exact", &row.form),
        "headers" => usual(b"/public", b"inventory"),
        _ => Vec::new(),
    };
    let separator: &[u8] = if row.section == "headers" { b"\r\n" } else { b"\n" };
    if !matches!(row.section, "path" | "host") {
        *lower = split(&row.form, separator);
    }
    for line in lower.iter_mut() {
        let between = if row.section == "headers" { b':' } else { b' ' };
        let colon = line.iter().skip(1).position(|byte| *byte == between).map_or(line.len(), |at| at + 1);
        if row.section == "headers" {
            // Names in capitals are no names there, and white space around values belongs to them.
            line[..colon].make_ascii_lowercase();
        }
    }
    for line in lower.iter() {
        let between = if row.section == "headers" { b':' } else { b' ' };
        let colon = line.iter().skip(1).position(|byte| *byte == between).map_or(line.len(), |at| at + 1);
        let value = line.get(colon + 1..).unwrap_or_default();
        fields.push((&line[..colon], if row.section == "headers" { value.trim_ascii() } else { value }));
    }
    fields.push((b"x-request-id", id.as_bytes()));
    fields
}

fn split(text: &[u8], separator: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(at) = equerry_tests::by_hand::find(rest, separator) {
        parts.push(rest[..at].to_vec());
        rest = &rest[at + separator.len()..];
    }
    parts.push(rest.to_vec());
    parts
}

/// Asks, and says what became of it.
async fn ask(row: &Row, version: Version, to: SocketAddr, id: &str) -> Result<Outcome> {
    let (status, body) = match version {
        Version::Http1 => {
            let mut wire = Wire::to(to).await?;
            wire.say(&http1(row, id)).await;
            match wire.answer("GET").await? {
                Some(answer) => (answer.status, answer.body),
                None => bail!("it was not answered"),
            }
        }
        Version::Http2 => match ask_http2(to, &http2(row, id, &mut Vec::new())).await? {
            Came::Answer(status, body) => (status, body),
            Came::Reset => return Ok(Outcome::Refused),
        },
    };
    let problem: Value = serde_json::from_str(&body).unwrap_or_default();
    Ok(match (status, problem["reason"].as_str()) {
        (_, Some("bad_request")) => Outcome::Refused,
        (_, Some("no_service")) => Outcome::NoService,
        (_, Some("no_route")) => Outcome::NoRoute,
        (_, Some("authz_denied")) => Outcome::Denied,
        (200, None) => Outcome::Seen(body),
        _ => bail!("{status} {body}"),
    })
}

/// A head as the application saw it.
struct Head<'a> {
    target: &'a str,
    lines: Vec<&'a str>,
}

impl<'a> Head<'a> {
    fn of(head: &'a str) -> Result<Self> {
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let mut words = first.split(' ');
        let (Some("GET" | "OPTIONS"), Some(target), Some("HTTP/1.1"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            bail!("the application saw {first}");
        };
        Ok(Self { target, lines: lines.collect() })
    }

    fn all(&self, name: &str) -> Vec<&'a str> {
        let of = |line: &&'a str| line.split_once(':').filter(|(given, _)| given.eq_ignore_ascii_case(name));
        self.lines.iter().filter_map(|line| of(line).map(|(_, value)| value.trim_matches(' '))).collect()
    }
}

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

/// What the routes mean, in plain text.
fn route(path: &str) -> &'static str {
    match path {
        "/admin" => "shop/admin",
        "/exact" => "shop/exact",
        path if path.starts_with("/admin/") => "shop/admin",
        _ => "shop/rest",
    }
}

/// What the policy means, in plain text.
fn is_closed(path: &str, authority: &str) -> bool {
    path == "/admin"
        || path.starts_with("/admin/")
        || authority == "inventory.shop"
        || authority.starts_with("inventory.shop:")
}

/// What a form must come to: the outcome, and target and authority where they are known.
fn judge(row: &Row, outbound: bool, outcome: &Outcome) -> Result<Option<(String, String)>> {
    let head = match outcome {
        Outcome::Seen(head) => Some(Head::of(head)?),
        _ => None,
    };
    let meant = match row.section {
        _ if matches!(row.expected, "refused" | "no_service" | "no_route") => None,
        "path" => Some((row.expected.to_owned(), "inventory".to_owned())),
        "host" => Some(("/exact".to_owned(), row.expected.to_owned())),
        "headers" => Some(("/public".to_owned(), "inventory".to_owned())),
        _ => row.expected.split_once(" @ ").map(|(target, authority)| (target.to_owned(), authority.to_owned())),
    };
    // An instance that is called itself knows any name, and has no routes.
    if matches!(row.expected, "no_service" | "no_route") && !outbound {
        ensure!(head.is_some(), "{outcome:?}");
        return Ok(None);
    }
    let Some((target, authority)) = meant else {
        let refused = match row.expected {
            "no_service" => Outcome::NoService,
            "no_route" => Outcome::NoRoute,
            _ => Outcome::Refused,
        };
        ensure!(*outcome == refused, "{outcome:?}");
        return Ok(None);
    };
    let closed = is_closed(path_of(&target), &authority) || row.expected == "denied";
    ensure!(closed == (*outcome == Outcome::Denied), "closed: {closed}, and it was {outcome:?}");
    let Some(head) = head else {
        ensure!(closed, "{outcome:?}");
        return Ok(Some((target, authority)));
    };
    ensure!(head.target == target, "the application saw {}", head.target);
    ensure!(head.all("host") == [authority.as_str()], "the application saw host {:?}", head.all("host"));
    if row.section == "headers" {
        match (row.expected.strip_prefix("without "), row.expected.split_once(':')) {
            (Some(gone), _) => {
                let there = head.lines.iter().any(|line| line.to_ascii_lowercase().contains(gone));
                ensure!(!there, "the application saw {gone}: {:?}", head.lines);
            }
            (None, Some((name, value))) => {
                let value = String::from_utf8_lossy(&unescaped(value.trim_matches(' '))?).into_owned();
                ensure!(
                    head.all(name) == [value.as_str()] || head.all(name).contains(&value.as_str()),
                    "the application saw {:?}",
                    head.all(name)
                );
            }
            (None, None) => bail!("{} means nothing", row.expected),
        }
    }
    Ok(Some((target, authority)))
}

/// What the logs say of the requests of this door, by their ids.
async fn logged(log: &std::path::Path, direction: &str, ids: &[String]) -> Result<HashMap<String, Value>> {
    eventually(SOON, "the access log to have every line", async || {
        let text = std::fs::read_to_string(log)?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: HashMap<String, Value> = lines
            .filter(|line| line["direction"] == direction)
            .filter_map(|line| Some((line["request_id"].as_str()?.to_owned(), line)))
            .collect();
        Ok(ids.iter().all(|id| lines.contains_key(id)).then_some(lines))
    })
    .await
}

#[tokio::test]
async fn in_every_form_of_path_host_and_header_route_decision_and_application_agree() -> Result<()> {
    let rows = rows()?;
    ensure!(rows.len() > 350, "{} forms", rows.len());
    let mesh = Mesh::plan(program(), &PAIR[..2]).await?;
    mesh.town.start_control_plane(&[]).await?;
    let keys = serde_json::to_string(&mesh.issuer.key_set())?;
    mesh.apply(&DOCUMENTS.replace("KEYS", &keys)).await?;
    let (orders, inventory) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    inventory.app.release();
    let witness = Witness::start(inventory.app.number()).await?;
    mesh.start_sidecars(&[]).await?;
    eventually(SOON, "orders to reach inventory", async || {
        Ok((orders.through_sidecar().get("inventory", "/", &[]).await?.status == 200).then_some(()))
    })
    .await?;
    witness.seen();

    let doors: [(&str, SocketAddr); 2] =
        [("outbound", orders.outbound.address().parse()?), ("inbound", inventory.inbound.address().parse()?)];
    let mut wrong = Vec::new();
    for (door, address) in doors {
        for version in [Version::Http1, Version::Http2] {
            let asked = rows.iter().enumerate().filter(|(_, row)| row.version.is_none_or(|only| only == version));
            let asking = asked.map(|(number, row)| async move {
                let id = format!("{door}-{version:?}-{number}");
                let outcome = ask(row, version, address, &id).await;
                (row, id, outcome)
            });
            let answered: Vec<_> = stream::iter(asking).buffer_unordered(16).collect().await;
            let mut understood = Vec::new();
            for (row, id, outcome) in answered {
                match outcome.and_then(|outcome| judge(row, door == "outbound", &outcome)) {
                    Ok(Some(meant)) => understood.push((row, id, meant)),
                    Ok(None) => {}
                    Err(error) => wrong.push(format!("{door} {version:?} [{}] {}: {error:#}", row.section, row.line)),
                }
            }
            // The application saw no request beside those that were to reach it.
            let seen = witness.seen();
            let unreadable = seen.iter().find(|head| head.starts_with(UNREADABLE));
            ensure!(
                unreadable.is_none(),
                "{door} {version:?}: {}",
                shown(unreadable.map_or(b"", |head| head.as_bytes()))
            );

            let ids: Vec<String> = understood.iter().map(|(_, id, _)| id.clone()).collect();
            let log = if door == "outbound" { orders } else { inventory }.access_log();
            let lines = logged(&log, door, &ids).await?;
            for (row, id, (target, authority)) in understood {
                let line = &lines[&id];
                let agrees = line["path"] == path_of(&target)
                    && line["authority"] == authority.as_str()
                    && (door == "inbound" || line["route_name"] == route(path_of(&target)));
                if !agrees {
                    let said = ["path", "authority", "route_name", "reason"].map(|key| line[key].to_string()).join(" ");
                    wrong.push(format!("{door} {version:?} [{}] {}: the log says {said}", row.section, row.line));
                }
            }
        }
    }
    println!("{} forms, at two doors, over the versions that know them", rows.len());
    ensure!(wrong.is_empty(), "{} disagree:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

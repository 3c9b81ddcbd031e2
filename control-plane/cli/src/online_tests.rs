//! The commands that talk to a control plane, against a real one in this process: real TLS, real store.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use equerry_control_plane::access::{Limits, Role};
use equerry_control_plane::audit::By;
use equerry_control_plane::authority::Authority;
use equerry_control_plane::control::ControlPlane;
use equerry_control_plane::serve::{Face, serve_admin};
use equerry_control_plane::store::{Store, StoreOptions};
use equerry_policies::names::TrustDomain;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::args::{Arguments, Command};
use crate::client::Client;
use crate::context::Connection;
use crate::failure::{Code, Failure};
use crate::{apply, audit, delete, describe, diff, get, quota, status, tap, token, top};

const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}\nspec: {selector: {app: orders}, ports: [{port: 80}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: orders, namespace: shop}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules: [{backendRefs: [{name: orders, port: 80}]}]\n";

struct Mesh {
    control: ControlPlane,
    connection: Connection,
    folder: tempfile::TempDir,
}

impl Mesh {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("equerry.local").unwrap();
        let now = SystemTime::now();
        let authority = Arc::new(Authority::open(folder.path(), &domain, Duration::from_secs(3600), now).unwrap());
        let store = Store::open(&folder.path().join("equerry.db"), &StoreOptions::default()).unwrap();
        let control = ControlPlane::restore(store, Arc::clone(&authority)).await.unwrap();
        let (face, _) = Face::new(&authority, &[], now).unwrap();
        // On every address, so that one its certificate does not name reaches it too.
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve_admin(control.clone(), Arc::new(face), listener));
        let ca_path = folder.path().join("ca.pem");
        let ca_pem = std::fs::read(&ca_path).unwrap();
        let token =
            Some(control.create_admin_token("test", Role::Admin, Limits::default(), By::name("test")).await.unwrap());
        Self { control, connection: Connection { host: "127.0.0.1".to_owned(), port, ca_pem, ca_path, token }, folder }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    async fn run(&self, line: &[&str]) -> Result<(), Failure> {
        run(self.connection.clone(), line).await
    }
}

async fn run(connection: Connection, line: &[&str]) -> Result<(), Failure> {
    let arguments = Arguments::try_parse_from(["equerry"].iter().chain(line)).unwrap_or_else(|error| panic!("{error}"));
    let mut client = Client::new(connection)?;
    match arguments.command {
        Command::Apply(args) => apply::run(&args, &mut client).await,
        Command::Get(args) => get::run(&args, &mut client).await,
        Command::Describe(args) => describe::run(&args, &mut client).await,
        Command::Diff(args) => diff::run(&args, &mut client).await,
        Command::Quota(args) => quota::run(&args, &mut client).await,
        Command::Top(args) => top::run(&args, &mut client).await,
        Command::Tap(args) => tap::run(&args, &mut client).await,
        Command::Delete(args) => delete::run(&args, &mut client).await,
        Command::Status { output } => status::run(output.output, &mut client).await,
        Command::Token { command } => token::run(&command, &mut client).await,
        Command::Audit { command } => audit::run(&command, &mut client).await,
        other => panic!("{other:?} needs no control plane"),
    }
}

#[tokio::test]
async fn documents_are_applied_shown_and_deleted_over_tls() {
    let mesh = Mesh::new().await;
    let shop = mesh.file("shop.yaml", SHOP);
    mesh.run(&["apply", "-f", &shop, "--dry-run"]).await.unwrap();
    assert_eq!(mesh.control.epoch(), 0, "a dry run changes nothing");
    mesh.run(&["apply", "-f", &shop, "--wait"]).await.unwrap();
    assert_eq!(mesh.control.epoch(), 1);
    for line in [
        &["get", "services", "-A"][..],
        &["get", "svc", "orders", "-n", "shop"],
        &["get", "HTTPRoute", "orders", "-n", "shop", "-o", "yaml"],
        &["get", "all", "-A", "-o", "json"],
        &["get", "proxies"],
        &["get", "epoch", "1"],
        &["status"],
        &["token", "create", "join", "-n", "shop", "-a", "orders", "--ttl", "1s"],
        &["token", "list"],
    ] {
        mesh.run(line).await.unwrap_or_else(|failure| panic!("{line:?}: {}", failure.message));
    }
    mesh.run(&["delete", "-f", &shop]).await.unwrap();
    assert_eq!(mesh.control.epoch(), 2, "what goes together is one epoch");
    assert!(mesh.control.truth().documents.is_empty());
}

#[tokio::test]
async fn a_route_may_come_before_the_service_it_sends_to_and_outlive_it() {
    let mesh = Mesh::new().await;
    let next =
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: next, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let routed = SHOP.replace("backendRefs: [{name: orders, port: 80}]", "backendRefs: [{name: next, port: 80}]");
    let (route, next) = (mesh.file("route.yaml", &routed), mesh.file("next.yaml", next));
    mesh.run(&["apply", "-f", &route]).await.unwrap();
    let mut client = Client::new(mesh.connection.clone()).unwrap();
    let mut warned = async || {
        let path = "/api/v1/namespaces/shop/httproutes/orders";
        client.ask(http::Method::GET, path, None::<&()>).await.unwrap().warnings()
    };
    let said = "spec.rules[0].backendRefs[0].name: found \"next\", expected the name of a Service that exists in namespace shop: \
                until there is one, requests of its share are answered 500";
    assert_eq!(warned().await, [said]);
    mesh.run(&["describe", "httproute", "orders", "-n", "shop"]).await.unwrap();
    mesh.run(&["apply", "-f", &next]).await.unwrap();
    assert_eq!(warned().await, [""; 0]);
    mesh.run(&["delete", "svc", "next", "-n", "shop"]).await.unwrap();
    assert_eq!((warned().await.len(), mesh.control.epoch()), (1, 3));
}

#[tokio::test]
async fn what_is_wrong_missing_or_still_needed_ends_with_1_and_changes_nothing() {
    let mesh = Mesh::new().await;
    let (shop, wrong) = (mesh.file("shop.yaml", SHOP), mesh.file("wrong.yaml", "kind: Servce\n"));
    mesh.run(&["apply", "-f", &shop]).await.unwrap();
    for line in [
        &["apply", "-f", &wrong][..],
        &["get", "svc", "nobody", "-n", "shop"],
        &["get", "epoch", "99"],
        &["get", "proxies", "nobody"],
        &["delete", "svc", "nobody", "-n", "shop"],
    ] {
        assert_eq!(mesh.run(line).await.unwrap_err().code, Code::Refused, "{line:?}");
    }
    let needed = mesh.run(&["delete", "svc", "orders", "-n", "shop"]).await.unwrap_err();
    assert!(needed.message.contains("HTTPRoute shop/orders names \"orders\" at spec."), "{}", needed.message);
    assert_eq!(mesh.run(&["get", "gizmos"]).await.unwrap_err().code, Code::Usage);
    assert_eq!(mesh.run(&["delete", "svc", "nobody", "-n", "shop", "--ignore-not-found"]).await, Ok(()));
    assert_eq!(mesh.control.epoch(), 1);
}

#[tokio::test]
async fn a_control_plane_that_does_not_prove_itself_is_told_nothing() {
    let (mesh, other) = (Mesh::new().await, Mesh::new().await);
    let connection = Connection { ca_pem: other.connection.ca_pem.clone(), ..mesh.connection.clone() };
    let failure = run(connection, &["status"]).await.unwrap_err();
    assert_eq!(failure.code, Code::Unreachable);
    assert!(failure.message.contains("does not prove"), "{}", failure.message);

    let named = Connection { host: "127.0.0.2".to_owned(), ..mesh.connection.clone() };
    let failure = run(named, &["status"]).await.unwrap_err();
    assert_eq!(failure.code, Code::Unreachable);
    assert!(failure.hint.unwrap().contains("--advertise 127.0.0.2"), "{}", failure.message);

    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let nobody = Connection { port: free, ..mesh.connection.clone() };
    assert_eq!(run(nobody, &["status"]).await.unwrap_err().code, Code::Unreachable);
    let empty = Connection { ca_pem: b"nothing".to_vec(), ..mesh.connection };
    assert_eq!(run(empty, &["status"]).await.unwrap_err().code, Code::Usage);
}

#[tokio::test]
async fn without_a_token_the_command_says_where_one_is_found() {
    let mesh = Mesh::new().await;
    let failure = run(Connection { token: None, ..mesh.connection.clone() }, &["status"]).await.unwrap_err();
    assert_eq!(failure.code, Code::Refused);
    assert!(failure.hint.unwrap().contains("admin.token"));
    let stranger = Connection { token: Some("eqa1.0.0".to_owned()), ..mesh.connection.clone() };
    assert_eq!(run(stranger, &["status"]).await.unwrap_err().code, Code::Refused);
}

#[tokio::test]
async fn what_would_make_a_test_fail_is_not_applied() {
    let mesh = Mesh::new().await;
    let policy = |methods: &str| {
        format!(
            "apiVersion: equerry.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: readers, namespace: shop}}\nspec: {{rules: [{{to: \
             [{{operation: {{methods: [{methods}]}}}}]}}]}}\n"
        )
    };
    let test = "---\napiVersion: equerry.dev/v1\nkind: PolicyTest\nmetadata: {name: readers, namespace: shop}\nspec:\n  cases:\n  - {name: \
                nobody writes, from: shop/frontend, request: {method: POST, url: 'http://orders/'}, expect: {decision: DENY}}\n";
    let wrong = mesh.file("wrong.yaml", &format!("{SHOP}---\n{}{test}", policy("GET, POST")));
    let failure = mesh.run(&["apply", "-f", &wrong]).await.unwrap_err();
    assert_eq!((failure.code, failure.message.as_str()), (Code::Refused, "1 test would fail; nothing was changed"));
    assert_eq!(mesh.control.epoch(), 0);
    let right = mesh.file("right.yaml", &format!("{SHOP}---\n{}{test}", policy("GET")));
    mesh.run(&["apply", "-f", &right]).await.unwrap();
    assert_eq!(mesh.control.epoch(), 1);
    let later = mesh.file("later.yaml", &policy("GET, POST"));
    mesh.run(&["apply", "-f", &later, "--dry-run"]).await.unwrap_err();
    mesh.run(&["apply", "-f", &later]).await.unwrap_err();
    assert_eq!(mesh.control.epoch(), 1, "the test that is stored holds for later changes too");
    mesh.run(&["apply", "-f", &later, "--skip-tests"]).await.unwrap();
    assert_eq!(mesh.control.epoch(), 2);
}

/// Takes syslog messages until `count` entries came, each frame as long as it says.
async fn receiver(listener: TcpListener, count: usize) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    while messages.len() < count {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let mut rest = text.as_str();
        while let Some((length, after)) = rest.split_once(' ') {
            let (message, next) = after.split_at(length.parse().unwrap());
            messages.push(message.to_owned());
            rest = next;
        }
    }
    messages
}

#[tokio::test]
async fn the_audit_log_is_delivered_from_where_it_stopped_and_a_receiver_that_is_away_loses_nothing() {
    let mesh = Mesh::new().await;
    mesh.run(&["apply", "-f", &mesh.file("shop.yaml", SHOP)]).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap().to_string();
    drop(listener);
    let cursor = mesh.folder.path().join("siem.cursor").display().to_string();
    let export = ["audit", "export", "--to", &to, "--format", "rfc5424", "--cursor", &cursor];
    let failure = mesh.run(&export).await.unwrap_err();
    assert_eq!(failure.code, Code::Unreachable);
    assert!(failure.hint.unwrap().contains("nothing is lost"), "{}", failure.message);

    let listener = TcpListener::bind(&to).await.unwrap();
    let (messages, delivered) = tokio::join!(receiver(listener, 2), mesh.run(&export));
    delivered.unwrap();
    assert!(messages[0].starts_with("<109>1 ") && messages[0].contains("seq=\"1\""), "{}", messages[0]);
    assert!(messages[1].contains("HTTPRoute shop/orders created"), "{}", messages[1]);

    mesh.run(&["delete", "httproute", "orders", "-n", "shop"]).await.unwrap();
    let listener = TcpListener::bind(&to).await.unwrap();
    let (messages, delivered) = tokio::join!(receiver(listener, 1), mesh.run(&export));
    delivered.unwrap();
    assert!(messages[0].contains("seq=\"3\"") && messages[0].contains("deleted"), "{}", messages[0]);
}

#[tokio::test]
async fn a_copy_of_the_audit_log_that_was_edited_or_cut_off_is_found() {
    let mesh = Mesh::new().await;
    mesh.run(&["apply", "-f", &mesh.file("shop.yaml", SHOP)]).await.unwrap();
    mesh.control.sign_audit().await;
    mesh.run(&["audit", "verify"]).await.unwrap();
    mesh.run(&["audit", "list", "-o", "json"]).await.unwrap();
    let lines = mesh.control.audit_lines(0, 100).await.unwrap();
    let copy = mesh.file("audit.jsonl", &(lines.join("\n") + "\n"));
    mesh.run(&["audit", "verify", "-f", &copy]).await.unwrap();
    let edited = mesh.file("edited.jsonl", &lines.join("\n").replace("created", "deleted"));
    let failure = mesh.run(&["audit", "verify", "-f", &edited]).await.unwrap_err();
    assert!(failure.message.contains("edited"), "{}", failure.message);
    let cut = mesh.file("cut.jsonl", &lines[..2].join("\n"));
    let failure = mesh.run(&["audit", "verify", "-f", &cut]).await.unwrap_err();
    assert!(failure.message.contains("its end is missing"), "{}", failure.message);
}

#[tokio::test]
async fn what_would_change_is_told_by_exit_codes_and_things_are_described() {
    let mesh = Mesh::new().await;
    let shop = mesh.file("shop.yaml", SHOP);
    // Nothing is there yet: all of it would be new.
    assert_eq!(mesh.run(&["diff", "-f", &shop]).await, Err(Failure::silent(Code::Refused)));
    mesh.run(&["apply", "-f", &shop]).await.unwrap();
    mesh.run(&["diff", "-f", &shop]).await.unwrap();
    let changed = mesh.file("changed.yaml", &SHOP.replace("ports: [{port: 80}]", "ports: [{port: 80, name: http}]"));
    assert_eq!(mesh.run(&["diff", "-f", &changed]).await.unwrap_err().code, Code::Refused);
    let wrong = mesh.file("wrong.yaml", &SHOP.replace("selector", "selectr"));
    assert_eq!(mesh.run(&["diff", "-f", &wrong]).await.unwrap_err().code, Code::Usage);

    for line in [
        &["describe", "service", "orders", "-n", "shop"][..],
        &["describe", "httproute", "orders", "-n", "shop", "-o", "json"],
        &["get", "services", "-n", "shop", "-o", "wide"],
        &["get", "all", "-A", "-l", "app notin (x)"],
        &["get", "instances", "-A"],
        &["quota"],
        &["top", "--once"],
    ] {
        mesh.run(line).await.unwrap_or_else(|failure| panic!("{line:?}: {failure:?}"));
    }
    for (line, said) in [
        (&["describe", "service", "nobody", "-n", "shop"][..], "nobody"),
        (&["describe", "proxy", "nobody", "-n", "shop"], "there is no proxy of an instance shop/nobody"),
        (&["get", "services", "-l", "a in (b"], "labelSelector"),
        (&["get", "epochs", "-w"], "cannot be watched"),
        (&["quota", "nobody"], "nobody"),
        (&["tap", "--status", "abc"], "status"),
    ] {
        let failure = mesh.run(line).await.unwrap_err();
        assert!(failure.message.contains(said), "{line:?}: {failure:?}");
    }
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_then_each_change() {
    let mesh = Mesh::new().await;
    let shop = mesh.file("shop.yaml", SHOP);
    mesh.run(&["apply", "-f", &shop]).await.unwrap();
    let mut client = Client::new(mesh.connection.clone()).unwrap();
    let mut events = client.events("/api/v1/documents?watch=1&kind=httproutes").await.unwrap();
    let mut next = async || events.next().await.unwrap().map(|event| (event.name, event.data));
    let (name, data) = next().await.unwrap();
    assert!(name == "added" && data.contains("HTTPRoute shop/orders"), "{name} {data}");
    assert_eq!(next().await.unwrap().0, "synced");
    mesh.run(&["delete", "httproute", "orders", "-n", "shop"]).await.unwrap();
    let (name, data) = next().await.unwrap();
    assert!(name == "deleted" && data.contains("HTTPRoute shop/orders"), "{name} {data}");
}

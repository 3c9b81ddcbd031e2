//! Who is kept away, why, and who serves instead: endpoints that are somebody else, and endpoints that are asked, over real
//! sockets.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use equerry_policies::names::ServiceName;
use http::Request;
use hyper::body::Incoming;

use super::harness::*;
use super::tries_tests::{SERVICE, caller, traffic};
use crate::live::Live;
use crate::probe::Prober;

const OTHER: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, annotations: {equerry.dev/accounts: cart}}
spec: {selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
";

/// A sidecar beside an application of `account`, and its application.
async fn beside(world: &World, account: &str, app: &str) -> (Sidecar, Application) {
    let application = application(|_, _| async { says(200, "") }).await;
    (world.sidecar(account, &[("app", app)], &[(8080, application.address)], &[]).await, application)
}

fn verdicts(sidecar: &Sidecar) -> Vec<(String, String)> {
    let live = sidecar.shared.live.load();
    let backend = &live.destinations[&ServiceName::parse("shop/orders").unwrap()].backend;
    let breaker = backend.traffic.breaker.as_ref();
    let health = backend.endpoints.iter().map(|endpoint| endpoint.state.health(breaker, super::now()));
    health.map(|health| (health.standing.as_str().to_owned(), health.because.to_string())).collect()
}

fn ejections(sidecar: &Sidecar, reason: &str) -> usize {
    let lines = sidecar.metrics(&format!("equerry_endpoint_ejections_total{{reason=\"{reason}\"}}"));
    lines.first().map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn an_endpoint_that_is_somebody_else_gets_no_request_is_ejected_and_another_serves() {
    on_one_thread(async {
        let world = World::new(&format!("{SERVICE}{OTHER}"));
        let (stranger, never) = beside(&world, "shop/cart", "cart").await;
        let (right, served) = beside(&world, "shop/orders", "orders").await;
        let at = vec![At::Mesh(stranger.inbound), At::Mesh(right.inbound)];
        let sidecar = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
        for number in 0..40 {
            let method = if number % 2 == 0 { "GET" } else { "POST" };
            assert_eq!(call(sidecar.outbound, request(method, "orders", "/", "x")).await.status(), 200);
        }
        assert_eq!((never.seen.borrow().len(), served.seen.borrow().len()), (0, 40));
        let ejected = ejections(&sidecar, "identity_mismatch");
        let lines = sidecar.log(40).await;
        let met = lines.iter().filter(|line| line["upstream_request_attempt_count"] == 2).count();
        assert!(ejected >= 1 && met == ejected, "ejected {ejected} times, met {met} times");
        let found = "it is not who it should be: expected spiffe://equerry.local/ns/shop/sa/orders, \
                     found spiffe://equerry.local/ns/shop/sa/cart";
        assert_eq!(verdicts(&sidecar)[0].1, found);
        assert_eq!(verdicts(&sidecar)[1].0, "usable");
    });
}

#[test]
fn where_everybody_is_somebody_else_the_caller_learns_who_was_met() {
    on_one_thread(async {
        let world = World::new(&format!("{SERVICE}{OTHER}"));
        let (stranger, never) = beside(&world, "shop/cart", "cart").await;
        let at = vec![At::Mesh(stranger.inbound)];
        let sidecar = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
        let first = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(first.status(), 503);
        let second = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        let said = String::from_utf8(second.body().to_vec()).unwrap();
        assert_eq!(second.status(), 503);
        assert!(said.contains("no_healthy_endpoint"), "{said}");
        let line = sidecar.log(2).await.pop().unwrap();
        assert!(line.to_string().contains("i0: it is not who it should be"), "{line}");
        assert_eq!(never.seen.borrow().len(), 0);
    });
}

/// An application whose `/healthz` answers what the cell says.
async fn asked() -> (Application, Rc<Cell<u16>>) {
    let status = Rc::new(Cell::new(200));
    let says_now = Rc::clone(&status);
    let application = application(move |_, request: Request<Incoming>| {
        let status = if request.uri().path() == "/healthz" { says_now.get() } else { 200 };
        async move { says(status, "") }
    });
    (application.await, status)
}

fn requests(application: &Application, path: &str) -> usize {
    application.seen.borrow().iter().filter(|head| head.uri.path() == path).count()
}

/// `orders` without sidecars, and how they are asked.
fn written(check: &str) -> String {
    let slice = "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
endpoints: [{addresses: [127.0.0.1]}]
ports: [{port: 8080}]
";
    let service = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{port: 80}]}";
    traffic(&format!("{service}{slice}"), &format!("healthCheck: {{{check}, interval: 20ms, timeout: 2s}}"))
}

async fn asking(yaml: &str, at: &[SocketAddr]) -> Sidecar {
    let sidecar = caller(yaml, at).await;
    tokio::spawn(Prober::new(sidecar.shared.live.clone(), sidecar.shared.observe.clone()).run());
    sidecar
}

#[test]
fn an_endpoint_that_answers_badly_gets_no_requests_until_it_answers_well() {
    on_one_thread(async {
        let ((one, status), (other, _)) = (asked().await, asked().await);
        let yaml = written("http: {path: /healthz}, unhealthyThreshold: 2");
        let sidecar = asking(&yaml, &[one.address, other.address]).await;
        until("it to be asked", || verdicts(&sidecar)[0].1 == "it answers when asked").await;
        status.set(500);
        until("it to be out", || verdicts(&sidecar)[0].0 == "unusable").await;
        let why = format!("asked, it fails: GET /healthz at {}: status 500", one.address);
        assert_eq!(verdicts(&sidecar)[0].1, why);
        assert_eq!(ejections(&sidecar, "health_check"), 1);
        let before = requests(&one, "/");
        for _ in 0..20 {
            assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        }
        assert_eq!((requests(&one, "/") - before, requests(&other, "/")), (0, 20));
        status.set(200);
        until("it to be back", || verdicts(&sidecar)[0].0 == "usable").await;
        for _ in 0..20 {
            call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        }
        assert!(requests(&one, "/") > before, "it gets requests again");
    });
}

#[test]
fn where_none_is_well_the_answer_says_why_each_is_out_or_all_are_used() {
    on_one_thread(async {
        let ((one, status), (other, others)) = (asked().await, asked().await);
        status.set(500);
        others.set(503);
        let sidecar = asking(&written("http: {path: /healthz}"), &[one.address, other.address]).await;
        until("both to be out", || verdicts(&sidecar).iter().all(|(standing, _)| standing == "unusable")).await;
        let refused = call(sidecar.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(refused.status(), 503);
        let line = sidecar.log(1).await.remove(0).to_string();
        for part in
            ["no_healthy_endpoint", "i0: asked, it fails: GET /healthz at", "status 500; i1: asked", "status 503"]
        {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        let sidecar = asking(&written("http: {path: /healthz}, panicPercent: 50"), &[one.address, other.address]).await;
        until("panic", || verdicts(&sidecar).iter().all(|(_, because)| because.contains("so do too many others")))
            .await;
        assert_eq!(call(sidecar.outbound, request("GET", "orders", "/", "")).await.status(), 200);
    });
}

#[test]
fn asking_goes_on_over_a_change_of_configuration_and_ends_when_nobody_uses_the_service() {
    on_one_thread(async {
        let (one, status) = asked().await;
        status.set(500);
        let sidecar = asking(&written("http: {path: /healthz}"), &[one.address]).await;
        until("it to be out", || verdicts(&sidecar)[0].0 == "unusable").await;
        let live = sidecar.shared.live.load();
        let state =
            Arc::clone(&live.destinations[&ServiceName::parse("shop/orders").unwrap()].backend.endpoints[0].state);
        sidecar.shared.live.publish(Live {
            epoch: 8,
            destinations: live.destinations.clone(),
            ..Live::nothing(live.own.clone())
        });
        assert_eq!(verdicts(&sidecar)[0].0, "unusable", "what it answered holds");
        let before = requests(&one, "/healthz");
        until("it to be asked again", || requests(&one, "/healthz") > before + 2).await;
        sidecar.shared.live.publish(Live::nothing(live.own.clone()));
        until("what it answered to be forgotten", || !state.is_unwell()).await;
        // A question that was under way may still arrive; then none does.
        let (seen, quiet) = (Cell::new(requests(&one, "/healthz")), Cell::new(0));
        until("the questions to end", || {
            let now = requests(&one, "/healthz");
            quiet.set(if seen.replace(now) == now { quiet.get() + 1 } else { 0 });
            quiet.get() > 50
        })
        .await;
    });
}

//! Of a chain of hops that may all retry only one does, over real sockets: three sidecars, and whoever fails behind them.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;

use super::harness::*;
use super::limits_tests::grpc;

const RETRIED: &str = "x-equerry-retried";
const PASSED_ON: [&str; 2] = ["traceparent", "tracestate"];

/// frontend → orders → stock → leaf, each reached by a route that retries. The first three have sidecars.
struct Chain {
    frontend: Sidecar,
    orders: Sidecar,
    stock: Sidecar,
    leaf: Application,
    /// What the applications of orders and stock have seen.
    between: [Application; 2],
}

fn yaml(protocol: &str) -> String {
    let service = |name: &str| {
        let matches = if protocol == "grpc" { "matches: [{method: POST}], " } else { "" };
        format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, annotations: {{equerry.dev/accounts: {name}}}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080, appProtocol: {protocol}}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: {name}}}]
  rules: [{{{matches}backendRefs: [{{name: {name}, port: 80}}], retry: {{codes: [503], attempts: 3, backoff: 1ms}}}}]
"
        )
    };
    ["orders", "stock", "leaf"].map(service).join("---")
}

impl Chain {
    /// `passes_on`: applications call on with the trace headers that they were called with.
    async fn new(protocol: &'static str, passes_on: bool, leaf: fn(usize) -> Response<Full<Bytes>>) -> Self {
        let world = World::new(&yaml(protocol));
        let leaf = application(move |number, _| async move { leaf(number) }).await;
        let ways: [Rc<OnceCell<SocketAddr>>; 2] = Default::default();
        let to_stock = relay("stock", Rc::clone(&ways[0]), protocol, passes_on).await;
        let to_leaf = relay("leaf", Rc::clone(&ways[1]), protocol, passes_on).await;
        let at = |name: &str, application: &Application| {
            (format!("shop/{name}"), [("app", name.to_owned())], [(8080, application.address)])
        };
        let (account, labels, ports) = at("stock", &to_leaf);
        let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
        let plain = [("shop/leaf", vec![At::Plain(80, leaf.address)])];
        let stock = world.sidecar(&account, &labels, &ports, &plain).await;
        let (account, labels, ports) = at("orders", &to_stock);
        let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
        let behind = [("shop/stock", vec![At::Mesh(stock.inbound)])];
        let orders = world.sidecar(&account, &labels, &ports, &behind).await;
        let behind = [("shop/orders", vec![At::Mesh(orders.inbound)])];
        let frontend = world.sidecar("shop/frontend", &[("app", "frontend")], &[], &behind).await;
        for (way, sidecar) in ways.iter().zip([&orders, &stock]) {
            way.set(sidecar.outbound).unwrap();
        }
        Self { frontend, orders, stock, leaf, between: [to_stock, to_leaf] }
    }

    /// How often each outbound side ended a retry so.
    fn outcomes(&self, word: &str) -> [u64; 3] {
        let name = format!("equerry_retries_total{{outcome=\"{word}\"}} ");
        let of = |sidecar: &Sidecar| {
            let lines = sidecar.metrics(&name);
            lines.first().map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
        };
        [of(&self.frontend), of(&self.orders), of(&self.stock)]
    }

    fn calls(&self) -> usize {
        self.leaf.seen.borrow().len()
    }
}

/// An application that asks the next one, and answers what that answers. It also claims that retries were made behind it, which
/// is not its to say.
async fn relay(
    to: &'static str,
    way: Rc<OnceCell<SocketAddr>>,
    protocol: &'static str,
    passes_on: bool,
) -> Application {
    application(move |_, request: Request<Incoming>| {
        let way = *way.get().unwrap();
        async move {
            let mut onward = if protocol == "grpc" { grpc(&[]) } else { super::harness::request("GET", to, "/", "") };
            onward.headers_mut().insert("host", to.parse().unwrap());
            for name in PASSED_ON.into_iter().filter(|_| passes_on) {
                if let Some(value) = request.headers().get(name) {
                    onward.headers_mut().insert(name, value.clone());
                }
            }
            let mut answered = if protocol == "grpc" { call_http2(way, onward).await } else { call(way, onward).await };
            assert!(!answered.headers().contains_key(RETRIED), "it never leaves the mesh: {answered:?}");
            // As an application would that has a failure of its own to tell.
            answered.headers_mut().remove("proxy-status");
            answered.map(Full::new)
        }
    })
    .await
}

fn fails(_: usize) -> Response<Full<Bytes>> {
    let mut answer = says(503, "");
    answer.headers_mut().insert(RETRIED, "1".parse().unwrap());
    answer
}

fn fails_by_grpc(_: usize) -> Response<Full<Bytes>> {
    let answer = Response::builder().header("content-type", "application/grpc").header("grpc-status", "14");
    answer.header(RETRIED, "1").body(Full::default()).unwrap()
}

#[test]
fn of_three_sidecars_that_may_retry_only_the_one_before_the_failure_does() {
    on_one_thread(async {
        let chain = Chain::new("http", true, fails).await;
        let answered = call(chain.frontend.outbound, request("GET", "orders", "/", "")).await;
        assert_eq!(answered.status(), 503);
        assert!(!answered.headers().contains_key(RETRIED), "it never leaves the mesh: {answered:?}");
        assert_eq!(chain.calls(), 1 + 3, "what a plain endpoint says of retries is not believed");
        assert_eq!((chain.outcomes("sent"), chain.outcomes("skipped_hop")), ([0, 0, 3], [1, 1, 0]));
        assert_eq!(chain.outcomes("exhausted"), [0, 0, 1]);
        assert_eq!(chain.between.each_ref().map(|between| between.seen.borrow().len()), [1, 1]);
    });
}

#[test]
fn so_it_is_with_calls_of_grpc() {
    on_one_thread(async {
        let chain = Chain::new("grpc", true, fails_by_grpc).await;
        let answered = call_http2(chain.frontend.outbound, grpc(&[])).await;
        assert_eq!(answered.headers()["grpc-status"], "14", "{answered:?}");
        assert!(!answered.headers().contains_key(RETRIED), "it never leaves the mesh: {answered:?}");
        assert_eq!((chain.calls(), chain.outcomes("sent")), (1 + 3, [0, 0, 3]));
        assert_eq!(chain.outcomes("skipped_hop"), [1, 1, 0]);
    });
}

#[test]
fn a_failure_before_which_nobody_retried_is_retried_by_whoever_hears_of_it() {
    on_one_thread(async {
        // Nobody passes the trace on: then hops know nothing of one another.
        let chain = Chain::new("http", false, fails).await;
        assert_eq!(call(chain.frontend.outbound, request("GET", "orders", "/", "")).await.status(), 503);
        assert_eq!((chain.calls(), chain.outcomes("sent")), (64, [3, 12, 48]));
        // What is well at the third try is well for everybody.
        let chain = Chain::new("http", true, |number| if number < 2 { fails(number) } else { says(200, "") }).await;
        assert_eq!(call(chain.frontend.outbound, request("GET", "orders", "/", "")).await.status(), 200);
        assert_eq!((chain.calls(), chain.outcomes("sent")), (3, [0, 0, 2]));
    });
}

#[test]
fn what_an_application_says_of_retries_is_not_believed() {
    on_one_thread(async {
        let world = World::new(&yaml("http"));
        let application = application(|number, _| async move { fails(number) }).await;
        let ports = [(8080, application.address)];
        let orders = world.sidecar("shop/orders", &[("app", "orders")], &ports, &[]).await;
        let behind = [("shop/orders", vec![At::Mesh(orders.inbound)])];
        let frontend = world.sidecar("shop/frontend", &[("app", "frontend")], &[], &behind).await;
        assert_eq!(call(frontend.outbound, request("GET", "orders", "/", "")).await.status(), 503);
        assert_eq!(application.seen.borrow().len(), 1 + 3);
    });
}

//! Every decision that is measured, by name: what it needs made beforehand, and the decision itself.

#[path = "tokens.rs"]
pub(crate) mod tokens;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use divan::black_box;
use equerry_policies::compile::{self, CompiledDestination, CompiledWorkload};
use equerry_policies::names::{Authority, Namespace, PolicyName, ServiceName, SpiffeId, TenantName};
use equerry_policies::policy::{
    self, Action, Algorithm, AppProtocol, AuthorizationPolicy, AuthorizationRule, Breaker as Settings, CLOCK_SKEW,
    HashOn, HttpRoute, JwtRule, LoadBalancer, Maglev, Mesh, MtlsMode, OnControlPlaneLoss, Operation, Origin, PathMatch,
    Quota, RingHash, RouteMatch, ServicePort, StringMatch, Target, TrafficPolicy,
};
use equerry_policies::view::{DestinationView, NamedJwtRule, Scoped, WorkloadView};
use equerry_traffic::authorize::{Connection, Facts, authorize};
use equerry_traffic::balance::{Balancer, EndpointState, Member, Verdict, Wanted, choose};
use equerry_traffic::breaker::Breaker;
use equerry_traffic::normalize::{self, normalize};
use equerry_traffic::quota::{Grant, Slice};
use equerry_traffic::route::{self, Known, decide, may_leave};
use equerry_traffic::token::{self, Believed};
use http::header::HeaderMap;
use http::request::Parts;
use http::{Method, Request};

/// A decision, ready to be made again and again.
pub(crate) enum Decision {
    /// On what is there.
    Alone(Box<dyn FnMut()>),
    /// On a request, which it changes: how to make one, and the decision.
    On(Box<dyn FnMut() -> Parts>, Box<dyn FnMut(&mut Parts)>),
}

/// All of them: the name, and what makes it ready.
pub(crate) fn all() -> Vec<(String, Box<dyn Fn() -> Decision>)> {
    let mut all: Vec<(String, Box<dyn Fn() -> Decision>)> = Vec::new();
    let mut add = |name: String, ready: Box<dyn Fn() -> Decision>| all.push((name, ready));
    for (name, algorithm) in BALANCERS {
        for number in [10, 1_000, 10_000] {
            add(format!("pick, {name}, {number} endpoints"), Box::new(move || pick(algorithm(), number)));
        }
    }
    add("breaker, admit and succeed".to_owned(), Box::new(breaker));
    for number in [10, 1_000, 10_000] {
        add(format!("authorize, {number} rules"), Box::new(move || authorized(number)));
    }
    for number in [10, 1_000] {
        add(format!("route, {number} rules"), Box::new(move || routed(number)));
    }
    for algorithm in tokens::ALGORITHMS {
        add(format!("token, new, {algorithm}"), Box::new(|| token_new(algorithm)));
        add(format!("token, repeated, {algorithm}"), Box::new(|| token_repeated(algorithm)));
    }
    add("quota, admit".to_owned(), Box::new(quota));
    add("whole way out".to_owned(), Box::new(whole_way_out));
    add("whole way in".to_owned(), Box::new(whole_way_in));
    all
}

/// The decision of this name.
pub(crate) fn named(name: &str) -> Decision {
    all().into_iter().find(|(one, _)| one == name).unwrap().1()
}

/// A balancer: its name, and its settings.
type Named = (&'static str, fn() -> Algorithm);

const BALANCERS: [Named; 6] = [
    ("p2c_ewma", || Algorithm::P2cEwma),
    ("least_request", || Algorithm::LeastRequest),
    ("round_robin", || Algorithm::RoundRobin),
    ("random", || Algorithm::Random),
    ("ring_hash", || Algorithm::RingHash(RingHash::on(HashOn::Identity))),
    ("maglev", || Algorithm::Maglev(Maglev::on(HashOn::Identity))),
];

/// An endpoint as `choose` wants it.
#[derive(Default, Clone)]
struct Endpoint(Arc<EndpointState>);

impl AsRef<EndpointState> for Endpoint {
    fn as_ref(&self) -> &EndpointState {
        &self.0
    }
}

impl AsRef<Arc<EndpointState>> for Endpoint {
    fn as_ref(&self) -> &Arc<EndpointState> {
        &self.0
    }
}

const BREAKER: Settings = Settings { consecutive_failures: 5, ..Settings::DEFAULT };

/// Endpoints that have all answered before, in some milliseconds, and what chooses among them.
fn endpoints(algorithm: Algorithm, number: usize) -> (Arc<Balancer>, Vec<Endpoint>, Instant) {
    let (begin, mut rng) = (Instant::now(), fastrand::Rng::with_seed(1));
    let endpoints: Vec<Endpoint> = (0..number).map(|_| Endpoint::default()).collect();
    let list = |number: usize, algorithm: Algorithm, rng: &mut _| {
        let members = (0..number).map(|n| Member::new(&format!("i{n}"), 1)).collect();
        Balancer::new(&LoadBalancer { algorithm, slow_start: None }, members, None, begin, rng)
    };
    let wanted = Wanted { key: None, tried: &[], breaker: Some(&BREAKER), now: begin };
    let only = list(1, Algorithm::P2cEwma, &mut rng);
    for endpoint in &endpoints {
        let one = std::slice::from_ref(endpoint);
        let mut tried = choose(&only, one, |_| true, &wanted, &mut rng).unwrap();
        let end = begin + Duration::from_millis(rng.u64(1..20));
        tried.finish(Verdict::Success, Some(&BREAKER), one, end, &mut rng);
    }
    (list(number, algorithm, &mut rng), endpoints, begin + Duration::from_secs(1))
}

fn pick(algorithm: Algorithm, number: usize) -> Decision {
    let (balancer, endpoints, now) = endpoints(algorithm, number);
    let mut rng = fastrand::Rng::with_seed(2);
    Decision::Alone(Box::new(move || {
        let wanted = Wanted { key: Some(rng.u64(..)), tried: &[], breaker: Some(&BREAKER), now };
        drop(black_box(choose(&balancer, black_box(&endpoints), |_| true, &wanted, &mut rng)));
    }))
}

fn breaker() -> Decision {
    let (mut breaker, now) = (Breaker::default(), Instant::now());
    Decision::Alone(Box::new(move || {
        let (admitted, _) = black_box(&mut breaker).admit(&BREAKER, now).unwrap();
        black_box(breaker.succeeded(admitted, &BREAKER, now));
    }))
}

/// Rule N lets GET below `/pN/`; only the last is met by what is asked.
fn rules(number: usize) -> Vec<Scoped<AuthorizationPolicy>> {
    let rule = |n: usize| {
        let paths = vec![StringMatch::Prefix(format!("/p{n}/"))];
        let to = Operation { methods: vec![StringMatch::Exact("GET".to_owned())], paths, ..Operation::default() };
        AuthorizationRule { from: vec![], to: vec![to], when: vec![], origin: Origin::default() }
    };
    let policy = AuthorizationPolicy {
        name: PolicyName::parse("shop/policy").unwrap(),
        target: Target::Namespace,
        action: Action::Allow,
        shadow: false,
        rules: (0..number).map(rule).collect(),
        origin: Origin::default(),
    };
    vec![Scoped { ports: None, policy }]
}

fn workload(number: usize, jwks: Option<String>) -> Arc<CompiledWorkload> {
    let rule = |jwks| JwtRule {
        issuer: "https://issuer".to_owned(),
        audiences: vec!["orders".to_owned()],
        jwks,
        fetched: None,
        places: vec![],
        forward: false,
        required_claims: vec![],
        clock_skew: CLOCK_SKEW,
        end_streams_with_token: false,
        required: true,
        claims_to_headers: vec![],
        origin: Origin::default(),
    };
    let token =
        |jwks| Scoped { ports: None, policy: NamedJwtRule { policy: "shop/tokens".to_owned(), rule: rule(jwks) } };
    let view = WorkloadView {
        mesh: Mesh::default(),
        services: vec![],
        peer: MtlsMode::Strict,
        peer_ports: vec![],
        plain_only: false,
        plain_only_ports: Vec::new(),
        tokens: jwks.map(token).into_iter().collect(),
        authorization: rules(number),
        csrf: vec![],
        trusted_hops: vec![],
        tenants: vec![],
    };
    Arc::new(compile::workload(&view).unwrap())
}

fn peer() -> SpiffeId {
    SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/frontend").unwrap()
}

const CONNECTION: Connection<'static> =
    Connection { port: 8080, peer_ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), local_ip: None, sni: None };

fn authorized(number: usize) -> Decision {
    let workload = workload(number, None);
    let now = std::time::SystemTime::now();
    let caller =
        token::verify(&workload, 8080, token::Shown::headers(&mut HeaderMap::new()), Some(&peer()), now).unwrap();
    let (path, headers) = (format!("/p{}/x", number - 1), HeaderMap::new());
    Decision::Alone(Box::new(move || {
        let (method, authority) = (&Method::GET, "orders.shop:8080");
        let facts = Facts { method, authority, path: &path, headers: &headers, connection: CONNECTION };
        assert!(authorize(black_box(&caller), black_box(&facts), &workload).is_ok());
    }))
}

fn destination(rules: usize) -> CompiledDestination {
    let service = || ServiceName::parse("shop/orders").unwrap();
    let rule = |n: usize| policy::RouteRule {
        name: None,
        matches: vec![RouteMatch {
            path: PathMatch::Prefix(format!("/p{n}")),
            headers: vec![],
            query: vec![],
            method: None,
        }],
        filters: vec![],
        backends: vec![policy::Backend { service: service(), port: Some(80), weight: 1, filters: vec![] }],
        nowhere: vec![],
        request_timeout: None,
        try_timeout: None,
        retry: None,
        origin: Origin::default(),
    };
    let all = HttpRoute {
        name: PolicyName::parse("shop/orders").unwrap(),
        kind: policy::RouteKind::Http,
        parents: vec![(service(), None)],
        rules: (0..rules).map(rule).collect(),
        origin: Origin::default(),
    };
    let view = DestinationView {
        service: service(),
        ports: vec![ServicePort {
            name: None,
            port: 80,
            target_port: 8080,
            app_protocol: AppProtocol::Http,
            undeclared: false,
        }],
        accounts: vec![],
        external: None,
        routes: vec![all],
        tcp_routes: vec![],
        faults: vec![],
        traffic: TrafficPolicy::default(),
        backends: vec![],
        origin: Origin::default(),
    };
    compile::destination(&view).unwrap()
}

fn asked() -> Parts {
    let request = Request::get("/p5/x?q=1")
        .header("host", "orders.shop:80")
        .header("accept", "*/*")
        .header("user-agent", "bench");
    request.body(()).unwrap().into_parts().0
}

fn routed(number: usize) -> Decision {
    let destination = destination(number);
    let (parts, mut rng) = (asked(), fastrand::Rng::with_seed(3));
    let named = Authority::parse("orders:80", &Namespace::parse("shop").unwrap()).unwrap();
    Decision::Alone(Box::new(move || {
        let leave = may_leave(black_box(&named), Known::Service(&destination)).unwrap();
        assert!(decide(&leave, &destination, black_box(&parts), &mut rng).is_ok());
    }))
}

/// A request that shows a token: whoever believes it takes it out.
fn showing(headers: HeaderMap) -> Box<dyn FnMut() -> Parts> {
    Box::new(move || {
        let mut parts = asked();
        parts.headers = headers.clone();
        parts
    })
}

fn token_new(algorithm: &str) -> Decision {
    let (workload, headers, now) = tokens::wanted(algorithm, 0);
    let decide = move |parts: &mut Parts| {
        assert!(token::verify(&workload, 8080, token::Shown::headers(&mut parts.headers), None, now).is_ok());
    };
    Decision::On(showing(headers), Box::new(decide))
}

fn token_repeated(algorithm: &str) -> Decision {
    let (workload, headers, now) = tokens::wanted(algorithm, 0);
    let mut believed = Believed::default();
    let decide = move |parts: &mut Parts| {
        let shown = token::Shown::headers(&mut parts.headers);
        assert!(token::verify_remembering(&mut believed, &workload, 8080, shown, None, || now).is_ok());
    };
    Decision::On(showing(headers), Box::new(decide))
}

/// A quota of which a great deal is granted in the window of 10 s.
fn granted() -> Slice {
    let quota =
        Quota { id: "acme/0".to_owned(), services: vec![], requests: u64::MAX / 4, window: Duration::from_secs(5) };
    let slice = Slice::new(TenantName::parse("acme").unwrap(), quota, OnControlPlaneLoss::LastShare, true);
    slice.on_grant(&Grant { window: 2, granted: u64::MAX / 8, ..Grant::default() }, 10_000);
    slice
}

fn quota() -> Decision {
    let slice = granted();
    Decision::Alone(Box::new(move || assert!(slice.admit(black_box(10_000)).is_ok())))
}

fn whole_way_out() -> Decision {
    let destination = destination(10);
    let (balancer, endpoints, now) = endpoints(Algorithm::P2cEwma, 10);
    let (namespace, mut rng) = (Namespace::parse("shop").unwrap(), fastrand::Rng::with_seed(4));
    let decide = move |parts: &mut Parts| {
        let normal = normalize(parts, normalize::Direction::Outbound).unwrap();
        let named = Authority::parse(normal.authority(), &namespace).unwrap();
        let leave = may_leave(&named, Known::Service(&destination)).unwrap();
        let route::Decision::Forward(choice) = decide(&leave, &destination, parts, &mut rng).unwrap() else { return };
        black_box(choice.backend);
        let wanted = Wanted { key: None, tried: &[], breaker: Some(&BREAKER), now };
        let mut one = choose(&balancer, &endpoints, |_| true, &wanted, &mut rng).unwrap();
        one.finish(Verdict::Success, Some(&BREAKER), &endpoints, now, &mut rng);
    };
    Decision::On(Box::new(asked), Box::new(decide))
}

fn whole_way_in() -> Decision {
    let (workload, headers, now) = tokens::wanted("ES256", 100);
    let (mut believed, slice, peer) = (Believed::default(), granted(), peer());
    let request = move || {
        let mut parts = asked();
        parts.headers.extend(headers.clone());
        parts
    };
    let decide = move |parts: &mut Parts| {
        let normal = normalize(parts, normalize::Direction::Inbound { mesh_peer: true, trusted_hops: 0 }).unwrap();
        let caller = token::verify_remembering(
            &mut believed,
            &workload,
            8080,
            token::Shown::headers(&mut parts.headers),
            Some(&peer),
            || now,
        )
        .unwrap();
        let (authority, path) = (normal.authority(), normal.path());
        let facts = Facts { method: &parts.method, authority, path, headers: &parts.headers, connection: CONNECTION };
        assert!(authorize(&caller, &facts, &workload).is_ok());
        assert!(slice.admit(10_000).is_ok());
    };
    Decision::On(Box::new(request), Box::new(decide))
}

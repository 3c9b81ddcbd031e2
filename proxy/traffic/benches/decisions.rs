//! Decisions alone, without a socket: what each costs as policies and Services grow. Run by `cargo bench -p equerry-traffic`.
//!
//! The bars are the project's: a pick under 100 ns among 1,000 endpoints, a permit under 1 µs among 1,000 rules, a token sent
//! again under 1 µs, a quota under 50 ns, the whole way in or out under 2 µs.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench reads the clock, and ends at the first surprise"
)]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use divan::{Bencher, black_box};
use equerry_policies::compile::{self, CompiledDestination, CompiledWorkload};
use equerry_policies::names::{Authority, Namespace, PolicyName, ServiceName, SpiffeId, TenantName};
use equerry_policies::policy::{
    self, Action, AppProtocol, AuthorizationPolicy, AuthorizationRule, Breaker, HttpRoute, JwtRule, Mesh, MtlsMode,
    OnControlPlaneLoss, Operation, Origin, PathMatch, Quota, RouteMatch, ServicePort, StringMatch, Target,
    TrafficPolicy,
};
use equerry_policies::view::{DestinationView, NamedJwtRule, Scoped, WorkloadView};
use equerry_traffic::authorize::{Facts, authorize};
use equerry_traffic::balance::{EndpointState, P2cEwma, Verdict, choose};
use equerry_traffic::normalize::{self, normalize};
use equerry_traffic::quota::{Grant, Slice};
use equerry_traffic::route::{Known, may_leave, route};
use equerry_traffic::token::{self, Believed};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, Request};
use serde_json::json;

fn main() {
    divan::main();
}

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

const BREAKER: Breaker =
    Breaker { consecutive_failures: 5, penalty_min: Duration::from_secs(1), penalty_max: Duration::from_secs(60) };

/// Endpoints that have all answered before, in some milliseconds.
fn endpoints(number: usize) -> (Vec<Endpoint>, Instant) {
    let (begin, mut rng) = (Instant::now(), fastrand::Rng::with_seed(1));
    let endpoints: Vec<Endpoint> = (0..number).map(|_| Endpoint::default()).collect();
    for endpoint in &endpoints {
        let mut one = choose(&P2cEwma, std::slice::from_ref(endpoint), &[], Some(&BREAKER), begin, &mut rng).unwrap();
        one.finish(Verdict::Success, Some(&BREAKER), begin + Duration::from_millis(rng.u64(1..20)), &mut rng);
    }
    (endpoints, begin + Duration::from_secs(1))
}

#[divan::bench(args = [10, 1_000, 10_000])]
fn pick_with_breaker(bencher: Bencher<'_, '_>, number: usize) {
    let (endpoints, now) = endpoints(number);
    let mut rng = fastrand::Rng::with_seed(2);
    bencher
        .bench_local(|| drop(black_box(choose(&P2cEwma, black_box(&endpoints), &[], Some(&BREAKER), now, &mut rng))));
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
        tokens: jwks.map(token).into_iter().collect(),
        authorization: rules(number),
        tenants: vec![],
    };
    Arc::new(compile::workload(&view).unwrap())
}

fn peer() -> SpiffeId {
    SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/frontend").unwrap()
}

#[divan::bench(args = [10, 1_000, 10_000])]
fn authorize_by_path(bencher: Bencher<'_, '_>, number: usize) {
    let workload = workload(number, None);
    let caller = token::verify(&workload, 8080, &mut HeaderMap::new(), Some(&peer()), SystemTime::now()).unwrap();
    let path = format!("/p{}/x", number - 1);
    let facts = Facts {
        method: &Method::GET,
        authority: "orders.shop:8080",
        path: &path,
        port: 8080,
        peer_ip: [10, 0, 0, 1].into(),
    };
    assert!(authorize(&caller, &facts, &workload).is_ok());
    bencher.bench_local(|| black_box(authorize(black_box(&caller), black_box(&facts), &workload).is_ok()));
}

fn destination(rules: usize) -> CompiledDestination {
    let service = || ServiceName::parse("shop/orders").unwrap();
    let rule = |n: usize| policy::RouteRule {
        name: None,
        matches: vec![RouteMatch { path: PathMatch::Prefix(format!("/p{n}")), headers: vec![], method: None }],
        backends: vec![policy::Backend { service: service(), port: Some(80), weight: 1 }],
        request_timeout: None,
        try_timeout: None,
        retry: None,
        origin: Origin::default(),
    };
    let all = HttpRoute {
        name: PolicyName::parse("shop/orders").unwrap(),
        parents: vec![(service(), None)],
        rules: (0..rules).map(rule).collect(),
        origin: Origin::default(),
    };
    let view = DestinationView {
        service: service(),
        ports: vec![ServicePort { name: None, port: 80, target_port: 8080, app_protocol: AppProtocol::Http }],
        accounts: vec![],
        external: None,
        routes: vec![all],
        traffic: TrafficPolicy::default(),
        backends: vec![],
        origin: Origin::default(),
    };
    compile::destination(&view).unwrap()
}

fn asked() -> http::request::Parts {
    let request = Request::get("/p5/x?q=1")
        .header("host", "orders.shop:80")
        .header("accept", "*/*")
        .header("user-agent", "bench");
    request.body(()).unwrap().into_parts().0
}

#[divan::bench(args = [10, 1_000])]
fn route_by_path(bencher: Bencher<'_, '_>, number: usize) {
    let destination = destination(number);
    let named = Authority::parse("orders:80", &Namespace::parse("shop").unwrap()).unwrap();
    let leave = may_leave(&named, Known::Service(&destination)).unwrap();
    let (parts, mut rng) = (asked(), fastrand::Rng::with_seed(3));
    bencher.bench_local(|| black_box(route(&leave, &destination, black_box(&parts), &mut rng).is_ok()));
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A key of each kind, the key set that holds it, and how it signs.
struct Signer {
    jwk: serde_json::Value,
    sign: Sign,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn signer(algorithm: &str) -> Signer {
    let rng = SystemRandom::new();
    match algorithm {
        "ES256" => {
            let key = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let (x, y) = key.public_key().as_ref()[1..].split_at(32);
            let jwk = json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)});
            Signer { jwk, sign: Box::new(move |message| key.sign(&rng, message).unwrap().as_ref().to_vec()) }
        }
        "EdDSA" => {
            let key = Ed25519KeyPair::generate().unwrap();
            let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key())});
            Signer { jwk, sign: Box::new(move |message| key.sign(message).as_ref().to_vec()) }
        }
        _ => {
            let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
            let public = key.public_key();
            let n = b64(public.modulus().big_endian_without_leading_zero());
            let jwk = json!({"kty": "RSA", "n": n, "e": b64(public.exponent().big_endian_without_leading_zero())});
            let sign = move |message: &[u8]| {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &rng, message, &mut signature).unwrap();
                signature
            };
            Signer { jwk, sign: Box::new(sign) }
        }
    }
}

/// A workload that wants a token, and the headers that carry one.
fn token(algorithm: &str, rules: usize) -> (Arc<CompiledWorkload>, HeaderMap, SystemTime) {
    let now = SystemTime::now();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let Signer { jwk, sign } = signer(algorithm);
    let head = b64(json!({"alg": algorithm}).to_string());
    let claims =
        json!({"iss": "https://issuer", "sub": "alice", "aud": "orders", "exp": seconds + 3600, "tenant": "acme"});
    let signed = format!("{head}.{}", b64(claims.to_string()));
    let bearer = format!("Bearer {signed}.{}", b64(sign(signed.as_bytes())));
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&bearer).unwrap());
    (workload(rules, Some(json!({"keys": [jwk]}).to_string())), headers, now)
}

#[divan::bench(args = ["ES256", "RS256", "EdDSA"])]
fn token_new(bencher: Bencher<'_, '_>, algorithm: &str) {
    let (workload, mut headers, now) = token(algorithm, 0);
    assert!(token::verify(&workload, 8080, &mut headers, None, now).is_ok());
    bencher.bench_local(|| black_box(token::verify(&workload, 8080, &mut headers, None, now).is_ok()));
}

#[divan::bench]
fn token_repeated(bencher: Bencher<'_, '_>) {
    let (workload, mut headers, now) = token("ES256", 0);
    let mut believed = Believed::default();
    bencher.bench_local(|| {
        black_box(token::verify_remembering(&mut believed, &workload, 8080, &mut headers, None, now).is_ok())
    });
}

/// A quota of which a great deal is granted in the window of 10 s.
fn granted() -> Slice {
    let quota =
        Quota { id: "acme/0".to_owned(), services: vec![], requests: u64::MAX / 4, window: Duration::from_secs(5) };
    let slice = Slice::new(TenantName::parse("acme").unwrap(), quota, OnControlPlaneLoss::LastShare, true);
    slice.on_grant(&Grant { window: 2, granted: u64::MAX / 8, ..Grant::default() }, 10_000);
    slice
}

#[divan::bench]
fn quota_admit(bencher: Bencher<'_, '_>) {
    let slice = granted();
    assert!(slice.admit(10_000).is_ok());
    bencher.bench_local(|| black_box(slice.admit(black_box(10_000)).is_ok()));
}

#[divan::bench]
fn whole_way_out(bencher: Bencher<'_, '_>) {
    let destination = destination(10);
    let (endpoints, now) = endpoints(10);
    let (namespace, mut rng) = (Namespace::parse("shop").unwrap(), fastrand::Rng::with_seed(4));
    bencher.with_inputs(asked).bench_local_values(|mut parts| {
        let normal = normalize(&mut parts, normalize::Direction::Outbound).unwrap();
        let named = Authority::parse(normal.authority(), &namespace).unwrap();
        let leave = may_leave(&named, Known::Service(&destination)).unwrap();
        let choice = route(&leave, &destination, &parts, &mut rng).unwrap();
        let mut one = choose(&P2cEwma, &endpoints, &[], Some(&BREAKER), now, &mut rng).unwrap();
        one.finish(Verdict::Success, Some(&BREAKER), now, &mut rng);
        black_box((choice.backend, parts))
    });
}

#[divan::bench]
fn whole_way_in(bencher: Bencher<'_, '_>) {
    let (workload, headers, now) = token("ES256", 100);
    let (mut believed, slice, peer) = (Believed::default(), granted(), peer());
    let request = || {
        let mut parts = asked();
        parts.headers.extend(headers.clone());
        parts
    };
    bencher.with_inputs(request).bench_local_values(|mut parts| {
        let normal = normalize(&mut parts, normalize::Direction::Inbound { mesh_peer: true }).unwrap();
        let caller =
            token::verify_remembering(&mut believed, &workload, 8080, &mut parts.headers, Some(&peer), now).unwrap();
        let (authority, path) = (normal.authority(), normal.path());
        let facts = Facts { method: &parts.method, authority, path, port: 8080, peer_ip: [10, 0, 0, 1].into() };
        assert!(authorize(&caller, &facts, &workload).is_ok());
        assert!(slice.admit(10_000).is_ok());
        black_box(parts)
    });
}

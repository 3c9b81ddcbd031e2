//! What decisions must bear from callers: heads of requests in every spelling, and tokens nobody signed.
//!
//! Bodies of fuzz targets, shared with the tests that replay their corpora.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use equerry_policies::compile::{self, CompiledWorkload};
use equerry_policies::document;
use equerry_policies::interpret::interpret;
use equerry_policies::view::{self, WorkloadFacts};
use equerry_traffic::normalize::{Direction, Normal, normalize};
use equerry_traffic::token::{Shown, verify};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::request::Parts;

/// A request as `METHOD TARGET`, then a line for each header.
fn request(bytes: &[u8]) -> Option<Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    // Both readers refuse a fragment before anybody takes the target apart.
    let (method, target) = first.split_once(' ').filter(|(_, target)| !target.contains('#'))?;
    let (mut parts, ()) = http::Request::builder().method(method).uri(target).body(()).ok()?.into_parts();
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (HeaderName::from_bytes(&line[..at]).ok()?, line[at + 1..].trim_ascii());
        parts.headers.append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(parts)
}

fn shown(normal: &Normal) -> (&str, &str, Option<&str>) {
    (normal.authority(), normal.path(), normal.target().query())
}

/// The normal form of a request: a second reading, by the next sidecar, finds nothing to change in it.
pub fn normal_form(bytes: &[u8]) {
    for direction in [Direction::Outbound, Direction::Inbound { mesh_peer: false, trusted_hops: 1 }] {
        let Some(mut parts) = request(bytes) else { return };
        let Ok(once) = normalize(&mut parts, direction) else { continue };
        let mut next = parts.clone();
        next.headers.insert(http::header::HOST, once.host_header().clone());
        next.uri = http::Uri::from(once.target().clone());
        let again = normalize(&mut next, direction).unwrap();
        assert_eq!(shown(&again), shown(&once));
        let path = once.path();
        assert!(path.starts_with('/') || path == "*", "{path}");
        assert!(!path.split('/').any(|segment| segment == "." || segment == ".."), "{path}");
    }
}

/// Workloads that require a token of an issuer whose private key is thrown away.
static RULES: LazyLock<CompiledWorkload> = LazyLock::new(|| {
    let documents = document::read("rules.yaml", include_str!("token_rules.yaml")).unwrap();
    let meaning = interpret(&documents).unwrap();
    let service = meaning.services.values().next().unwrap();
    let account = service.accounts.first().unwrap().clone();
    let facts = WorkloadFacts { account, labels: service.selector.clone(), ports: vec![8080] };
    compile::workload(&view::workload(&meaning, &facts)).unwrap()
});

/// A token that nobody could have signed is never believed, and what it claims never told.
pub fn token(bytes: &[u8]) {
    let mut value = b"Bearer ".to_vec();
    value.extend_from_slice(bytes);
    let Ok(value) = HeaderValue::from_bytes(&value) else { return };
    let mut headers = http::HeaderMap::new();
    headers.insert(AUTHORIZATION, value);
    headers.insert("x-user", HeaderValue::from_static("root"));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let judged = verify(&RULES, 8080, Shown { headers: &mut headers, normal: None }, None, now);
    assert!(judged.is_err(), "a forged token was believed");
    assert!(!headers.contains_key("x-user"));
}

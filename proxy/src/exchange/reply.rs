//! Responses to callers. The only file that writes a status which no application gave.
//!
//! A refusal tells HTTP callers its reason in the status, in `Proxy-Status` (RFC 9209) and in a problem+json body (RFC
//! 9457); gRPC callers get trailers alone. Who refused and by which rule is told only where the mesh allows it.

use std::cell::RefCell;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use equerry_policies::names::TenantName;
use equerry_policies::policy::ErrorDetail;
use equerry_traffic::quota::Share;
use equerry_traffic::{Reason, Refusal, filter, texts};
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::{Method, Response, StatusCode, Version};
use serde::Serialize;

use super::body::{Answer, Held};
use super::facts::Record;
use super::watch::Watch;
use crate::upstream::{ResponseBody, Switched};

/// How this proxy names itself in `Proxy-Status`.
const NAME: &str = "equerry";
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// A sidecar tells the one that called it: a hop behind made retries. No application ever sees it, nor is one believed to say it.
const RETRIED: HeaderName = HeaderName::from_static("x-equerry-retried");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What the form of a refusal depends on.
#[derive(Debug, Clone)]
pub(crate) struct Style {
    /// The caller speaks gRPC.
    pub(crate) grpc: bool,
    /// The request had this method: a response to HEAD has no body.
    pub(crate) method: Method,
    /// How much of the cause the caller is told.
    pub(crate) detail: ErrorDetail,
    /// This process is leaving: the caller should not use the connection again.
    pub(crate) close: bool,
    /// The caller's connection carries one request after the other, each of which begins where the last is taken to end.
    pub(crate) one_by_one: bool,
}

impl Style {
    /// The form for a request with this method and these headers.
    pub(crate) fn of(
        method: &Method,
        headers: &HeaderMap,
        version: Version,
        detail: ErrorDetail,
        leaving: bool,
    ) -> Self {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let one_by_one = version < Version::HTTP_2;
        Self { grpc: is_grpc(kind), method: method.clone(), detail, close: leaving && one_by_one, one_by_one }
    }
}

/// `application/grpc`, alone or with a suffix or parameters; not `application/grpc-web`, which is ordinary HTTP.
fn is_grpc(kind: &[u8]) -> bool {
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The response of an upstream, passed on. The `Proxy-Status` of an authenticated sidecar is its own; everybody else's is
/// removed.
pub(crate) fn answer(
    answered: Response<ResponseBody>,
    held: Held,
    watch: Option<Watch>,
    style: &Style,
    mut record: Record,
) -> Response<Answer> {
    let (mut head, body) = answered.into_parts();
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = if switched { head.headers.remove(UPGRADE) } else { None };
    strip(&mut head.headers, body.peer().is_none());
    if let Some(upgrade) = upgrade {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, upgrade.clone());
        record.note(|exchange| exchange.upgrade = Some(upgrade));
    } else if style.close {
        head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    head.version = Version::HTTP_11;
    head.extensions.clear();
    record.note(|exchange| exchange.status = head.status.as_u16());
    Response::from_parts(head, Answer::theirs(body, held, watch, record))
}

/// Says that a connection stands, over which bytes may pass now.
pub(crate) fn connected(far: Switched, held: Held, watch: Watch, mut record: Record) -> Response<Answer> {
    record.note(|exchange| exchange.status = StatusCode::OK.as_u16());
    Response::new(Answer::connected(far, held, watch, record))
}

/// The answer that a route gives by itself.
pub(crate) fn by_rule(answer: filter::Answer, style: &Style, mut record: Record) -> Response<Answer> {
    record.note(|exchange| exchange.route = Some(Arc::clone(&answer.rule.route)));
    record.ended(Reason::Ok, answer.status.as_u16());
    let mut response = Response::new(Answer::ours(Bytes::new(), record));
    (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers);
    if style.close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Says that the request goes no further, and why.
pub(crate) fn refuse(refusal: &Refusal, style: &Style, mut record: Record) -> Response<Answer> {
    let nobody_reads = matches!(refusal, Refusal::ClientGone);
    let status = if style.grpc && !nobody_reads { StatusCode::OK } else { refusal.status() };
    record.note(|exchange| {
        exchange.policy_rule = refusal.cause().map(str::to_owned);
        exchange.detail = Some(refusal.to_string());
    });
    record.ended(refusal.reason(), status.as_u16());
    let mut response = if style.grpc { grpc(refusal, style, record) } else { problem(refusal, style, record) };
    *response.status_mut() = status;
    let headers = response.headers_mut();
    set(headers, PROXY_STATUS, proxy_status(refusal.reason()));
    set(headers, CACHE_CONTROL, Some("no-store".to_owned()));
    if refusal.status() == StatusCode::UNAUTHORIZED {
        set(headers, WWW_AUTHENTICATE, Some(challenge(refusal)));
    }
    if let Some(after) = refusal.retry_after() {
        set(headers, RETRY_AFTER, Some(whole_seconds(after).to_string()));
    }
    if let Refusal::Quota(over) = refusal {
        rate_limit(headers, &over.tenant, &over.share);
    }
    let old = *refusal == Refusal::OldVersion;
    if old {
        headers.insert(UPGRADE, HeaderValue::from_static("HTTP/1.1"));
    }
    // Who wrote what has more than one meaning may mean another end of it, too: what follows would be somebody's request.
    let ambiguous = style.one_by_one && refusal.reason() == Reason::BadRequest;
    if style.close || old || ambiguous {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What is left of a tenant's quota at this sidecar (draft-ietf-httpapi-ratelimit-headers-10).
pub(crate) fn rate_limit(headers: &mut HeaderMap, tenant: &TenantName, share: &Share) {
    headers.insert(RATELIMIT_POLICY, policy(tenant, share));
    headers.insert(RATELIMIT, with_numbers(tenant, [("r", share.remaining), ("t", whole_seconds(share.reset))]));
}

/// What a tenant's quota is: what it was for the last request, mostly.
fn policy(tenant: &TenantName, share: &Share) -> HeaderValue {
    thread_local! {
        static LAST: RefCell<Option<(TenantName, [u64; 2], HeaderValue)>> = const { RefCell::new(None) };
    }
    let (limit, window) = (share.limit, share.window.as_secs());
    LAST.with_borrow_mut(|last| match last {
        Some((of, numbers, told)) if *of == *tenant && *numbers == [limit, window] => told.clone(),
        _ => {
            let told = with_numbers(tenant, [("q", limit), ("w", window)]);
            *last = Some((tenant.clone(), [limit, window], told.clone()));
            told
        }
    })
}

/// A quoted name with its parameters (RFC 9651 section 3.1.2).
fn with_numbers(tenant: &TenantName, [(key, number), (other_key, other)]: [(&str, u64); 2]) -> HeaderValue {
    let (mut digits, mut other_digits) = (itoa::Buffer::new(), itoa::Buffer::new());
    let (number, other) = (digits.format(number), other_digits.format(other));
    let parts = ["\"", tenant.as_str(), "\";", key, "=", number, ";", other_key, "=", other];
    // A tenant's name is printable, and so are numbers.
    texts::header_value(&parts.map(str::as_bytes)).unwrap_or(HeaderValue::from_static(""))
}

/// The reason in the `Proxy-Status` of an authenticated peer's response, when it gave one.
pub(crate) fn believed(headers: &HeaderMap) -> Option<Reason> {
    let value = headers.get(PROXY_STATUS)?.to_str().ok()?;
    let ours = value.strip_prefix(NAME)?.strip_prefix("; ")?;
    let reason = ours.split("; ").find_map(|parameter| parameter.strip_prefix("details="))?;
    reason.trim_matches('"').parse().ok()
}

/// Tells the caller's sidecar, of a failure, that a hop behind us made retries.
pub(crate) fn retried_behind(response: &mut Response<Answer>, style: &Style) {
    // A gRPC call may fail at its end.
    if style.grpc || response.status().as_u16() >= 400 {
        response.headers_mut().insert(RETRIED, HeaderValue::from_static("1"));
    }
}

/// Whether an authenticated peer says of its answer that a hop behind it made retries.
pub(crate) fn was_retried_behind(headers: &HeaderMap) -> bool {
    headers.contains_key(RETRIED)
}

fn proxy_status(reason: Reason) -> Option<String> {
    reason.proxy_status_error().map(|error| format!("{NAME}; error={error}; details=\"{reason}\""))
}

/// RFC 6750 section 3: without a token there is no error to name.
fn challenge(refusal: &Refusal) -> String {
    match refusal.reason() {
        Reason::TokenMissing => "Bearer".to_owned(),
        reason => format!("Bearer error=\"invalid_token\", error_description=\"{reason}\""),
    }
}

/// What a person reads in the body.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: String,
    reason: &'static str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
}

fn problem(refusal: &Refusal, style: &Style, record: Record) -> Response<Answer> {
    let status = refusal.status();
    let told = style.detail == ErrorDetail::Full;
    let problem = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or("Refused"),
        status: status.as_u16(),
        detail: said(refusal, style.detail),
        reason: refusal.reason().as_str(),
        request_id: record.request_id(),
        policy: policies(refusal).filter(|_| told),
        rule: refusal.cause().filter(|_| told),
    };
    // Only a map with keys that are no text, or a failing writer, could make this fail.
    let text = serde_json::to_vec(&problem).unwrap_or_default();
    let length = text.len();
    let content = if style.method == Method::HEAD { Bytes::new() } else { Bytes::from(text) };
    let mut response = Response::new(Answer::ours(content, record));
    set(response.headers_mut(), CONTENT_TYPE, Some("application/problem+json".to_owned()));
    set(response.headers_mut(), CONTENT_LENGTH, Some(length.to_string()));
    response
}

/// What ends a gRPC call whose response has begun.
pub(crate) fn trailers(refusal: &Refusal) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    set(&mut trailers, GRPC_STATUS, Some(refusal.grpc_status().to_string()));
    let message = format!("{}: {}", refusal.reason(), said(refusal, ErrorDetail::Reason));
    set(&mut trailers, GRPC_MESSAGE, Some(percent_encoded(&message)));
    trailers
}

/// Trailers alone, in the place of a head (gRPC over HTTP/2, "Trailers-Only").
fn grpc(refusal: &Refusal, style: &Style, record: Record) -> Response<Answer> {
    let mut response = Response::new(Answer::ours(Bytes::new(), record));
    let headers = response.headers_mut();
    set(headers, CONTENT_TYPE, Some("application/grpc".to_owned()));
    set(headers, GRPC_STATUS, Some(refusal.grpc_status().to_string()));
    let message = format!("{}: {}", refusal.reason(), said(refusal, style.detail));
    set(headers, GRPC_MESSAGE, Some(percent_encoded(&message)));
    response
}

/// The sentence for the caller. A policy's name is in it only when all may be told.
fn said(refusal: &Refusal, detail: ErrorDetail) -> String {
    match refusal {
        Refusal::Authz(_) if detail == ErrorDetail::Reason => {
            "the policy of this workload does not allow it".to_owned()
        }
        other => other.to_string(),
    }
}

fn policies(refusal: &Refusal) -> Option<String> {
    match refusal {
        Refusal::Authz(denied) if denied.policies.is_empty() => None,
        Refusal::Authz(denied) => Some(denied.policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        Refusal::Token(fault) => fault.policy.as_deref().map(str::to_owned),
        _ => None,
    }
}

/// gRPC's percent-encoding of a status message: everything but printable ASCII, and `%`.
fn percent_encoded(message: &str) -> String {
    message.bytes().fold(String::with_capacity(message.len()), |mut encoded, byte| {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Rounded up: who comes back after it is not too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<String>) {
    if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
        headers.insert(name, value);
    }
}

/// Takes away the fields that belong to one connection only (RFC 9110 section 7.6.1), what is for sidecars alone, what
/// `Connection` names, and those that only a sidecar may set when the sender is a `stranger`. One walk finds them: to look for each
/// that might be there costs a hash.
fn strip(headers: &mut HeaderMap, stranger: bool) {
    static ALWAYS: [HeaderName; 7] = [
        CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        http::header::TE,
        http::header::TRANSFER_ENCODING,
        UPGRADE,
        RETRIED,
    ];
    let reserved = |name: &HeaderName| *name == PROXY_STATUS || name.as_str().starts_with("x-equerry-");
    // Their lengths tell nearly all others apart.
    let always = |name: &HeaderName| matches!(name.as_str().len(), 2 | 7 | 10 | 16 | 17) && ALWAYS.contains(name);
    let goes = |name: &HeaderName| always(name) || stranger && reserved(name);
    // Most answers have none of them, `Connection` neither.
    if !headers.keys().any(goes) {
        return;
    }
    let named = named_by_connection(headers, &ALWAYS);
    while let Some(name) = headers.keys().find(|name| goes(name) || named.contains(name)).cloned() {
        headers.remove(name);
    }
}

/// The fields that `Connection` names, beside those that `always` go.
fn named_by_connection(headers: &HeaderMap, always: &[HeaderName]) -> Vec<HeaderName> {
    let options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    options
        .flat_map(|value| value.split(','))
        .filter_map(|option| headers.keys().find(|name| name.as_str().eq_ignore_ascii_case(option.trim())))
        .filter(|name| **name != CONTENT_LENGTH && !always.contains(name))
        .cloned()
        .collect()
}

//! Cross-origin resource sharing, as browsers ask for it (the Fetch standard) and the Gateway API's filter answers
//! (GEP-1767).
//!
//! What is allowed is told by echoing what was asked for, never by `*`, so that an answer is right with credentials and
//! without. Where an origin is not allowed nothing is told, and the browser keeps the answer from the script.

use equerry_policies::compile::{Allowed, Cors};
use http::Method;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::request::Parts;

/// What says whether a response is shared. The filter decides that alone: what the application says is taken away.
static SHARING: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// Whether a request is a browser's question whether a script may send another.
pub(crate) fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS
        && parts.headers.contains_key(ORIGIN)
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The headers of the answer to a preflight request with headers `asked`.
pub(crate) fn preflight(cors: &Cors, asked: &HeaderMap, answer: &mut HeaderMap) {
    share(cors, asked.get(ORIGIN), answer);
    if !answer.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    let lists = [
        (&cors.methods, ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
        (&cors.headers, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
    ];
    for (allowed, question, reply) in lists {
        match allowed {
            Allowed::Nothing => {}
            Allowed::These(list) => _ = answer.insert(reply, list.clone()),
            Allowed::All => {
                if let Some(wanted) = asked.get(&question) {
                    answer.insert(reply, wanted.clone());
                    vary(answer, &question);
                }
            }
        }
    }
    answer.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.clone());
}

/// Says in a response's headers whether the script of `origin` may read it.
pub(crate) fn share(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for name in &SHARING {
        headers.remove(name);
    }
    vary(headers, &ORIGIN);
    let Some(origin) = origin else { return };
    let allowed = origin.to_str().is_ok_and(|text| cors.origins.iter().any(|pattern| pattern.matches(text)));
    if !allowed {
        return;
    }
    if let Some(list) = exposed(cors, headers) {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, list);
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

/// The headers that a script may read. With credentials `*` would be the name of a header, so the names are told.
fn exposed(cors: &Cors, headers: &HeaderMap) -> Option<HeaderValue> {
    match &cors.expose {
        Allowed::Nothing => None,
        Allowed::These(list) => Some(list.clone()),
        Allowed::All if !cors.credentials => Some(HeaderValue::from_static("*")),
        Allowed::All => {
            let names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
            HeaderValue::try_from(names.join(", ")).ok().filter(|list| !list.is_empty())
        }
    }
}

/// Says that the response depends on a header of the request, so that no cache gives it to others.
fn vary(headers: &mut HeaderMap, on: &HeaderName) {
    let told = |value: &HeaderValue| {
        let said = |member: &[u8]| member.eq_ignore_ascii_case(on.as_str().as_bytes()) || member == b"*";
        value.as_bytes().split(|byte| *byte == b',').any(|member| said(member.trim_ascii()))
    };
    if !headers.get_all(VARY).iter().any(told) {
        headers.append(VARY, HeaderValue::from_name(on.clone()));
    }
}

//! The same question put to a running sidecar: it is asked at its admin port what it would decide now.

use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_TYPE, HOST, HeaderMap};
use http_body_util::Full;
use serde_json::{Value, json};

use super::walk::Explanation;
use super::{ExplainArgs, TCP, moment, request};
use crate::demo::web::Caller;
use crate::failure::Failure;

/// What the sidecar at `proxy` would decide.
///
/// # Errors
/// When it cannot be asked, or does not understand the question.
pub(super) fn ask(args: &ExplainArgs, proxy: SocketAddr) -> Result<Explanation, Failure> {
    let question = question(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::refused(format_args!("cannot start: {error}")))?;
    let asked = Request::post("/explain").header(HOST, "localhost").header(CONTENT_TYPE, "application/json");
    let asked = asked.body(Full::new(Bytes::from(question.to_string())));
    let asked = asked.map_err(|error| Failure::refused(format_args!("the question cannot be put: {error}")))?;
    let answer = runtime.block_on(Caller::new(proxy).send(asked)).map_err(|error| {
        Failure::refused(format_args!("the sidecar's admin port at {proxy} does not answer: {error:#}"))
            .hint("--proxy takes the address of --admin of a sidecar on this machine, 127.0.0.1:15000 by default")
    })?;
    if answer.status != 200 {
        return Err(Failure::refused(format_args!("the sidecar at {proxy} says {}", answer.shown())));
    }
    serde_json::from_slice(&answer.body)
        .map_err(|error| Failure::refused(format_args!("the answer of {proxy} is not understood: {error}")))
}

fn question(args: &ExplainArgs) -> Result<Value, Failure> {
    let parts = request(args)?;
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = |headers: &HeaderMap| -> Vec<(String, String)> {
        let others = headers.iter().filter(|(name, _)| **name != HOST);
        others.map(|(name, value)| (name.to_string(), text(value))).collect()
    };
    let at = moment(args)?.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    Ok(json!({
        "method": parts.method.as_str(),
        "authority": parts.headers.get(HOST).map(text).unwrap_or_default(),
        "target": parts.uri.to_string(),
        "headers": headers(&parts.headers),
        "tcp": args.url.starts_with(TCP),
        "from": args.from,
        "fromIp": args.from_ip,
        "at": at,
    }))
}

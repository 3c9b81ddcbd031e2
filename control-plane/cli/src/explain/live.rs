//! The same question put to a running sidecar: it is asked at its admin port what it would decide now.

use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use equerry_policies::policy::Meaning;
use http::header::{CONTENT_TYPE, HOST, HeaderMap};
use http::{Request, request};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::places::Places;
use super::walk::Explanation;
use super::{ExplainArgs, TCP, moment};
use crate::demo::web::Caller;
use crate::failure::Failure;

/// The policy may change between the decision and the question what it went by: then both are asked again.
const TRIES: usize = 3;

/// What the sidecar at `proxy` would decide, and where that was written, as far as the documents say what is in force there.
///
/// # Errors
/// When it cannot be asked, or does not understand the question.
pub(super) fn ask(args: &ExplainArgs, proxy: SocketAddr, documents: Option<&Meaning>) -> Result<Explanation, Failure> {
    let question = question(args)?.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::refused(format_args!("cannot start: {error}")))?;
    let ask = |asked: request::Builder, body: &str| {
        let asked = asked.header(HOST, "localhost").body(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        let asked = asked.map_err(|error| Failure::refused(format_args!("the question cannot be put: {error}")))?;
        runtime.block_on(said(proxy, asked))
    };
    for _ in 0..TRIES {
        let asked = Request::post("/explain").header(CONTENT_TYPE, "application/json");
        let mut explanation: Explanation = understood(proxy, &ask(asked, &question)?)?;
        let Some(documents) = documents else { return Ok(explanation) };
        let config: Value = understood(proxy, &ask(Request::get("/config"), "")?)?;
        if explanation.live.as_ref().is_some_and(|live| config["epoch"] == live.epoch) {
            Places::new(documents, &config).fill(&mut explanation);
            return Ok(explanation);
        }
    }
    Err(Failure::refused(format_args!("what holds at {proxy} changes again and again; ask once more")))
}

/// What the sidecar says to this.
async fn said(proxy: SocketAddr, asked: Request<Full<Bytes>>) -> Result<Bytes, Failure> {
    let answer = Caller::new(proxy).send(asked).await.map_err(|error| {
        Failure::refused(format_args!("the sidecar's admin port at {proxy} does not answer: {error:#}"))
            .hint("--proxy takes the address of --admin of a sidecar on this machine, 127.0.0.1:15000 by default")
    })?;
    if answer.status == 200 {
        return Ok(answer.body);
    }
    Err(Failure::refused(format_args!("the sidecar at {proxy} says {}", answer.shown())))
}

fn understood<T: DeserializeOwned>(proxy: SocketAddr, answer: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(answer)
        .map_err(|error| Failure::refused(format_args!("the answer of {proxy} is not understood: {error}")))
}

fn question(args: &ExplainArgs) -> Result<Value, Failure> {
    let parts = super::request(args)?;
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

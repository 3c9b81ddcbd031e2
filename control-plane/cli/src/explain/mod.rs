//! `equerry explain`: a request in curl's words, and every decision about it, each with the file and line that caused it.
//!
//! Nothing is decided here: [`walk`] cuts the same views the control plane would send, compiles them with the same crate,
//! and asks the same functions the sidecars ask, in the same order.

mod expected;
mod live;
mod places;
mod tell;
mod traffic;
mod walk;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use equerry_policies::names::{AccountName, TrustDomain};
use equerry_policies::policy::Meaning;
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::{Output, OutputArgs};
use crate::complaints;
use crate::failure::{Code, Failure};
use crate::files;
use crate::out;

pub(crate) use expected::{TestArgs, before_apply, run as run_tests};

/// How the URL of a connection begins.
const TCP: &str = "tcp://";

/// `equerry explain`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  equerry explain http://inventory/items --from shop/orders --policies policies/\n  equerry explain -X POST -H 'x-tenant: acme' http://orders.shop/ --from shop/frontend --token \"$TOKEN\" --policies policies/\n  equerry explain tcp://db.shop:5432 --from shop/orders --policies policies/\n  equerry explain http://orders/ --proxy 127.0.0.1:15000 --policies policies/\n\nExits with 0 when the request would be allowed, with 5 when it would be refused."
)]
pub(crate) struct ExplainArgs {
    /// The request as the application makes it: http://orders/path, or orders.shop:8080/path; a connection: tcp://db:5432
    #[arg(value_name = "URL")]
    url: String,
    /// Its method
    #[arg(short = 'X', long = "request", default_value = "GET", value_name = "METHOD")]
    method: String,
    /// A header of it; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Who makes it; with --proxy: its own workload when nothing is said, else that workload is the callee
    #[arg(long, value_name = "NAMESPACE/ACCOUNT", required_unless_present = "proxy")]
    from: Option<String>,
    /// Ask a running sidecar, at its admin port, what it would decide now
    #[arg(long, value_name = "IP:PORT", conflicts_with = "to_account")]
    proxy: Option<SocketAddr>,
    /// A token it carries: the same as -H 'authorization: Bearer JWT'
    #[arg(long, value_name = "JWT")]
    token: Option<String>,
    /// When it is made, for the life of tokens; now by default
    #[arg(long, value_name = "RFC3339")]
    at: Option<String>,
    /// The policies that hold: file, directory or -; may be repeated. With --proxy: where the lines are looked for of what holds there
    #[arg(long, value_name = "FILE|DIR|-", required_unless_present = "proxy")]
    policies: Vec<PathBuf>,
    /// The account the callee runs as, where its Service lists several; the first by default
    #[arg(long, value_name = "NAMESPACE/ACCOUNT")]
    to_account: Option<String>,
    /// The address of the caller's sidecar, for ipBlocks
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    from_ip: IpAddr,
    /// The trust domain, where no Mesh document names it
    #[arg(long, default_value = "equerry.local", value_name = "NAME")]
    trust_domain: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is asked, read and checked.
pub(crate) struct Question {
    /// The request as the application sends it to its sidecar.
    pub(crate) parts: Parts,
    /// It is no request but a connection, in whose bytes nobody looks for one.
    pub(crate) tcp: bool,
    /// Who sends it.
    pub(crate) from: AccountName,
    /// The account of the callee, when it was named.
    pub(crate) to: Option<AccountName>,
    /// When.
    pub(crate) now: SystemTime,
    /// The address of the caller's sidecar.
    pub(crate) from_ip: IpAddr,
    /// Where no document names it.
    pub(crate) trust_domain: TrustDomain,
}

pub(crate) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let output = args.output.output;
    if let Some(proxy) = args.proxy {
        let meaning = if args.policies.is_empty() { None } else { Some(written(args)?) };
        let explanation = live::ask(args, proxy, meaning.as_ref())?;
        let shown = show(&explanation, output);
        if meaning.is_none() && matches!(output, Output::Table | Output::Wide) {
            out::data("where that was written: the same command with --policies FILE|DIR");
        }
        return shown;
    }
    let (question, meaning) = (read(args)?, written(args)?);
    let explanation = walk::walk(&meaning, &question).map_err(|mistakes| complaints::show(&mistakes, "", output))?;
    show(&explanation, output)
}

/// What the documents mean that were named.
fn written(args: &ExplainArgs) -> Result<Meaning, Failure> {
    let files = files::collect(&args.policies)?;
    let read = complaints::read_all(&files).map_err(|mistakes| {
        complaints::show(&mistakes, "; nothing can be explained until they are corrected", args.output.output)
    });
    read.map(|(_, meaning)| meaning)
}

fn show(explanation: &walk::Explanation, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => out::data(out::json(explanation)),
        Output::Yaml => out::data(out::yaml(explanation)),
        Output::Name => out::data(&explanation.verdict.reason),
        Output::Table | Output::Wide => out::data(tell::tell(explanation)),
    }
    if explanation.verdict.allowed { Ok(()) } else { Err(Failure::silent(Code::WouldBeRefused)) }
}

fn read(args: &ExplainArgs) -> Result<Question, Failure> {
    let account = |flag: &str, text: &str| {
        AccountName::parse(text).map_err(|bad| {
            Failure::usage(format_args!("{flag}: {bad}")).hint(format_args!("write it as {flag} shop/frontend"))
        })
    };
    Ok(Question {
        parts: request(args)?,
        tcp: args.url.starts_with(TCP),
        from: account("--from", args.from.as_deref().unwrap_or_default())?,
        to: args.to_account.as_deref().map(|text| account("--to-account", text)).transpose()?,
        now: moment(args)?.unwrap_or_else(SystemTime::now),
        from_ip: args.from_ip,
        trust_domain: TrustDomain::parse(&args.trust_domain)
            .map_err(|bad| Failure::usage(format_args!("--trust-domain: {bad}")))?,
    })
}

/// When it is made, if that was said.
fn moment(args: &ExplainArgs) -> Result<Option<SystemTime>, Failure> {
    let read = |text: &String| {
        OffsetDateTime::parse(text, &Rfc3339).map(SystemTime::from).map_err(|_| {
            Failure::usage(format_args!("--at: {text:?} is not a time")).hint("write it as 2026-01-31T12:00:00Z")
        })
    };
    args.at.as_ref().map(read).transpose()
}

/// The request in origin form with a `Host`, as a client library sends it.
fn request(args: &ExplainArgs) -> Result<Parts, Failure> {
    let tcp = args.url.strip_prefix(TCP);
    if let Some(rest) = tcp.filter(|rest| rest.contains('/') || !args.headers.is_empty() || args.token.is_some()) {
        let found = format!("tcp://{rest} with a path, a header or a token");
        return Err(Failure::usage(format_args!("{found}: nobody looks for a request in the bytes of a connection"))
            .hint("write it as tcp://db:5432"));
    }
    let url = tcp.or_else(|| args.url.strip_prefix("http://")).unwrap_or(&args.url);
    if url.contains("://") {
        return Err(Failure::usage(format_args!(
            "{:?}: an application speaks plain HTTP to its sidecar, which adds the TLS",
            args.url
        ))
        .hint("write it as http://orders/path"));
    }
    let (authority, target) = url.find(['/', '?']).map_or((url, "/".to_owned()), |at| {
        let (authority, target) = url.split_at(at);
        (authority, if target.starts_with('?') { format!("/{target}") } else { target.to_owned() })
    });
    let wrong = |what: &str, text: &str| Failure::usage(format_args!("{text:?} is not {what}"));
    if authority.is_empty() {
        return Err(wrong("a URL with a host", &args.url));
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(args.method.as_bytes()).map_err(|_| wrong("a method", &args.method))?;
    *request.uri_mut() = target.parse::<Uri>().map_err(|_| wrong("a path", &target))?;
    let host = HeaderValue::from_str(authority).map_err(|_| wrong("a host", authority))?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    for line in &args.headers {
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("a header, such as 'x-tenant: acme'", line))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong("the name of a header", name))?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong("the value of a header", value))?;
        if name == HOST {
            headers.insert(HOST, value);
        } else {
            headers.append(name, value);
        }
    }
    if let Some(token) = &args.token {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|_| wrong("a token", token))?;
        headers.append(AUTHORIZATION, value);
    }
    Ok(request.into_parts().0)
}

#[cfg(test)]
mod tests;

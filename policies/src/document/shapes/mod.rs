//! The tables of every kind: what may stand in each document.

mod access_log;
mod balance;
mod csrf;
mod fault;
mod filter;
mod health;
mod policy_test;
mod route;
mod security;
mod service;
mod tenant;
mod traffic;

pub(crate) use fault::GRPC_STATUSES;

use super::Kind;
use super::shape::{Choice, Field, Form, Shape, Text, ignored, may, must, unbuilt};
use crate::names;
use crate::policy::{claim_path, duration};

/// The table of a kind's whole document.
pub(crate) fn of(kind: Kind) -> &'static Shape {
    match kind {
        Kind::Mesh => &security::MESH,
        Kind::Service => &service::SERVICE,
        Kind::EndpointSlice => &service::ENDPOINT_SLICE,
        Kind::HttpRoute => &route::HTTP_ROUTE,
        Kind::GrpcRoute => &route::GRPC_ROUTE,
        Kind::TcpRoute => &route::TCP_ROUTE,
        Kind::TrafficPolicy => &traffic::TRAFFIC_POLICY,
        Kind::FaultInjection => &fault::FAULT_INJECTION,
        Kind::PeerAuthentication => &security::PEER_AUTHENTICATION,
        Kind::RequestAuthentication => &security::REQUEST_AUTHENTICATION,
        Kind::AuthorizationPolicy => &security::AUTHORIZATION_POLICY,
        Kind::CsrfPolicy => &csrf::CSRF_POLICY,
        Kind::Tenant => &tenant::TENANT,
        Kind::PolicyTest => &policy_test::POLICY_TEST,
    }
}

const API_VERSION: Field = must("apiVersion", Form::Text(&ANY), "The group and version of the kind.");
const KIND: Field = must("kind", Form::Text(&ANY), "The kind of document.");
const META: Field = must("metadata", Form::Object(&METADATA), "What the document is called, and where it lives.");
const STATUS: Field = ignored("status");

/// `metadata` of every kind.
static METADATA: Shape = Shape {
    about: "What the document is called, and where it lives.",
    fields: &[
        must("name", Form::Text(&NAME), "Its name, unique among documents of its kind in its namespace."),
        may(
            "namespace",
            Form::Text(&NAMESPACE),
            "Its namespace; `default` when nothing is written. Mesh and Tenant have none.",
        ),
        may("labels", Form::Map(&LABEL_KEY, &Form::Text(&ANY)), "Labels, for people and tools."),
        may(
            "annotations",
            Form::Map(&LABEL_KEY, &Form::Text(&ANY)),
            "Annotations; those of equerry.dev/ have a meaning.",
        ),
        unbuilt("generateName"),
        ignored("creationTimestamp"),
        ignored("deletionGracePeriodSeconds"),
        ignored("deletionTimestamp"),
        ignored("finalizers"),
        ignored("generation"),
        ignored("managedFields"),
        ignored("ownerReferences"),
        ignored("resourceVersion"),
        ignored("selfLink"),
        ignored("uid"),
    ],
};

/// `selector` of a policy.
static SELECTOR: Shape = Shape {
    about: "The workloads a policy holds for.",
    fields: &[
        may(
            "matchLabels",
            Form::Map(&LABEL_KEY, &Form::Text(&LABEL_VALUE)),
            "Labels that an instance must carry, all of them.",
        ),
        unbuilt("matchExpressions"),
    ],
};

/// One of `targetRefs`.
static TARGET_REF: Shape = Shape {
    about: "A Service of the policy's own namespace.",
    fields: &[
        may("group", Form::Choice(&CORE), "The API group: empty, or `core`."),
        must("kind", Form::Choice(&SERVICE_ONLY), "The kind of thing: Service."),
        must("name", Form::Text(&SERVICE_LABEL), "The Service's name."),
        may("namespace", Form::Text(&NAMESPACE), "The policy's own namespace."),
        unbuilt("sectionName"),
    ],
};

static TARGET_REFS: Form = Form::Object(&TARGET_REF);

static CORE: Choice = Choice {
    built: &["", "core"],
    unbuilt: &["gateway.networking.k8s.io", "networking.istio.io", "multicluster.x-k8s.io"],
    default: Some(""),
};
static SERVICE_ONLY: Choice = Choice {
    built: &["Service"],
    unbuilt: &["Gateway", "GatewayClass", "HTTPRoute", "GRPCRoute", "ServiceEntry", "ServiceImport"],
    default: None,
};

static ANY: Text = Text { expected: "a text", pattern: None, check: |_| true };
static FILLED: Text = Text { expected: "a text that is not empty", pattern: Some("^.+$"), check: |t| !t.is_empty() };
static NAME: Text = Text {
    expected: "a name: up to 253 lower-case letters, digits, '-' and '.', starting and ending with a letter or digit",
    pattern: Some(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"),
    check: |t| names::ResourceName::parse(t).is_ok(),
};
static NAMESPACE: Text = Text {
    expected: "a namespace: up to 63 lower-case letters, digits and '-', starting and ending with a letter or digit",
    pattern: Some(LABEL_PATTERN),
    check: |t| names::Namespace::parse(t).is_ok(),
};
static SERVICE_LABEL: Text = Text {
    expected: "the name of a Service: up to 63 lower-case letters, digits and '-', starting and ending with a letter or digit",
    pattern: Some(LABEL_PATTERN),
    check: |t| names::Namespace::parse(t).is_ok(),
};
static SECTION: Text = Text {
    expected: "a name: lower-case letters, digits, '-' and '.', starting and ending with a letter or digit",
    pattern: Some(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"),
    check: |t| names::ResourceName::parse(t).is_ok(),
};
const LABEL_PATTERN: &str = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$";
static LABEL_KEY: Text = Text {
    expected: "a label's key: [PREFIX/]NAME of letters, digits, '-', '_' and '.'",
    pattern: Some(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"),
    check: is_label_key,
};
static LABEL_VALUE: Text = Text {
    expected: "a label's value: up to 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit",
    pattern: Some(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"),
    check: |t| t.is_empty() || is_label_part(t),
};
static DURATION: Text = Text {
    expected: "a duration such as 500ms, 1s or 1h30m (GEP-2257)",
    pattern: Some(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"),
    check: |t| duration(t).is_some(),
};
static CLAIM: Text = Text {
    expected: "a claim: its name, or for one within another [outer][inner]",
    pattern: None,
    check: |t| claim_path(t).is_some(),
};
static HEADER: Text = Text {
    expected: "the name of a header: letters, digits and '-'",
    pattern: Some(r"^[A-Za-z0-9!#$%&'*+.^`|~-]+$"),
    check: |t| !t.contains('_') && t.len() <= 256 && http::HeaderName::from_bytes(t.as_bytes()).is_ok(),
};
static HEADER_VALUE: Text = Text {
    expected: "a header's value: up to 4096 characters, none of them a control character",
    pattern: None,
    check: |t| !t.is_empty() && t.len() <= 4096 && http::HeaderValue::from_str(t).is_ok(),
};

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => names::ResourceName::parse(prefix).is_ok() && is_label_part(name),
        None => is_label_part(text),
    }
}

fn is_label_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

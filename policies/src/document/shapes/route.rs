//! `HTTPRoute`, `GRPCRoute` and `TCPRoute` of `gateway.networking.k8s.io/v1`, attached to Services (GAMMA).

use super::filter::{GRPC_FILTER, HTTP_FILTER};
use super::{
    API_VERSION, CORE, Choice, DURATION, Form, HEADER, HEADER_VALUE, KIND, META, NAMESPACE, SECTION, SERVICE_LABEL,
    SERVICE_ONLY,
};
use super::{Field, STATUS, Shape, Text, may, must, unbuilt};

pub(super) static HTTP_ROUTE: Shape = Shape {
    about: "How HTTP requests to a Service are routed (Gateway API, attached to Services as GAMMA says).",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&SPEC), "The route."), STATUS],
};

pub(super) static GRPC_ROUTE: Shape = Shape {
    about: "How gRPC calls to a Service are routed (Gateway API, attached to Services as GAMMA says). It matches gRPC alone, and takes \
            the place of HTTPRoutes.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&GRPC_SPEC), "The route."), STATUS],
};

pub(super) static TCP_ROUTE: Shape = Shape {
    about: "Where connections to a Service go (Gateway API, attached to Services as GAMMA says).",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&TCP_SPEC), "The route."), STATUS],
};

static A_PARENT: Form = Form::Object(&PARENT);
const PARENTS: Field = must("parentRefs", Form::List(&A_PARENT, 1, 32), "The Services it is attached to.");

static SPEC: Shape = Shape {
    about: "The route.",
    fields: &[
        PARENTS,
        must(
            "rules",
            Form::List(&Form::Object(&RULE), 1, 16),
            "Its rules; the most specific match of all rules decides.",
        ),
        unbuilt("hostnames"),
        unbuilt("useDefaultGateways"),
    ],
};

static GRPC_SPEC: Shape = Shape {
    about: "The route.",
    fields: &[
        PARENTS,
        must(
            "rules",
            Form::List(&Form::Object(&GRPC_RULE), 1, 16),
            "Its rules; the most specific match of all rules decides.",
        ),
        unbuilt("hostnames"),
        unbuilt("useDefaultGateways"),
    ],
};

static TCP_SPEC: Shape = Shape {
    about: "The route.",
    fields: &[
        PARENTS,
        must("rules", Form::List(&Form::Object(&TCP_RULE), 1, 1), "Its one rule."),
        unbuilt("useDefaultGateways"),
    ],
};

static PARENT: Shape = Shape {
    about: "A Service. In the route's namespace the route holds for every caller; in another, for callers of the route's namespace.",
    fields: &[
        must(
            "group",
            Form::Choice(&CORE),
            "The API group, written out: \"\" for Services. (The Gateway API's default is its own.)",
        ),
        must(
            "kind",
            Form::Choice(&SERVICE_ONLY),
            "The kind of thing, written out: Service. (The Gateway API's default is Gateway.)",
        ),
        must("name", Form::Text(&SERVICE_LABEL), "The Service's name."),
        may("namespace", Form::Text(&NAMESPACE), "The Service's namespace; the route's own when nothing is written."),
        may(
            "port",
            Form::Whole(1, 65535),
            "The one port of the Service the route holds for; all when nothing is written.",
        ),
        may("sectionName", Form::Text(&SECTION), "The same by the port's name."),
    ],
};

const RULE_NAME: Field = may("name", Form::Text(&SECTION), "Its name, unique in the route.");

static RULE: Shape = Shape {
    about: "Where some requests go, what is done to them, and how long they may take.",
    fields: &[
        RULE_NAME,
        may(
            "matches",
            Form::List(&Form::Object(&MATCH), 0, 64),
            "Any one of these; every request when nothing is written.",
        ),
        may(
            "filters",
            Form::List(&Form::Object(&HTTP_FILTER), 0, 16),
            "What is done to requests and responses, in this order.",
        ),
        may(
            "backendRefs",
            Form::List(&Form::Object(&BACKEND), 0, 16),
            "Where requests go, by weight; none: they are answered with 500, unless a filter answers them.",
        ),
        may("timeouts", Form::Object(&TIMEOUTS), "How long a request may take."),
        may("retry", Form::Object(&RETRY), "When a try that failed is made again."),
        unbuilt("sessionPersistence"),
    ],
};

static GRPC_RULE: Shape = Shape {
    about: "Where some calls go, and what is done to them.",
    fields: &[
        RULE_NAME,
        may(
            "matches",
            Form::List(&Form::Object(&GRPC_MATCH), 0, 64),
            "Any one of these; every call when nothing is written.",
        ),
        may(
            "filters",
            Form::List(&Form::Object(&GRPC_FILTER), 0, 16),
            "What is done to calls and answers, in this order.",
        ),
        may(
            "backendRefs",
            Form::List(&Form::Object(&GRPC_BACKEND), 0, 16),
            "Where calls go, by weight; none: they are answered with UNAVAILABLE.",
        ),
        unbuilt("sessionPersistence"),
    ],
};

static TCP_RULE: Shape = Shape {
    about: "Where connections go.",
    fields: &[
        RULE_NAME,
        must("backendRefs", Form::List(&Form::Object(&TCP_BACKEND), 1, 16), "Where connections go, by weight."),
    ],
};

static MATCH: Shape = Shape {
    about: "What a request must look like; all parts must hold.",
    fields: &[
        may("path", Form::Object(&PATH), "The path; any when nothing is written."),
        may("headers", Form::List(&Form::Object(&HEADER_MATCH), 0, 16), "Headers that must be there and match."),
        may(
            "queryParams",
            Form::List(&Form::Object(&QUERY_MATCH), 0, 16),
            "Parameters of the query that must be there and match.",
        ),
        may("method", Form::Choice(&METHOD), "The method."),
    ],
};

static GRPC_MATCH: Shape = Shape {
    about: "What a call must look like; all parts must hold.",
    fields: &[
        may("method", Form::Object(&GRPC_METHOD), "The gRPC service and method; any when nothing is written."),
        may("headers", Form::List(&Form::Object(&HEADER_MATCH), 0, 16), "Headers that must be there and match."),
    ],
};

static GRPC_METHOD: Shape = Shape {
    about: "The gRPC service and method; at least one of the two is written.",
    fields: &[
        may("type", Form::Choice(&HEADER_TYPE), "Exact, or RegularExpression: matches all of it."),
        may("service", Form::Text(&GRPC_NAME), "The service with its package, such as `shop.Orders`."),
        may("method", Form::Text(&GRPC_NAME), "The method, such as `Get`."),
    ],
};

static QUERY_MATCH: Shape = Shape {
    about: "What one parameter of the query must be.",
    fields: &[
        may("type", Form::Choice(&HEADER_TYPE), "Exact, or RegularExpression: matches all of the value."),
        must("name", Form::Text(&QUERY_NAME), "The parameter's name, exactly so."),
        must("value", Form::Text(&QUERY_VALUE), "What its first value must be, percent-decoded."),
    ],
};

static PATH: Shape = Shape {
    about: "What the path must be.",
    fields: &[
        may(
            "type",
            Form::Choice(&PATH_TYPE),
            "Exact; PathPrefix: this path or one below it; RegularExpression: matches all of it.",
        ),
        may("value", Form::Text(&PATH_VALUE), "The path, or the regular expression; `/` when nothing is written."),
    ],
};

pub(super) static HEADER_MATCH: Shape = Shape {
    about: "What one header must be.",
    fields: &[
        may("type", Form::Choice(&HEADER_TYPE), "Exact, or RegularExpression: matches all of the value."),
        must("name", Form::Text(&HEADER), "The header's name, in any case."),
        must("value", Form::Text(&HEADER_VALUE), "The value, or the regular expression."),
    ],
};

const GROUP: Field =
    may("group", Form::Text(&ANY_GROUP), "The API group: empty. Anything of another leads to nothing.");
const SERVICE_KIND: Field =
    may("kind", Form::Text(&ANY_KIND), "The kind of thing: Service. Anything else leads to nothing.");
const NAME: Field = must("name", Form::Text(&SERVICE_LABEL), "The Service's name.");
const ITS_NAMESPACE: Field =
    may("namespace", Form::Text(&NAMESPACE), "The Service's namespace; the route's own when nothing is written.");
const PORT: Field = may("port", Form::Whole(1, 65535), "The Service's port; may be left out when it has only one.");
const WEIGHT: Field = may(
    "weight",
    Form::Whole(0, 1_000_000),
    "Its share among the rule's backends; 1 when nothing is written, 0 sends it nothing.",
);

static BACKEND: Shape = Shape {
    about: "A Service that requests go to.",
    fields: &[
        GROUP,
        SERVICE_KIND,
        NAME,
        ITS_NAMESPACE,
        PORT,
        WEIGHT,
        may(
            "filters",
            Form::List(&Form::Object(&HTTP_FILTER), 0, 16),
            "What is done to requests that go here, after the rule's filters.",
        ),
    ],
};

static GRPC_BACKEND: Shape = Shape {
    about: "A Service that calls go to.",
    fields: &[
        GROUP,
        SERVICE_KIND,
        NAME,
        ITS_NAMESPACE,
        PORT,
        WEIGHT,
        may(
            "filters",
            Form::List(&Form::Object(&GRPC_FILTER), 0, 16),
            "What is done to calls that go here, after the rule's filters.",
        ),
    ],
};

static TCP_BACKEND: Shape = Shape {
    about: "A Service that connections go to.",
    fields: &[GROUP, SERVICE_KIND, NAME, ITS_NAMESPACE, PORT, WEIGHT],
};

/// A Service that copies of requests go to.
pub(super) static MIRROR_BACKEND: Shape =
    Shape { about: "The Service that copies go to.", fields: &[GROUP, SERVICE_KIND, NAME, ITS_NAMESPACE, PORT] };

static TIMEOUTS: Shape = Shape {
    about: "How long a request may take; 0s means without limit.",
    fields: &[
        may("request", Form::Text(&DURATION), "The whole exchange, retries included."),
        may("backendRequest", Form::Text(&DURATION), "Each try; not longer than `request`."),
    ],
};

static RETRY: Shape = Shape {
    about: "When a try that failed is made again. A failure to connect always is. A method that is not idempotent is tried again \
            only by a rule whose every match names it.",
    fields: &[
        may(
            "codes",
            Form::List(&Form::Whole(400, 599), 0, 200),
            "Status codes that are tried again; of gRPC the status that google.rpc maps to one: 503 is UNAVAILABLE, 504 \
             DEADLINE_EXCEEDED, 429 RESOURCE_EXHAUSTED.",
        ),
        may(
            "attempts",
            Form::Whole(0, 25),
            "How many retries at most, the first try not counted; 1 when nothing is written, 0 for none at all.",
        ),
        may(
            "backoff",
            Form::Text(&DURATION),
            "The shortest wait before the first retry; 25ms when nothing is written.",
        ),
    ],
};

static METHOD: Choice = Choice {
    built: &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"],
    unbuilt: &[],
    default: None,
};
static PATH_TYPE: Choice =
    Choice { built: &["Exact", "PathPrefix", "RegularExpression"], unbuilt: &[], default: Some("PathPrefix") };
static HEADER_TYPE: Choice = Choice { built: &["Exact", "RegularExpression"], unbuilt: &[], default: Some("Exact") };
static ANY_KIND: Text = Text {
    expected: "a kind: letters, digits and dashes, such as Service",
    pattern: Some("^[a-zA-Z]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$"),
    check: |t| {
        t.len() <= 63
            && t.starts_with(|c: char| c.is_ascii_alphabetic())
            && t.ends_with(|c: char| c.is_ascii_alphanumeric())
            && t.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    },
};
static ANY_GROUP: Text = Text {
    expected: "an API group: empty, or a DNS name",
    pattern: Some("^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"),
    check: |t| {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        t.len() <= 253
            && t.bytes().next().is_none_or(inner)
            && t.bytes().last().is_none_or(inner)
            && t.bytes().all(|c| inner(c) || matches!(c, b'-' | b'.'))
    },
};
static PATH_VALUE: Text = Text {
    expected: "a path, or a regular expression, of 1 to 1024 characters",
    pattern: None,
    check: |t| !t.is_empty() && t.len() <= 1024,
};
static GRPC_NAME: Text = Text {
    expected: "a name of gRPC, or a regular expression, of 1 to 1024 characters",
    pattern: None,
    check: |t| !t.is_empty() && t.len() <= 1024,
};
static QUERY_NAME: Text = Text {
    expected: "the name of a parameter: up to 256 letters, digits and marks that need no encoding",
    pattern: Some(r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$"),
    check: |t| {
        let mark = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+.^_`|~-".contains(&c);
        !t.is_empty() && t.len() <= 256 && t.bytes().all(mark)
    },
};
static QUERY_VALUE: Text = Text {
    expected: "the value of a parameter, or a regular expression, of 1 to 1024 characters",
    pattern: None,
    check: |t| !t.is_empty() && t.len() <= 1024,
};

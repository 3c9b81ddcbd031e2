//! `gateway.networking.k8s.io/v1/HTTPRoute`, attached to Services (GAMMA).

use super::{
    API_VERSION, CORE, Choice, DURATION, Form, HEADER, HEADER_VALUE, KIND, META, NAMESPACE, SECTION, SERVICE_LABEL,
    SERVICE_ONLY,
};
use super::{STATUS, Shape, Text, may, must, unbuilt};

pub(super) static HTTP_ROUTE: Shape = Shape {
    about: "How HTTP requests to a Service are routed (Gateway API, attached to Services as GAMMA says).",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&SPEC), "The route."), STATUS],
};

static SPEC: Shape = Shape {
    about: "The route.",
    fields: &[
        must("parentRefs", Form::List(&Form::Object(&PARENT), 1, 32), "The Services it is attached to."),
        must(
            "rules",
            Form::List(&Form::Object(&RULE), 1, 16),
            "Its rules; the most specific match of all rules decides.",
        ),
        unbuilt("hostnames"),
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
        unbuilt("sectionName"),
    ],
};

static RULE: Shape = Shape {
    about: "Where some requests go, and how long they may take.",
    fields: &[
        may("name", Form::Text(&SECTION), "Its name, unique in the route."),
        may(
            "matches",
            Form::List(&Form::Object(&MATCH), 0, 64),
            "Any one of these; every request when nothing is written.",
        ),
        may(
            "backendRefs",
            Form::List(&Form::Object(&BACKEND), 0, 16),
            "Where requests go, by weight; none: they are answered with 500.",
        ),
        may("timeouts", Form::Object(&TIMEOUTS), "How long a request may take."),
        may("retry", Form::Object(&RETRY), "When a try that failed is made again."),
        unbuilt("filters"),
        unbuilt("sessionPersistence"),
    ],
};

static MATCH: Shape = Shape {
    about: "What a request must look like; all parts must hold.",
    fields: &[
        may("path", Form::Object(&PATH), "The path; any when nothing is written."),
        may("headers", Form::List(&Form::Object(&HEADER_MATCH), 0, 16), "Headers that must be there and match."),
        may("method", Form::Choice(&METHOD), "The method."),
        unbuilt("queryParams"),
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

static HEADER_MATCH: Shape = Shape {
    about: "What one header must be.",
    fields: &[
        may("type", Form::Choice(&HEADER_TYPE), "Exact, or RegularExpression: matches all of the value."),
        must("name", Form::Text(&HEADER), "The header's name, in any case."),
        must("value", Form::Text(&HEADER_VALUE), "The value, or the regular expression."),
    ],
};

static BACKEND: Shape = Shape {
    about: "A Service that requests go to.",
    fields: &[
        may("group", Form::Choice(&CORE), "The API group: empty."),
        may("kind", Form::Choice(&BACKEND_KIND), "The kind of thing: Service."),
        must("name", Form::Text(&SERVICE_LABEL), "The Service's name."),
        may("namespace", Form::Text(&NAMESPACE), "The Service's namespace; the route's own when nothing is written."),
        may("port", Form::Whole(1, 65535), "The Service's port; may be left out when it has only one."),
        may(
            "weight",
            Form::Whole(0, 1_000_000),
            "Its share among the rule's backends; 1 when nothing is written, 0 sends it nothing.",
        ),
        unbuilt("filters"),
    ],
};

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
        may("codes", Form::List(&Form::Whole(400, 599), 0, 200), "Status codes that are tried again."),
        may(
            "attempts",
            Form::Whole(1, 25),
            "How many retries at most, the first try not counted; 1 when nothing is written.",
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
static BACKEND_KIND: Choice =
    Choice { built: &["Service"], unbuilt: &["ServiceImport", "XBackend", "Backend"], default: Some("Service") };
static PATH_VALUE: Text = Text {
    expected: "a path, or a regular expression, of 1 to 1024 characters",
    pattern: None,
    check: |t| !t.is_empty() && t.len() <= 1024,
};

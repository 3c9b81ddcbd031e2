//! `healthCheck` of a `TrafficPolicy`.

use super::{DURATION, Form, Shape, Text, may, must};
use crate::policy::{is_asked_path, statuses};

pub(super) static HEALTH_CHECK: Shape = Shape {
    about: "How the callers' sidecars ask endpoints without a sidecar whether they are well; exactly one of http, grpc and tcp.",
    fields: &[
        may("http", Form::Object(&HTTP), "GET, answered with an expected status."),
        may("grpc", Form::Object(&GRPC), "grpc.health.v1.Health/Check, answered with SERVING."),
        may("tcp", Form::Object(&TCP), "A connection, which must be accepted."),
        may(
            "port",
            Form::Whole(1, 65535),
            "The Service port at whose address is asked; the first that the endpoint serves when nothing is written.",
        ),
        may("interval", Form::Text(&DURATION), "From one question to the next; 3s when nothing is written."),
        may(
            "jitterPercent",
            Form::Whole(0, 100),
            "Up to so much of the interval is added at random; 10 when nothing is written.",
        ),
        may(
            "timeout",
            Form::Text(&DURATION),
            "A question not answered by then has failed; 1s when nothing is written.",
        ),
        may(
            "healthyThreshold",
            Form::Whole(1, 100),
            "So many good answers in a row make an endpoint well again; 1 when nothing is written.",
        ),
        may(
            "unhealthyThreshold",
            Form::Whole(1, 100),
            "So many failures in a row make it unwell, so that it gets no requests; 3 when nothing is written. The very first \
             answer decides alone.",
        ),
        may(
            "panicPercent",
            Form::Whole(0, 100),
            "While a smaller share of the endpoints is well, all get requests, well or not; 0, never, when nothing is written.",
        ),
    ],
};

static HTTP: Shape = Shape {
    about: "GET, over HTTP/2 where the port's appProtocol is http2 or grpc.",
    fields: &[
        must("path", Form::Text(&PATH), "Path and query."),
        may("host", Form::Text(&HOST), "The Host it is asked with; the address when nothing is written."),
        may(
            "statuses",
            Form::List(&Form::Text(&STATUSES), 1, 16),
            "Expected statuses, each \"204\" or \"200-299\"; 200 alone when nothing is written.",
        ),
    ],
};
static GRPC: Shape = Shape {
    about: "grpc.health.v1.Health/Check.",
    fields: &[may(
        "service",
        Form::Text(&GRPC_SERVICE),
        "The service asked for; the whole server when nothing is written.",
    )],
};
static TCP: Shape = Shape { about: "A connection; nothing is sent on it.", fields: &[] };

static PATH: Text =
    Text { expected: "a path that starts with / and has no spaces", pattern: Some("^/[!-~]*$"), check: is_asked_path };
static HOST: Text = Text {
    expected: "a host with or without a port, such as search.example:8080",
    pattern: Some("^[!-~]+$"),
    check: |t| t.len() <= 255 && t.parse::<http::uri::Authority>().is_ok_and(|host| !host.as_str().contains('@')),
};
static STATUSES: Text = Text {
    expected: "an HTTP status such as \"204\", or a range such as \"200-299\"",
    pattern: Some("^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"),
    check: |t| statuses(t).is_some(),
};
static GRPC_SERVICE: Text = Text {
    expected: "the full name of a gRPC service, such as shop.v1.Search",
    pattern: Some("^[A-Za-z_][A-Za-z0-9_.]*$"),
    check: |t| {
        t.len() <= 256
            && t.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && t.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.'))
    },
};

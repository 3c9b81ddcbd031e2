//! `FaultInjection` of `equerry.dev/v1`.

use super::route::HEADER_MATCH;
use super::{API_VERSION, DURATION, Form, KIND, META, STATUS, Shape, TARGET_REFS, Text, may, must};

pub(super) static FAULT_INJECTION: Shape = Shape {
    about: "Faults made on purpose, to see how callers bear them. The callers' sidecars make them, before anything is sent.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&SPEC), "The faults."), STATUS],
};

static SPEC: Shape = Shape {
    about: "The faults.",
    fields: &[
        must("targetRefs", Form::List(&TARGET_REFS, 1, 16), "The Services whose callers meet them."),
        may("match", Form::Object(&MATCH), "Which requests meet them; every request when nothing is written."),
        may("delay", Form::Object(&DELAY), "Some requests wait."),
        may(
            "abort",
            Form::Object(&ABORT),
            "Some requests are answered with an error; after the delay, where both fall together.",
        ),
        may(
            "headers",
            Form::Bool,
            "A request may ask for its own faults, in Envoy's headers: x-envoy-fault-delay-request (milliseconds), \
             x-envoy-fault-abort-request (an HTTP status), x-envoy-fault-abort-grpc-request (a gRPC status), and \
             x-envoy-fault-delay-request-percentage and x-envoy-fault-abort-request-percentage beside them. Nobody may when nothing is written.",
        ),
    ],
};

static MATCH: Shape = Shape {
    about: "Which requests meet the faults; all parts must hold.",
    fields: &[may("headers", Form::List(&Form::Object(&HEADER_MATCH), 1, 16), "Headers that must be there and match.")],
};

static DELAY: Shape = Shape {
    about: "Some requests wait.",
    fields: &[
        may("percent", Form::Whole(0, 100), "Of a hundred requests so many; all when nothing is written."),
        must("fixed", Form::Text(&DURATION), "How long."),
    ],
};

static ABORT: Shape = Shape {
    about: "Some requests are answered with an error.",
    fields: &[
        may("percent", Form::Whole(0, 100), "Of a hundred requests so many; all when nothing is written."),
        may("httpStatus", Form::Whole(400, 599), "The HTTP status."),
        may("grpcStatus", Form::Text(&GRPC_STATUS), "The gRPC status by name, such as UNAVAILABLE."),
    ],
};

/// The gRPC status codes from 1, in order.
pub(crate) const GRPC_STATUSES: [&str; 16] = [
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
static GRPC_STATUS: Text = Text {
    expected: "the name of a gRPC status other than OK, such as UNAVAILABLE",
    pattern: Some("^[A-Z_]+$"),
    check: |t| GRPC_STATUSES.contains(&t),
};

//! `TrafficPolicy` of `equerry.dev/v1`.

use super::{API_VERSION, Choice, DURATION, Form, KIND, META, STATUS, Shape, TARGET_REFS, may, must, unbuilt};

pub(super) static TRAFFIC_POLICY: Shape = Shape {
    about: "How traffic to a Service is balanced, timed, limited and protected. retryBudget holds for callers that name the \
            Service, the rest for traffic that goes to it.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&SPEC), "The policy."), STATUS],
};

static SPEC: Shape = Shape {
    about: "The policy.",
    fields: &[
        must(
            "targetRefs",
            Form::List(&TARGET_REFS, 1, 16),
            "The Services it is for; each Service has at most one TrafficPolicy.",
        ),
        may("loadBalancer", Form::Object(&LOAD_BALANCER), "How an endpoint is chosen."),
        may("timeouts", Form::Object(&TIMEOUTS), "How long connections may take and idle."),
        may("retryBudget", Form::Object(&RETRY_BUDGET), "Retries allowed beside the original requests, over 10 s."),
        may("breaker", Form::Object(&BREAKER), "The circuit breaker of each endpoint; off when nothing is written."),
        may(
            "limits",
            Form::Object(&LIMITS),
            "What one sidecar may have in flight to the Service; without limit when nothing is written.",
        ),
        unbuilt("locality"),
        unbuilt("outlierDetection"),
        unbuilt("portLevelSettings"),
        unbuilt("proxyProtocol"),
        unbuilt("tls"),
        unbuilt("warmup"),
    ],
};

static LOAD_BALANCER: Shape = Shape {
    about: "How an endpoint is chosen.",
    fields: &[
        must("type", Form::Choice(&BALANCERS), "p2c_ewma: the better of two random endpoints by latency and load."),
        unbuilt("consistentHash"),
    ],
};
static BALANCERS: Choice = Choice {
    built: &["p2c_ewma"],
    unbuilt: &["least_request", "round_robin", "random", "ring_hash", "maglev"],
    default: Some("p2c_ewma"),
};

static TIMEOUTS: Shape = Shape {
    about: "How long connections may take and idle.",
    fields: &[
        may("connect", Form::Text(&DURATION), "To connect, TLS included; 1s when nothing is written."),
        may("idle", Form::Text(&DURATION), "An idle connection is closed after this; 60s when nothing is written."),
        unbuilt("stream"),
    ],
};

static RETRY_BUDGET: Shape = Shape {
    about: "Retries allowed beside the original requests, over 10 s.",
    fields: &[
        may("percent", Form::Whole(0, 1000), "Of the original requests; 20 when nothing is written."),
        may("minPerSecond", Form::Whole(0, 1_000_000), "Always allowed beside that; 10 when nothing is written."),
    ],
};

static BREAKER: Shape = Shape {
    about: "The circuit breaker of each endpoint.",
    fields: &[
        may(
            "consecutiveFailures",
            Form::Whole(1, 1_000_000),
            "So many failures in a row open it; 5 when nothing is written.",
        ),
        may("penalty", Form::Object(&PENALTY), "How long it stays open before one request probes the endpoint."),
        unbuilt("successRate"),
    ],
};
static PENALTY: Shape = Shape {
    about: "How long a breaker stays open.",
    fields: &[
        may("min", Form::Text(&DURATION), "The first penalty; 1s when nothing is written."),
        may(
            "max",
            Form::Text(&DURATION),
            "It doubles with every failed probe up to this; 60s when nothing is written.",
        ),
    ],
};

static LIMITS: Shape = Shape {
    about: "What one sidecar may have in flight to the Service.",
    fields: &[
        may("connections", Form::Whole(1, 10_000_000), "Open connections."),
        may("pending", Form::Whole(1, 10_000_000), "Requests waiting for a connection."),
        may("requests", Form::Whole(1, 10_000_000), "Requests in flight."),
    ],
};

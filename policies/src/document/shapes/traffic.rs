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
        may("loadBalancer", Form::Object(&super::balance::LOAD_BALANCER), "How an endpoint is chosen."),
        may("timeouts", Form::Object(&TIMEOUTS), "How long connections and streams may take, idle and live."),
        may("retryBudget", Form::Object(&RETRY_BUDGET), "Retries allowed beside the original requests, over 10 s."),
        may(
            "retryBuffer",
            Form::Bytes(0, 16 << 20),
            "A request body up to this size is held, so that it can be sent again; 64Ki when nothing is written.",
        ),
        may("breaker", Form::Object(&BREAKER), "The circuit breaker of each endpoint; off when nothing is written."),
        may(
            "healthCheck",
            Form::Object(&super::health::HEALTH_CHECK),
            "How endpoints without a sidecar are asked whether they are well; they are not asked when nothing is written.",
        ),
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

static TIMEOUTS: Shape = Shape {
    about: "How long connections and streams may take, idle and live. What requests may take is written in routes.",
    fields: &[
        may("connect", Form::Text(&DURATION), "To connect, TLS included; 1s when nothing is written."),
        may("idle", Form::Text(&DURATION), "An idle connection is closed after this; 60s when nothing is written."),
        may(
            "maxAge",
            Form::Text(&DURATION),
            "A connection this old gets no further request, up to a tenth earlier at random; 1h when nothing is written, 0s for \
             however old.",
        ),
        may(
            "streamIdle",
            Form::Text(&DURATION),
            "A response of which nothing comes for so long, or nothing is taken by its caller, is cut, and so is a request whose \
             body stands still. When nothing is written 5m, but silence never ends a streaming call (gRPC, server-sent events, an \
             upgraded connection); 0s for no limit.",
        ),
        may(
            "stream",
            Form::Text(&DURATION),
            "A streaming call that lasts longer is cut; no other time limit holds after its response head. No limit when nothing \
             is written.",
        ),
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
        may(
            "failurePercent",
            Form::Object(&FAILURE_PERCENT),
            "The share of failures that opens it, in a row or not; none does when nothing is written.",
        ),
        may("penalty", Form::Object(&PENALTY), "How long it stays open before one request probes the endpoint."),
        may(
            "maxEjectedPercent",
            Form::Whole(1, 100),
            "Of the endpoints of the Service at most so many are kept open, rounded down; but one may be where there are two or \
             more, and below 100 never all. 100 when nothing is written.",
        ),
        may("mode", Form::Choice(&BREAKER_MODE), "enforce keeps requests away; observe only reports what it would do."),
        unbuilt("successRate"),
    ],
};
static BREAKER_MODE: Choice = Choice { built: &["enforce", "observe"], unbuilt: &[], default: Some("enforce") };
static FAILURE_PERCENT: Shape = Shape {
    about: "The share of failures that opens a breaker.",
    fields: &[
        must("threshold", Form::Whole(1, 100), "So many percent or more."),
        may("interval", Form::Text(&DURATION), "Of the requests of this last time; 10s when nothing is written."),
        may(
            "minimumRequests",
            Form::Whole(1, 1_000_000),
            "Fewer requests than this say nothing; 20 when nothing is written.",
        ),
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
    about: "What one sidecar may have in flight to the Service, and how large a body may be.",
    fields: &[
        may("connections", Form::Whole(1, 10_000_000), "Open connections."),
        may("pending", Form::Whole(1, 10_000_000), "Requests, and TCP connections, waiting for a connection."),
        may(
            "pendingTimeout",
            Form::Text(&DURATION),
            "How long one of them waits before it is refused; 1s when nothing is written.",
        ),
        may("requests", Form::Whole(1, 10_000_000), "Requests in flight."),
        may("retries", Form::Whole(0, 10_000_000), "Retries in flight, beside what retryBudget says."),
        may("requestBytes", Form::Bytes(1, 1 << 40), "The body of a request; a longer one is refused with 413."),
        may(
            "responseBytes",
            Form::Bytes(1, 1 << 40),
            "The body of a response; one that says it is longer is answered with 502, one that turns out to be is cut.",
        ),
    ],
};

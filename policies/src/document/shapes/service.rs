//! `v1/Service` and `discovery.k8s.io/v1/EndpointSlice`.

use super::{ANY, API_VERSION, Choice, FILLED, Form, KIND, LABEL_KEY, LABEL_VALUE, META, SECTION, STATUS, Shape, Text};
use super::{ignored, may, must, unbuilt};
use crate::names;

pub(super) static SERVICE: Shape = Shape {
    about: "A name that callers call, its ports, and which instances stand behind it. The annotation equerry.dev/accounts \
            lists, separated by commas, the accounts of its namespace that its instances may run as.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&SERVICE_SPEC), "The Service."), STATUS],
};

static SERVICE_SPEC: Shape = Shape {
    about: "The Service.",
    fields: &[
        must("ports", Form::List(&Form::Object(&SERVICE_PORT), 1, 64), "Its ports."),
        may(
            "selector",
            Form::Map(&LABEL_KEY, &Form::Text(&LABEL_VALUE)),
            "Labels of the instances that stand behind it, all of them.",
        ),
        may(
            "type",
            Form::Choice(&SERVICE_TYPE),
            "ClusterIP, or ExternalName: callers are sent, in plain text, to what the DNS says of externalName.",
        ),
        may(
            "externalName",
            Form::Text(&HOST_NAME),
            "With type ExternalName: the name that is looked up. Endpoints listen on each port's targetPort.",
        ),
        may("sessionAffinity", Form::Choice(&AFFINITY), "Whether a client stays with an endpoint; only None."),
        may("internalTrafficPolicy", Form::Choice(&TRAFFIC), "Which endpoints are used; only Cluster."),
        may("publishNotReadyAddresses", Form::Bool, "Only false: an instance that is not healthy gets no traffic."),
        unbuilt("externalIPs"),
        unbuilt("externalTrafficPolicy"),
        unbuilt("healthCheckNodePort"),
        unbuilt("loadBalancerClass"),
        unbuilt("loadBalancerIP"),
        unbuilt("loadBalancerSourceRanges"),
        unbuilt("sessionAffinityConfig"),
        unbuilt("trafficDistribution"),
        ignored("allocateLoadBalancerNodePorts"),
        ignored("clusterIP"),
        ignored("clusterIPs"),
        ignored("ipFamilies"),
        ignored("ipFamilyPolicy"),
    ],
};

static SERVICE_PORT: Shape = Shape {
    about: "A port of the Service.",
    fields: &[
        may("name", Form::Text(&SECTION), "Its name; needed when there are several ports."),
        must("port", Form::Whole(1, 65535), "The port that callers name."),
        may(
            "targetPort",
            Form::TargetPort,
            "The port the application listens on; the same as `port` when nothing is written.",
        ),
        may("protocol", Form::Choice(&PROTOCOL), "The transport; only TCP."),
        may(
            "appProtocol",
            Form::Choice(&APP_PROTOCOL),
            "What the application speaks there. With tcp nobody looks at the bytes: no rule about HTTP allows anything there. When \
             nothing is written, requests are HTTP/1.1, and connections that do not begin with HTTP are bytes where no rule about \
             HTTP holds.",
        ),
        ignored("nodePort"),
    ],
};

static SERVICE_TYPE: Choice = Choice {
    built: &["ClusterIP", "ExternalName"],
    unbuilt: &["NodePort", "LoadBalancer"],
    default: Some("ClusterIP"),
};
static HOST_NAME: Text = Text {
    expected: "a name of the DNS such as api.example.com: lower-case letters, digits, '-', '_' and '.', and never an address",
    pattern: Some(r"^[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?([.][a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?)*[.]?$"),
    check: |t| names::HostName::parse(t.strip_suffix('.').unwrap_or(t)).is_ok(),
};
static AFFINITY: Choice = Choice { built: &["None"], unbuilt: &["ClientIP"], default: Some("None") };
static TRAFFIC: Choice = Choice { built: &["Cluster"], unbuilt: &["Local"], default: Some("Cluster") };
static PROTOCOL: Choice = Choice { built: &["TCP"], unbuilt: &["UDP", "SCTP"], default: Some("TCP") };
static APP_PROTOCOL: Choice = Choice {
    built: &["http", "http2", "kubernetes.io/h2c", "grpc", "tcp"],
    unbuilt: &["tls", "https", "grpc-web", "mysql", "mongo", "redis", "kubernetes.io/ws", "kubernetes.io/wss"],
    default: Some("http"),
};

pub(super) static ENDPOINT_SLICE: Shape = Shape {
    about: "Endpoints without a sidecar, written down: they are called in plain text. The label kubernetes.io/service-name \
            names their Service.",
    fields: &[
        API_VERSION,
        KIND,
        META,
        must("addressType", Form::Choice(&ADDRESS_TYPE), "What the addresses are."),
        must("endpoints", Form::List(&Form::Object(&ENDPOINT), 0, 1000), "The endpoints."),
        must("ports", Form::List(&Form::Object(&ENDPOINT_PORT), 1, 100), "The ports every endpoint listens on."),
        STATUS,
    ],
};

static ENDPOINT: Shape = Shape {
    about: "An endpoint.",
    fields: &[
        must("addresses", Form::List(&Form::Text(&ADDRESS), 1, 100), "Its addresses."),
        may("conditions", Form::Object(&CONDITIONS), "Whether it can be used."),
        ignored("deprecatedTopology"),
        ignored("hints"),
        ignored("hostname"),
        ignored("nodeName"),
        ignored("targetRef"),
        ignored("zone"),
    ],
};

static CONDITIONS: Shape = Shape {
    about: "Whether an endpoint can be used.",
    fields: &[
        may("ready", Form::Bool, "Whether it takes traffic; true when nothing is written."),
        ignored("serving"),
        may("terminating", Form::Bool, "Whether it is going away: then it takes no new traffic."),
    ],
};

static ENDPOINT_PORT: Shape = Shape {
    about: "A port every endpoint listens on.",
    fields: &[
        may("name", Form::Text(&ANY), "The name of the Service's port it stands for; empty for the only port."),
        must("port", Form::Whole(1, 65535), "The port listened on."),
        may("protocol", Form::Choice(&PROTOCOL), "The transport; only TCP."),
        may("appProtocol", Form::Text(&FILLED), "The same as the Service says of the port."),
    ],
};

static ADDRESS_TYPE: Choice = Choice { built: &["IPv4", "IPv6"], unbuilt: &["FQDN"], default: None };
static ADDRESS: Text =
    Text { expected: "an IP address", pattern: None, check: |t| t.parse::<std::net::IpAddr>().is_ok() };

//! `Mesh`, `PeerAuthentication`, `RequestAuthentication` and `AuthorizationPolicy` of `equerry.dev/v1`, with Istio's
//! field names where the meaning is Istio's.

use super::{
    API_VERSION, CLAIM, Choice, DURATION, FILLED, Form, HEADER, KIND, META, SELECTOR, STATUS, Shape, TARGET_REFS, Text,
};
use super::{may, must, unbuilt};
use crate::names;

pub(super) static MESH: Shape = Shape {
    about: "Settings of the whole mesh; there is one, named default.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&MESH_SPEC), "The settings."), STATUS],
};

static MESH_SPEC: Shape = Shape {
    about: "The settings.",
    fields: &[
        may(
            "trustDomain",
            Form::Text(&TRUST_DOMAIN),
            "The trust domain the control plane was started with; another is refused.",
        ),
        may("mtls", Form::Object(&MESH_MTLS), "What inbound accepts where no PeerAuthentication says otherwise."),
        may("authorization", Form::Object(&AUTHORIZATION), "What happens where no ALLOW policy selects the workload."),
        may(
            "errorDetail",
            Form::Choice(&ERROR_DETAIL),
            "What a refused caller is told: the reason, or (full) policy and rule too.",
        ),
        may(
            "outboundTraffic",
            Form::Choice(&OUTBOUND),
            "REGISTRY_ONLY: names that no Service has are refused. ALLOW_ANY: they are looked up in the DNS and called in plain \
             text.",
        ),
        may(
            "http10",
            Form::Choice(&HTTP10),
            "REFUSE: callers that speak HTTP/1.0 are answered 426. SERVE: they are served in their own version.",
        ),
        may(
            "trustedHops",
            Form::Whole(0, 16),
            "How many proxies in front of a workload write down in X-Forwarded-For whom they speak for; 0 when nothing is written: \
             nobody is believed. A Service's annotation equerry.dev/trusted-hops says it for that Service.",
        ),
        may(
            "protocolDetectionTimeout",
            Form::Text(&DURATION),
            "How long a connection to a port without appProtocol may be silent until it is taken for one whose server speaks first; 5s \
             when nothing is written, 0s: no wait.",
        ),
        unbuilt("accessLog"),
        unbuilt("locality"),
        unbuilt("telemetry"),
    ],
};

static MESH_MTLS: Shape = Shape {
    about: "Whether mutual TLS is asked for.",
    fields: &[must("mode", Form::Choice(&MTLS_MODE), "STRICT: only mutual TLS. PERMISSIVE: plain text as well.")],
};
static AUTHORIZATION: Shape = Shape {
    about: "What happens where no ALLOW policy selects the workload.",
    fields: &[must("default", Form::Choice(&VERDICT), "ALLOW, as in Istio, or DENY, which is recommended.")],
};

static MTLS_MODE: Choice = Choice { built: &["STRICT", "PERMISSIVE"], unbuilt: &["DISABLE"], default: Some("STRICT") };
static VERDICT: Choice = Choice { built: &["ALLOW", "DENY"], unbuilt: &[], default: Some("ALLOW") };
static ERROR_DETAIL: Choice = Choice { built: &["reason", "full"], unbuilt: &["none"], default: Some("reason") };
static HTTP10: Choice = Choice { built: &["REFUSE", "SERVE"], unbuilt: &[], default: Some("REFUSE") };
static OUTBOUND: Choice =
    Choice { built: &["REGISTRY_ONLY", "ALLOW_ANY"], unbuilt: &[], default: Some("REGISTRY_ONLY") };
static TRUST_DOMAIN: Text = Text {
    expected: "a trust domain: lower-case letters, digits, '.', '_' and '-'",
    pattern: Some("^[a-z0-9._-]{1,255}$"),
    check: |t| names::TrustDomain::parse(t).is_ok(),
};

pub(super) static PEER_AUTHENTICATION: Shape = Shape {
    about: "Whether workloads accept plain text. With a selector it holds for those workloads; without, for its namespace; in \
            equerry-system without a selector, for the mesh. The narrowest holds.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&PEER_SPEC), "The policy."), STATUS],
};

static PEER_SPEC: Shape = Shape {
    about: "The policy.",
    fields: &[
        may("selector", Form::Object(&SELECTOR), "The workloads it holds for."),
        may("mtls", Form::Object(&PEER_MTLS), "The mode of all ports."),
        may(
            "portLevelMtls",
            Form::Map(&PORT_KEY, &Form::Object(&PEER_MTLS)),
            "Modes of single application ports; needs a selector.",
        ),
    ],
};
static PEER_MTLS: Shape = Shape {
    about: "Whether mutual TLS is asked for.",
    fields: &[must(
        "mode",
        Form::Choice(&PEER_MODE),
        "STRICT: only mutual TLS. PERMISSIVE: plain text as well. UNSET: the wider scope's.",
    )],
};
static PEER_MODE: Choice = Choice { built: &["STRICT", "PERMISSIVE", "UNSET"], unbuilt: &["DISABLE"], default: None };
static PORT_KEY: Text = Text {
    expected: "an application port from 1 to 65535",
    pattern: Some("^[1-9][0-9]{0,4}$"),
    check: |t| t.parse::<u16>().is_ok_and(|port| port != 0),
};

pub(super) static REQUEST_AUTHENTICATION: Shape = Shape {
    about: "Which tokens workloads accept, and what they tell the application about them. A token that is there is always verified.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&TOKEN_SPEC), "The policy."), STATUS],
};

static TOKEN_SPEC: Shape = Shape {
    about: "The policy.",
    fields: &[
        may("selector", Form::Object(&SELECTOR), "The workloads it holds for."),
        may("targetRefs", Form::List(&TARGET_REFS, 1, 16), "The Services it holds for, instead of a selector."),
        must("jwtRules", Form::List(&Form::Object(&JWT_RULE), 1, 64), "One for each issuer."),
    ],
};

static JWT_RULE: Shape = Shape {
    about: "What one issuer's tokens must be.",
    fields: &[
        must("issuer", Form::Text(&FILLED), "Exactly the iss claim."),
        may(
            "audiences",
            Form::List(&Form::Text(&FILLED), 1, 64),
            "Any one must be in the aud claim; not checked when nothing is written.",
        ),
        must("jwks", Form::KeySet, "The issuer's public keys (RFC 7517)."),
        may(
            "required",
            Form::Bool,
            "Whether a request without a token is refused with 401; false when nothing is written, as in Istio.",
        ),
        may(
            "claimsToHeaders",
            Form::List(&Form::Object(&CLAIM_HEADER), 0, 64),
            "Claims told to the application; the headers are always stripped from what callers send.",
        ),
        unbuilt("jwksUri"),
        unbuilt("jwks_uri"),
        unbuilt("forwardOriginalToken"),
        unbuilt("fromCookies"),
        unbuilt("fromHeaders"),
        unbuilt("fromParams"),
        unbuilt("outputClaimToHeaders"),
        unbuilt("outputPayloadToHeader"),
        unbuilt("spaceDelimitedClaims"),
        unbuilt("timeout"),
    ],
};

static CLAIM_HEADER: Shape = Shape {
    about: "A claim, and the header it is told in.",
    fields: &[
        must("claim", Form::Text(&CLAIM), "The claim: its name, or [outer][inner]."),
        must("header", Form::Text(&HEADER), "The header."),
    ],
};

pub(super) static AUTHORIZATION_POLICY: Shape = Shape {
    about: "Who may do what, with Istio's meaning: DENY policies are asked first; where an ALLOW policy selects the workload, a \
            request must match a rule of one. What an AUDIT policy matches is noted.",
    fields: &[
        API_VERSION,
        KIND,
        META,
        may("spec", Form::Object(&AUTHZ_SPEC), "The policy; an empty one denies everything."),
        STATUS,
    ],
};

static AUTHZ_SPEC: Shape = Shape {
    about: "The policy.",
    fields: &[
        may("selector", Form::Object(&SELECTOR), "The workloads it holds for."),
        may("targetRefs", Form::List(&TARGET_REFS, 1, 16), "The Services it holds for, instead of a selector."),
        may("action", Form::Choice(&ACTION), "What a matching rule decides; ALLOW when nothing is written."),
        may(
            "mode",
            Form::Choice(&AUTHZ_MODE),
            "enforce, or shadow: nothing is enforced, and what the policy would change is counted and logged. \
             The annotation istio.io/dry-run: \"true\" says shadow too.",
        ),
        may(
            "rules",
            Form::List(&Form::Object(&AUTHZ_RULE), 0, 512),
            "Any one that matches decides. `- {}` matches everything.",
        ),
        unbuilt("provider"),
    ],
};

static AUTHZ_RULE: Shape = Shape {
    about: "A rule; its parts must hold together.",
    fields: &[
        may("from", Form::List(&Form::Object(&FROM), 1, 512), "Who: any one."),
        may("to", Form::List(&Form::Object(&TO), 1, 512), "What: any one."),
        may("when", Form::List(&Form::Object(&WHEN), 1, 64), "Conditions: all of them."),
    ],
};

static FROM: Shape = Shape {
    about: "Who speaks.",
    fields: &[must("source", Form::Object(&SOURCE), "All of its lists must hold; of each, any one value.")],
};
static SOURCE: Shape = Shape {
    about: "Who speaks.",
    fields: &[
        may("principals", STRINGS, "Identities without spiffe://, such as equerry.local/ns/shop/sa/orders."),
        may("namespaces", STRINGS, "Namespaces of the peer's identity."),
        may("requestPrincipals", STRINGS, "ISSUER/SUBJECT of the verified token."),
        may("ipBlocks", STRINGS, "Addresses or networks of the direct peer."),
        may("serviceAccounts", ACCOUNTS, "Accounts of the peer's identity: ACCOUNT, or NAMESPACE/ACCOUNT."),
        may("trustDomains", STRINGS, "Trust domains of the peer's identity."),
        may(
            "remoteIpBlocks",
            STRINGS,
            "Addresses or networks of whoever made the request: from X-Forwarded-For, as far as Mesh.trustedHops or the Service's \
             annotation equerry.dev/trusted-hops believes it; else the direct peer's.",
        ),
        may("notPrincipals", STRINGS, "None of these identities."),
        may("notNamespaces", STRINGS, "None of these namespaces."),
        may("notRequestPrincipals", STRINGS, "None of these; a request without a token is none of them."),
        may("notIpBlocks", STRINGS, "None of these addresses or networks."),
        may("notServiceAccounts", ACCOUNTS, "None of these accounts."),
        may("notTrustDomains", STRINGS, "None of these trust domains."),
        may("notRemoteIpBlocks", STRINGS, "None of these addresses or networks."),
    ],
};

static TO: Shape = Shape {
    about: "What is done.",
    fields: &[must("operation", Form::Object(&OPERATION), "All of its lists must hold; of each, any one value.")],
};
static OPERATION: Shape = Shape {
    about: "What is done.",
    fields: &[
        may("hosts", STRINGS, "Hosts, in any case; matched with and without their port."),
        may("methods", STRINGS, "Methods, such as GET."),
        may(
            "paths",
            STRINGS,
            "Normalised paths, without the query. In a template such as /a/{*}/{**} {*} is one segment, and {**} the rest.",
        ),
        may("ports", Form::List(&Form::PortText, 1, 512), "The application's ports."),
        may("notHosts", STRINGS, "None of these hosts."),
        may("notMethods", STRINGS, "None of these methods."),
        may("notPaths", STRINGS, "None of these paths."),
        may("notPorts", Form::List(&Form::PortText, 1, 512), "None of these ports."),
    ],
};

static WHEN: Shape = Shape {
    about: "A condition.",
    fields: &[
        must(
            "key",
            Form::Text(&FILLED),
            "Istio's: request.headers[NAME], request.auth.claims[NAME][INNER], request.auth.principal, request.auth.audiences, \
             request.auth.presenter, source.ip, source.namespace, source.principal, source.serviceAccount, source.trustDomain, remote.ip, \
             destination.ip, destination.port or connection.sni.",
        ),
        may(
            "values",
            STRINGS,
            "Any one of these. Of a header that is there several times each is looked at, of a claim that is a list each member.",
        ),
        may("notValues", STRINGS, "None of these; what is not there is none of them."),
    ],
};

const STRINGS: Form = Form::List(&Form::Text(&STRING), 1, 512);
const ACCOUNTS: Form = Form::List(&Form::Text(&ACCOUNT), 1, 512);
static ACCOUNT: Text = Text {
    expected: "an account: ACCOUNT, or NAMESPACE/ACCOUNT",
    pattern: Some("^([-a-z0-9]+/)?[-a-z0-9.]+$"),
    check: |t| names::AccountName::parse(t).is_ok() || names::AccountName::parse(&format!("a/{t}")).is_ok(),
};
static STRING: Text = Text {
    expected: "a text that is not empty: exact, or PREFIX*, *SUFFIX, or * for any that is there",
    pattern: Some(r"^(\*|\*?[^*]+|[^*]+\*|/.*\{\*.*)$"),
    check: |t| !t.is_empty(),
};
static ACTION: Choice = Choice { built: &["ALLOW", "DENY", "AUDIT"], unbuilt: &["CUSTOM"], default: Some("ALLOW") };
static AUTHZ_MODE: Choice = Choice { built: &["enforce", "shadow"], unbuilt: &[], default: Some("enforce") };

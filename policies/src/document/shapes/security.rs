//! `Mesh`, `PeerAuthentication`, `RequestAuthentication` and `AuthorizationPolicy` of `equerry.dev/v1`, with Istio's
//! field names where the meaning is Istio's.

use super::{
    API_VERSION, CLAIM, Choice, DURATION, FILLED, Form, HEADER, KIND, META, SELECTOR, STATUS, Shape, TARGET_REFS, Text,
    access_log,
};
use super::{may, must, unbuilt};
use crate::names;
use crate::policy::{KeyUrl, certificates, duration};

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
        may(
            "accessLog",
            Form::Object(&access_log::ACCESS_LOG),
            "What the sidecars' access logs say beyond what they always say: headers, query parameters and claims by name.",
        ),
        unbuilt("locality"),
        unbuilt("telemetry"),
    ],
};

static MESH_MTLS: Shape = Shape {
    about: "Whether mutual TLS is asked for.",
    fields: &[must(
        "mode",
        Form::Choice(&MTLS_MODE),
        "STRICT: only mutual TLS. PERMISSIVE: plain text as well. DISABLE: only plain text, and nobody is known.",
    )],
};
static AUTHORIZATION: Shape = Shape {
    about: "What happens where no ALLOW policy selects the workload.",
    fields: &[must("default", Form::Choice(&VERDICT), "ALLOW, as in Istio, or DENY, which is recommended.")],
};

static MTLS_MODE: Choice =
    Choice { built: &["STRICT", "PERMISSIVE", "DISABLE"], unbuilt: &[], default: Some("STRICT") };
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
    about: "Whether workloads ask for mutual TLS. With a selector it holds for those workloads; without, for its namespace; in \
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
        "STRICT: only mutual TLS. PERMISSIVE: plain text as well. DISABLE: only plain text, which sidecars then speak too: nobody is known \
         there by identity. UNSET: the wider scope's.",
    )],
};
static PEER_MODE: Choice = Choice { built: &["STRICT", "PERMISSIVE", "DISABLE", "UNSET"], unbuilt: &[], default: None };
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
        may("jwks", Form::KeySet, "The issuer's public keys (RFC 7517); or jwksUri."),
        may(
            "jwksUri",
            Form::Text(&KEY_URL),
            "Where the issuer publishes its keys. Each sidecar fetches them itself, ahead of time, and once more when a token names a \
             key that it does not know.",
        ),
        may(
            "jwksCa",
            Form::Text(&CERTIFICATES),
            "Certificates (PEM) that the certificate of jwksUri must lead to; those that the sidecar's machine trusts when nothing is \
             written.",
        ),
        may("timeout", Form::Text(&FETCH_TIMEOUT), "How long fetching jwksUri may take; 5s when nothing is written."),
        may(
            "fromHeaders",
            Form::List(&Form::Object(&FROM_HEADER), 1, 16),
            "Headers that carry tokens. With any of fromHeaders, fromCookies and fromParams tokens are nowhere else; without, in \
             Authorization: Bearer.",
        ),
        may("fromCookies", Form::List(&Form::Text(&COOKIE), 1, 16), "Cookies that carry tokens."),
        may(
            "fromParams",
            Form::List(&Form::Text(&PARAMETER), 1, 16),
            "Query parameters that carry tokens. Where nothing else is possible: others may write URLs down.",
        ),
        may(
            "forwardOriginalToken",
            Form::Bool,
            "Whether the application is given the token too; false when nothing is written, as in Istio: it is taken out of the header, \
             cookie or query it came in.",
        ),
        may(
            "requiredClaims",
            Form::List(&Form::Object(&REQUIRED_CLAIM), 1, 64),
            "Claims that must be there, each with one of its values.",
        ),
        may(
            "clockSkew",
            Form::Text(&CLOCK_SKEW),
            "How far the clocks of issuer and workload may be apart; 60s when nothing is written.",
        ),
        may(
            "endStreamsWithToken",
            Form::Bool,
            "Whether responses, streams and upgraded connections that a token let in end with it: when it expires, or its key is no longer \
             published. false when nothing is written.",
        ),
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
        unbuilt("jwks_uri"),
        unbuilt("outputClaimToHeaders"),
        unbuilt("outputPayloadToHeader"),
        unbuilt("spaceDelimitedClaims"),
    ],
};

static FROM_HEADER: Shape = Shape {
    about: "A header that carries tokens.",
    fields: &[
        must("name", Form::Text(&HEADER), "The header."),
        may("prefix", Form::Text(&PREFIX), "What stands before the token, exactly, such as \"Bearer \"."),
    ],
};
static REQUIRED_CLAIM: Shape = Shape {
    about: "A claim that must be there.",
    fields: &[
        must("claim", Form::Text(&CLAIM), "The claim: its name, or [outer][inner]."),
        may(
            "values",
            Form::List(&Form::Text(&FILLED), 1, 64),
            "Any one of these, or a list with one of them; whatever it says when nothing is written.",
        ),
    ],
};
static KEY_URL: Text = Text {
    expected: "an https URL of a host name or address, without user and fragment",
    pattern: Some("^https://[^@#]+$"),
    check: |t| KeyUrl::parse(t).is_ok(),
};
static CERTIFICATES: Text = Text {
    expected: "certificates as PEM: -----BEGIN CERTIFICATE----- ..., at most 64 KiB, and no private key",
    pattern: None,
    // A private key is complained about by whoever shows no line of it.
    check: |t| {
        t.contains("PRIVATE KEY") || t.len() <= 64 << 10 && certificates(t).is_some_and(|found| !found.is_empty())
    },
};
static FETCH_TIMEOUT: Text = Text {
    expected: "a duration from 100ms to 30s",
    pattern: DURATION.pattern,
    check: |t| duration(t).is_some_and(|time| (100..=30_000).contains(&time.as_millis())),
};
static CLOCK_SKEW: Text = Text {
    expected: "a duration from 0s to 5m",
    pattern: DURATION.pattern,
    check: |t| duration(t).is_some_and(|time| time.as_secs_f64() <= 300.0),
};
static COOKIE: Text = Text {
    expected: "the name of a cookie: letters, digits and !#$%&'*+-.^_`|~",
    pattern: Some(r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$"),
    check: |t| t.len() <= 256 && http::HeaderName::from_bytes(t.as_bytes()).is_ok(),
};
static PARAMETER: Text = Text {
    expected: "the name of a query parameter: letters, digits, '-', '_', '.' and '~'",
    pattern: Some("^[A-Za-z0-9._~-]{1,256}$"),
    check: |t| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
        (1..=256).contains(&t.len()) && t.bytes().all(plain)
    },
};
static PREFIX: Text = Text {
    expected: "a text of up to 64 printable characters",
    pattern: Some("^[ -~]{1,64}$"),
    check: |t| (1..=64).contains(&t.len()) && t.bytes().all(|byte| matches!(byte, b' '..=b'~')),
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

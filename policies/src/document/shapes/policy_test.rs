//! `PolicyTest` of `equerry.dev/v1`.

use super::{ANY, API_VERSION, Choice, FILLED, Form, HEADER, KIND, META, STATUS, Shape, Text, may, must};
use crate::names;

pub(super) static POLICY_TEST: Shape = Shape {
    about: "What policies are expected to decide, run by `equerry test`. No proxy is told of it.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&SPEC), "The tests."), STATUS],
};

static SPEC: Shape = Shape {
    about: "The tests.",
    fields: &[must("cases", Form::List(&Form::Object(&CASE), 1, 512), "Each stands for itself.")],
};

static CASE: Shape = Shape {
    about: "A request, and what must become of it.",
    fields: &[
        must("name", Form::Text(&FILLED), "What it shows; unique in its document."),
        must("from", Form::Text(&ACCOUNT), "Who makes the request: NAMESPACE/ACCOUNT."),
        may("fromIp", Form::Text(&ADDRESS), "The address of the caller's sidecar; 127.0.0.1 when nothing is written."),
        may(
            "toAccount",
            Form::Text(&ACCOUNT),
            "The account the callee runs as; the Service's first when nothing is written.",
        ),
        must("request", Form::Object(&REQUEST), "The request, as the application makes it."),
        may(
            "claims",
            Form::Anything,
            "What its token says: a map. iss, aud and exp are added where they are missing, and it is signed by a key made for the \
             test; without claims there is no token.",
        ),
        must("expect", Form::Object(&EXPECT), "What must become of it; what is not said is not looked at."),
    ],
};

static REQUEST: Shape = Shape {
    about: "A request.",
    fields: &[
        may("method", Form::Text(&METHOD), "The method; GET when nothing is written."),
        must("url", Form::Text(&URL), "http://orders/path, or orders.shop:8080/path."),
        may("headers", Form::List(&Form::Object(&LINE), 1, 64), "Its headers; one may stand there several times."),
    ],
};

static LINE: Shape = Shape {
    about: "A header.",
    fields: &[must("name", Form::Text(&HEADER), "Its name."), must("value", Form::Text(&ANY), "Its value.")],
};

static EXPECT: Shape = Shape {
    about: "What must become of the request.",
    fields: &[
        must("decision", Form::Choice(&DECISION), "ALLOW: it reaches the application. DENY: it does not."),
        may("reason", Form::Text(&FILLED), "Why not: one of the mesh's reasons, such as authz_denied."),
        may("route", Form::Text(&FILLED), "The rule of a route that chose: shop/orders rules[0]."),
        may(
            "rule",
            Form::Text(&FILLED),
            "What allowed or refused it, in the words of the log: shop/callers rules[0], or Mesh.authorization.default.",
        ),
    ],
};

static DECISION: Choice = Choice { built: &["ALLOW", "DENY"], unbuilt: &[], default: None };
static ACCOUNT: Text = Text {
    expected: "an account as NAMESPACE/ACCOUNT",
    pattern: Some("^[-a-z0-9]+/[-a-z0-9.]+$"),
    check: |t| names::AccountName::parse(t).is_ok(),
};
static ADDRESS: Text = Text {
    expected: "an IP address",
    pattern: Some("^[0-9a-fA-F.:]+$"),
    check: |t| t.parse::<std::net::IpAddr>().is_ok(),
};
static METHOD: Text =
    Text { expected: "a method, such as GET", pattern: Some("^[!-~]+$"), check: |t| http::Method::try_from(t).is_ok() };
static URL: Text = Text {
    expected: "a URL as an application calls its sidecar: http://HOST/PATH",
    pattern: Some("^(http://)?[^/]+(/.*)?$"),
    check: is_url,
};

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").unwrap_or(text);
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    !rest.contains("://") && !host.is_empty() && format!("http://{rest}").parse::<http::Uri>().is_ok()
}

//! `Tenant` of `equerry.dev/v1`.

use super::{
    API_VERSION, CLAIM, Choice, DURATION, FILLED, Form, HEADER, HEADER_VALUE, KIND, META, STATUS, Shape, Text,
};
use super::{may, must, unbuilt};
use crate::names;

pub(super) static TENANT: Shape = Shape {
    about: "Who a tenant is, and what it may spend across all sidecars together.",
    fields: &[API_VERSION, KIND, META, must("spec", Form::Object(&SPEC), "The tenant."), STATUS],
};

static SPEC: Shape = Shape {
    about: "The tenant.",
    fields: &[
        must(
            "match",
            Form::List(&Form::Object(&MATCH), 1, 64),
            "Any one names the tenant. Over all tenants claims are asked first, then headers.",
        ),
        may("quotas", Form::List(&Form::Object(&QUOTA), 0, 64), "What it may spend."),
        may(
            "onControlPlaneLoss",
            Form::Choice(&LOSS),
            "What sidecars admit while the control plane cannot be reached.",
        ),
    ],
};

static MATCH: Shape = Shape {
    about: "What names the tenant: exactly one of the keys.",
    fields: &[
        may("claim", Form::Object(&CLAIM_IS), "A claim of a token that a RequestAuthentication verified there."),
        may("header", Form::Object(&HEADER_IS), "A header, believed from some accounts only."),
        unbuilt("identity"),
        unbuilt("subdomain"),
    ],
};

static CLAIM_IS: Shape = Shape {
    about: "A claim has exactly this value.",
    fields: &[
        must("name", Form::Text(&CLAIM), "The claim: its name, or [outer][inner]."),
        must("value", Form::Text(&FILLED), "Its value."),
    ],
};

static HEADER_IS: Shape = Shape {
    about: "A header has exactly this value, and the direct peer is one of some accounts.",
    fields: &[
        must("name", Form::Text(&HEADER), "The header."),
        must("value", Form::Text(&HEADER_VALUE), "Its value."),
        must(
            "trustedFrom",
            Form::List(&Form::Text(&ACCOUNT), 1, 64),
            "NAMESPACE/ACCOUNT of each peer whose word is taken for it.",
        ),
    ],
};

static QUOTA: Shape = Shape {
    about: "So many requests in each window, over all instances of some Services together.",
    fields: &[
        must(
            "services",
            Form::List(&Form::Text(&SERVICE), 1, 64),
            "NAMESPACE/NAME of the Services at whose inbound it is counted, once.",
        ),
        must("requests", Form::Whole(1, 1_000_000_000_000), "How many requests."),
        must("window", Form::Text(&DURATION), "In how long: whole seconds, 1s to 24h, aligned to Unix time."),
        unbuilt("bytes"),
        unbuilt("concurrent"),
    ],
};

static LOSS: Choice = Choice { built: &["lastShare", "deny", "allow"], unbuilt: &[], default: Some("lastShare") };
static ACCOUNT: Text = Text {
    expected: "an account as NAMESPACE/ACCOUNT",
    pattern: Some("^[a-z0-9-]+/[a-z0-9.-]+$"),
    check: |t| names::AccountName::parse(t).is_ok(),
};
static SERVICE: Text = Text {
    expected: "a Service as NAMESPACE/NAME",
    pattern: Some("^[a-z0-9-]+/[a-z0-9-]+$"),
    check: |t| names::ServiceName::parse(t).is_ok(),
};

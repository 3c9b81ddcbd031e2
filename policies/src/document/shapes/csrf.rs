//! `CsrfPolicy` of `equerry.dev/v1`.

use super::{API_VERSION, Form, KIND, META, SELECTOR, STATUS, Shape, TARGET_REFS, Text, may};
use crate::policy::OriginPattern;

pub(super) static CSRF_POLICY: Shape = Shape {
    about: "Refuses what a page of another site makes a browser send: every method but GET, HEAD and OPTIONS, and every upgrade, whose \
            Sec-Fetch-Site or Origin says that it came from elsewhere. Requests of programs have neither header, and pass.",
    fields: &[API_VERSION, KIND, META, may("spec", Form::Object(&SPEC), "The policy."), STATUS],
};

static SPEC: Shape = Shape {
    about: "The policy.",
    fields: &[
        may("selector", Form::Object(&SELECTOR), "The workloads it holds for."),
        may("targetRefs", Form::List(&TARGET_REFS, 1, 16), "The Services it holds for, instead of a selector."),
        may(
            "allowedOrigins",
            Form::List(&Form::Text(&ORIGIN), 1, 64),
            "Other origins whose pages may change something here; the authority that is called is always its own. In front of a mesh \
             that calls a Service by another name than browsers do, the name that browsers use belongs here.",
        ),
    ],
};

static ORIGIN: Text = Text {
    expected: "an origin such as https://app.example.com or https://*.example.com",
    pattern: Some(r"^https?://[^/]+$"),
    check: |t| t.len() <= 253 && !matches!(OriginPattern::parse(t), None | Some(OriginPattern::Any)),
};

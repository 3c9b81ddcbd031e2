//! `accessLog` of a `Mesh`: what is logged beside the usual, and how.

use super::{CLAIM, Choice, Form, HEADER, Shape, Text, may, must};

pub(super) static ACCESS_LOG: Shape = Shape {
    about: "What access logs say beyond what they always say. What lets somebody in (Authorization, cookies, x-api-key, tokens and keys in \
            queries, and whatever a RequestAuthentication reads tokens from) is never written down as it is.",
    fields: &[
        may(
            "requestHeaders",
            Form::List(&Form::Object(&LOGGED_HEADER), 1, MOST),
            "Headers of requests, as they came from the caller.",
        ),
        may(
            "responseHeaders",
            Form::List(&Form::Object(&LOGGED_HEADER), 1, MOST),
            "Headers of responses, as the caller gets them.",
        ),
        may(
            "queryParameters",
            Form::List(&Form::Object(&LOGGED_PARAMETER), 1, MOST),
            "Query parameters by their decoded names. The path is logged without its query.",
        ),
        may(
            "cookies",
            Form::List(&Form::Object(&LOGGED_COOKIE), 1, MOST),
            "Single cookies of requests, by their names. Where nothing is written MASK: most cookies let somebody in, whatever they are called.",
        ),
        may(
            "claims",
            Form::List(&Form::Object(&LOGGED_CLAIM), 1, MOST),
            "Claims of verified tokens, in the log of the workload that verified them.",
        ),
    ],
};

/// Of each sort at most so many.
const MOST: usize = 32;

static LOGGED_HEADER: Shape = Shape {
    about: "One header.",
    fields: &[must("name", Form::Text(&HEADER), "Its name."), may("show", Form::Choice(&SHOW), SHOWN)],
};
static LOGGED_PARAMETER: Shape = Shape {
    about: "One query parameter.",
    fields: &[must("name", Form::Text(&PARAMETER), "Its decoded name."), may("show", Form::Choice(&SHOW), SHOWN)],
};
static LOGGED_COOKIE: Shape = Shape {
    about: "One cookie.",
    fields: &[must("name", Form::Text(&COOKIE), "Its name."), may("show", Form::Choice(&SHOW), SHOWN_COOKIE)],
};
static LOGGED_CLAIM: Shape = Shape {
    about: "One claim.",
    fields: &[must("name", Form::Text(&CLAIM), "Its name, or its path."), may("show", Form::Choice(&SHOW), SHOWN)],
};

const SHOWN: &str = "VALUE, up to 256 characters; HASH: 12 digits by which equal values of one process can be told; MASK: that there is one. \
                     When nothing is written VALUE, and MASK for what lets somebody in, which is never shown as VALUE.";
const SHOWN_COOKIE: &str = "VALUE, up to 256 characters; HASH: 12 digits by which equal values of one process can be told; MASK: that there is one. \
                            When nothing is written MASK. What lets somebody in is never shown as VALUE.";
static SHOW: Choice = Choice { built: &["VALUE", "HASH", "MASK"], unbuilt: &[], default: None };
static PARAMETER: Text = Text {
    expected: "the decoded name of a query parameter: up to 256 characters, none of them a control character",
    pattern: None,
    check: |t| (1..=256).contains(&t.len()) && !t.chars().any(char::is_control),
};
static COOKIE: Text = Text {
    expected: "the name of a cookie: up to 256 letters, digits and any of !#$%&'*+-.^_`|~",
    pattern: None,
    check: |t| {
        (1..=256).contains(&t.len()) && t.bytes().all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c))
    },
};

//! The filters of routes: what is done to requests and responses.

use super::route::MIRROR_BACKEND;
use super::{Choice, Field, Form, HEADER, HEADER_VALUE, Shape, Text, may, must, unbuilt};
use crate::policy::OriginPattern;

pub(super) static HTTP_FILTER: Shape = Shape {
    about: "One thing that is done; `type` says which, and the key of the same name says how.",
    fields: &[
        must("type", Form::Choice(&HTTP_FILTER_TYPE), "What is done."),
        REQUEST_HEADERS,
        RESPONSE_HEADERS,
        MIRROR,
        may("requestRedirect", Form::Object(&REDIRECT), "Answers with another address."),
        may("urlRewrite", Form::Object(&REWRITE), "Changes host and path before the request is sent."),
        may("cors", Form::Object(&CORS), "Lets scripts of other origins read the answers."),
        unbuilt("externalAuth"),
        unbuilt("extensionRef"),
    ],
};

pub(super) static GRPC_FILTER: Shape = Shape {
    about: "One thing that is done; `type` says which, and the key of the same name says how.",
    fields: &[
        must("type", Form::Choice(&GRPC_FILTER_TYPE), "What is done."),
        REQUEST_HEADERS,
        RESPONSE_HEADERS,
        MIRROR,
        unbuilt("extensionRef"),
    ],
};

const REQUEST_HEADERS: Field =
    may("requestHeaderModifier", Form::Object(&HEADER_EDITS), "Changes headers of the request before it is sent.");
const RESPONSE_HEADERS: Field = may(
    "responseHeaderModifier",
    Form::Object(&HEADER_EDITS),
    "Changes headers of the response before it is passed on.",
);
const MIRROR: Field = may(
    "requestMirror",
    Form::Object(&REQUEST_MIRROR),
    "Sends a copy of requests to another Service, whose answers nobody sees. Copied is what has no body, or one whose length \
     is known beforehand and not above retryBuffer of the backend's TrafficPolicy.",
);

static HTTP_FILTER_TYPE: Choice = Choice {
    built: &[
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestMirror",
        "RequestRedirect",
        "URLRewrite",
        "CORS",
    ],
    unbuilt: &["ExtensionRef", "ExternalAuth"],
    default: None,
};
static GRPC_FILTER_TYPE: Choice = Choice {
    built: &["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror"],
    unbuilt: &["ExtensionRef"],
    default: None,
};

static HEADER_EDITS: Shape = Shape {
    about: "Changes to headers; each header once.",
    fields: &[
        may("set", Form::List(&Form::Object(&NAMED_VALUE), 0, 16), "The header is this, whatever it was."),
        may("add", Form::List(&Form::Object(&NAMED_VALUE), 0, 16), "The header has this value beside those it has."),
        may("remove", Form::List(&Form::Text(&HEADER), 0, 16), "The header is gone."),
    ],
};

static NAMED_VALUE: Shape = Shape {
    about: "A header.",
    fields: &[
        must("name", Form::Text(&HEADER), "Its name, in any case."),
        must("value", Form::Text(&HEADER_VALUE), "Its value."),
    ],
};

static REDIRECT: Shape = Shape {
    about: "Where the caller is sent instead; what is left out stays as it was.",
    fields: &[
        may("scheme", Form::Choice(&SCHEME), "The scheme."),
        may("hostname", Form::Text(&HOSTNAME), "The host."),
        may("path", Form::Object(&PATH_EDIT), "The path; the query stays."),
        may(
            "port",
            Form::Whole(1, 65535),
            "The port; when left out the scheme's own where a scheme is written, else the port that was called.",
        ),
        may("statusCode", Form::Whole(301, 308), "301, 302, 303, 307 or 308; 302 when nothing is written."),
    ],
};

static REWRITE: Shape = Shape {
    about: "What host and path become; what is left out stays as it was.",
    fields: &[
        may(
            "hostname",
            Form::Text(&HOSTNAME),
            "The host that the application reads; where the request goes is settled.",
        ),
        may("path", Form::Object(&PATH_EDIT), "The path; the query stays."),
    ],
};

static PATH_EDIT: Shape = Shape {
    about: "How the path is changed.",
    fields: &[
        must("type", Form::Choice(&PATH_EDIT_TYPE), "What of it is replaced."),
        may("replaceFullPath", Form::Text(&NEW_PATH), "The new path."),
        may(
            "replacePrefixMatch",
            Form::Text(&NEW_PATH),
            "What stands in place of the prefix that matched; may be empty.",
        ),
    ],
};

static REQUEST_MIRROR: Shape = Shape {
    about: "Where copies of requests go, and of how many.",
    fields: &[
        must("backendRef", Form::Object(&MIRROR_BACKEND), "The Service that copies go to."),
        may("percent", Form::Whole(0, 100), "Of a hundred requests so many; all when nothing is written."),
        may("fraction", Form::Object(&FRACTION), "The same as a fraction."),
    ],
};

static FRACTION: Shape = Shape {
    about: "A fraction from 0 to 1.",
    fields: &[
        must("numerator", Form::Whole(0, 2_147_483_647), "Of `denominator` requests so many."),
        may("denominator", Form::Whole(1, 2_147_483_647), "100 when nothing is written."),
    ],
};

static CORS: Shape = Shape {
    about: "Which scripts of other origins may read the answers, and what they may send (GEP-1767). Preflight requests are answered here.",
    fields: &[
        may(
            "allowOrigins",
            Form::List(&Form::Text(&CORS_ORIGIN), 0, 64),
            "Origins that may: `*` alone for all, or SCHEME://HOST[:PORT], where HOST may begin with `*`; nobody when nothing is written.",
        ),
        may("allowCredentials", Form::Bool, "With cookies and the like; false when nothing is written."),
        may(
            "allowMethods",
            Form::List(&Form::Choice(&CORS_METHOD), 0, 9),
            "Methods beside GET, HEAD and POST, which are always allowed; `*` alone for all.",
        ),
        may(
            "allowHeaders",
            Form::List(&Form::Text(&HEADER), 0, 64),
            "Headers that scripts may send; `*` alone for all.",
        ),
        may(
            "exposeHeaders",
            Form::List(&Form::Text(&HEADER), 0, 64),
            "Headers of the response that scripts may read; `*` alone for all.",
        ),
        may(
            "maxAge",
            Form::Whole(1, 2_147_483_647),
            "For how many seconds a browser remembers the answer to a preflight request; 5 when nothing is written.",
        ),
    ],
};

static SCHEME: Choice = Choice { built: &["http", "https"], unbuilt: &[], default: None };
static PATH_EDIT_TYPE: Choice =
    Choice { built: &["ReplaceFullPath", "ReplacePrefixMatch"], unbuilt: &[], default: None };
static CORS_METHOD: Choice = Choice {
    built: &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"],
    unbuilt: &[],
    default: None,
};
static CORS_ORIGIN: Text = Text {
    expected: "an origin: *, or http(s)://HOST[:PORT] where HOST may begin with *",
    pattern: Some(r"^(\*|https?://[^/:?#]+(:[0-9]{1,5})?)$"),
    check: |t| t.len() <= 253 && OriginPattern::parse(t).is_some(),
};
static HOSTNAME: Text = Text {
    expected: "a host name: up to 253 lower-case letters, digits, '-' and '.', no address and no '*'",
    pattern: Some(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
    check: |t| crate::names::ResourceName::parse(t).is_ok() && t.parse::<std::net::IpAddr>().is_err(),
};
static NEW_PATH: Text =
    Text { expected: "a path of at most 1024 characters", pattern: None, check: |t| t.len() <= 1024 };

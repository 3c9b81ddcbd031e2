//! `loadBalancer` of a `TrafficPolicy`.

use super::{Choice, DURATION, Form, HEADER, Shape, Text, may, must};
use crate::policy::{Maglev, RingHash};

pub(super) static LOAD_BALANCER: Shape = Shape {
    about: "How an endpoint is chosen for each request.",
    fields: &[
        must(
            "type",
            Form::Choice(&BALANCERS),
            "p2c_ewma: the better of two random endpoints by latency and load; least_request: by load alone; round_robin: \
             one after the other by weight; random; ring_hash, maglev: requests with the same hash go to the same endpoint.",
        ),
        may(
            "slowStart",
            Form::Object(&SLOW_START),
            "Warms up a new endpoint; with p2c_ewma, least_request, round_robin and random.",
        ),
        may("hash", Form::Object(&HASH), "What ring_hash and maglev hash; exactly one of its keys."),
        may("ring", Form::Object(&RING), "The ring of ring_hash."),
        may("maglev", Form::Object(&MAGLEV), "The table of maglev."),
    ],
};
static BALANCERS: Choice = Choice {
    built: &["p2c_ewma", "least_request", "round_robin", "random", "ring_hash", "maglev"],
    unbuilt: &[],
    default: Some("p2c_ewma"),
};

static SLOW_START: Shape = Shape {
    about: "A new endpoint's weight grows from a tenth to the whole.",
    fields: &[
        must("window", Form::Text(&DURATION), "How long that takes."),
        may(
            "aggression",
            Form::Whole(10, 1000),
            "In percent: 100 grows evenly, more grows faster at first; 100 when nothing is written.",
        ),
    ],
};

static HASH: Shape = Shape {
    about: "What is hashed; a request without it goes to an endpoint at random.",
    fields: &[
        may("header", Form::Text(&HEADER), "The values of this header."),
        may("cookie", Form::Text(&COOKIE), "The value of this cookie."),
        may("query", Form::Text(&PARAMETER), "The value of this query parameter, as it was sent."),
        may("sourceAddress", Form::Bool, "The address of the instance that calls; only true."),
        may("identity", Form::Bool, "The identity of the workload that calls; only true."),
    ],
};

static RING: Shape = Shape {
    about: "The ring of ring_hash.",
    fields: &[
        may(
            "minimumSize",
            Form::Whole(1, RingHash::MAXIMUM_SIZE as i64),
            "Points on the ring, at least; 160 for each unit of an endpoint's weight when nothing is written. With a number \
             here, shares move a little among all endpoints when one comes or goes.",
        ),
        may(
            "maximumSize",
            Form::Whole(1, RingHash::MAXIMUM_SIZE as i64),
            "Points on the ring, at most; 8388608 when nothing is written.",
        ),
        may(
            "boundedLoad",
            Form::Whole(100, 10_000),
            "An endpoint has at most so many percent of its fair share in flight, what is more goes to the next; without \
             bound when nothing is written. 120 to 200 are usual.",
        ),
    ],
};

static MAGLEV: Shape = Shape {
    about: "The table of maglev.",
    fields: &[may(
        "tableSize",
        Form::Whole(2, Maglev::MAX_TABLE_SIZE as i64),
        "Its places, a prime number far above the number of endpoints; 65537 when nothing is written.",
    )],
};

static COOKIE: Text = Text {
    expected: "the name of a cookie: letters, digits and !#$%&'*+-.^_`|~",
    pattern: Some(r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$"),
    check: |t| t.len() <= 256 && http::HeaderName::from_bytes(t.as_bytes()).is_ok(),
};
static PARAMETER: Text = Text {
    expected: "the name of a query parameter as it is sent: up to 256 characters without spaces, &, =, # and ;",
    pattern: Some("^[!-~]{1,256}$"),
    check: |t| {
        (1..=256).contains(&t.len())
            && t.bytes().all(|c| c.is_ascii_graphic() && !matches!(c, b'&' | b'=' | b'#' | b';'))
    },
};

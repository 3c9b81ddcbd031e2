//! One connection too many: whoever speaks HTTP in plain text is told so, in an answer to the first request.
//!
//! That costs little and is over in a moment, so that it can be done while there is no room for more.

use std::net::SocketAddr;
use std::time::Duration;

use equerry_policies::policy::ErrorDetail;
use equerry_traffic::Refusal;
use http::Response;
use http::request::Parts;
use tokio::net::TcpStream;

use super::body::Answer;
use super::facts::{self, Record};
use super::reply::{self, Style};
use super::{connection, serve};
use crate::accept::detect::{self, Speaks};
use crate::app::Shared;
use crate::codec::http1::Bad;
use crate::codec::http1::serve::Respond;
use crate::codec::{Early, Incoming};
use crate::observe::Direction;

/// How long it may take in all.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers the first request of a connection with 503 `overload`, and closes it.
pub(crate) async fn turn_away(stream: TcpStream, shared: &Shared, direction: Direction, from: SocketAddr) {
    let telling = async {
        let (speaks, stream) = detect::detect(stream).await.ok()?;
        if matches!(speaks, Speaks::Tls | Speaks::Tcp) {
            return None;
        }
        let responder = NoRoom { shared: shared.clone(), direction, from };
        connection::serve(stream, speaks, tokio::time::sleep(PATIENCE / 2), responder).await
    };
    // Whoever does not listen is not waited for.
    let _ = tokio::time::timeout(PATIENCE, telling).await;
}

/// Answers that there is no room.
struct NoRoom {
    shared: Shared,
    direction: Direction,
    from: SocketAddr,
}

impl Respond for NoRoom {
    type Answer = Answer;

    async fn respond(&self, head: &mut Parts, _: Incoming, _: &Early) -> Response<Answer> {
        let record = Record::open(facts::describe(self.direction, head, self.from), &self.shared.observe);
        let style = Style::of(&head.method, &head.headers, head.version, ErrorDetail::Reason, true);
        reply::refuse(&Refusal::Overload, &style, record)
    }

    fn refuse(&self, bad: Bad) -> Response<Answer> {
        serve::unreadable(&self.shared, self.direction, self.from, &bad)
    }
}

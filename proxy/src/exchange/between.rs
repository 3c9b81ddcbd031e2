//! Which HTTP two sidecars speak for one exchange: HTTP/2 for many small messages, which leave together, and HTTP/1.1 for bulk,
//! which it moves with fewer copies and no windows.
//!
//! A large request says so beforehand; of answers, those before it tell. What goes wrong is only a matter of cost.

use std::sync::Arc;

use equerry_traffic::deadline::Kind;
use http_body::Body;

use super::tries::Answered;
use crate::codec::Incoming;
use crate::config::MeshProtocol;
use crate::live::{AnswerSizes, Backend};
use crate::upstream::Protocol;

/// A body from this size on is bulk. Over HTTP/1.1 a request costs a pair some 11 µs more, and 10 MiB some 2.9 ms less: the two
/// are level at 40 KiB.
const BULK: u64 = 128 << 10;

/// What is spoken with the sidecars of `backend`.
pub(super) fn protocol(settings: MeshProtocol, kind: Kind, body: &Incoming, backend: &Backend) -> Protocol {
    match (settings, kind) {
        // HTTP/2 knows no upgrade.
        (_, Kind::Upgrade) | (MeshProtocol::Http1, _) => Protocol::Http1,
        (MeshProtocol::Auto, Kind::Unary) => {
            let bulk = body.size_hint().exact().is_some_and(|length| length >= BULK) || backend.answers.are_large();
            if bulk && has_connections(backend) { Protocol::Http1 } else { Protocol::Http2 }
        }
        // Streams last, and each would hold a connection.
        (MeshProtocol::Auto, Kind::Grpc | Kind::EventStream) => Protocol::Http2,
    }
}

/// Over HTTP/1.1 each exchange takes a connection. Where a policy counts them, half of what it allows is left to others.
fn has_connections(backend: &Backend) -> bool {
    let most = backend.traffic.limits.connections;
    most.is_none_or(|most| backend.limits.present().connections < most / 2)
}

/// Notes how large an answer is, once that is known: at once, or when what is returned is dropped.
pub(super) fn note(answered: &Answered, kind: Kind, backend: &Backend) -> Option<Box<Counting>> {
    if kind.is_streaming() {
        return None;
    }
    if let Some(length) = answered.body().size_hint().exact() {
        backend.answers.note(length);
        return None;
    }
    Some(Box::new(Counting { answers: Arc::clone(&backend.answers), bytes: 0 }))
}

/// The size of an answer that did not say it.
#[derive(Debug)]
pub(super) struct Counting {
    answers: Arc<AnswerSizes>,
    /// So much of it has passed.
    pub(super) bytes: u64,
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.answers.note(self.bytes);
    }
}

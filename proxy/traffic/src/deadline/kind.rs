//! Whether an exchange has an end that a limit can be set to, or streams for as long as its two sides like.

use http::header::{CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, Method, StatusCode};

use crate::retry::is_grpc;

/// What kind of exchange it is, as far as limits on time are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// A gRPC call, of any of the four shapes: they look alike until they have ended.
    Grpc,
    /// Server-sent events.
    EventStream,
    /// A connection that changes its protocol, or a tunnel.
    Upgrade,
}

impl Kind {
    /// What the request announces.
    pub fn of_request(method: &Method, headers: &HeaderMap) -> Self {
        if *method == Method::CONNECT || headers.contains_key(UPGRADE) {
            Self::Upgrade
        } else if is_grpc(headers) {
            Self::Grpc
        } else {
            Self::Unary
        }
    }

    /// What it turns out to be by the head of its response.
    #[must_use]
    pub fn answered(self, status: StatusCode, headers: &HeaderMap) -> Self {
        match self {
            // An upgrade that was not taken is answered like any request.
            Self::Upgrade if status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() => Self::Upgrade,
            Self::Upgrade | Self::Unary | Self::EventStream if is_event_stream(headers) => Self::EventStream,
            Self::Upgrade => Self::Unary,
            other => other,
        }
    }

    /// Whether it lasts for as long as its two sides like.
    pub fn is_streaming(self) -> bool {
        self != Self::Unary
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let Some(kind) = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes().trim_ascii_start()) else { return false };
    let Some((kind, parameters)) = kind.split_at_checked(EVENT_STREAM.len()) else { return false };
    kind.eq_ignore_ascii_case(EVENT_STREAM) && matches!(parameters.trim_ascii_start(), [] | [b';', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn streams_are_known_by_their_request_or_by_their_response() {
        let (ok, none) = (StatusCode::OK, HeaderMap::new());
        assert_eq!(Kind::of_request(&Method::GET, &none), Kind::Unary);
        assert_eq!(Kind::of_request(&Method::POST, &with("content-type", "application/grpc")), Kind::Grpc);
        assert_eq!(Kind::of_request(&Method::POST, &with("content-type", "application/grpc-web")), Kind::Unary);
        assert_eq!(Kind::of_request(&Method::CONNECT, &none), Kind::Upgrade);
        let events = with("content-type", "Text/Event-Stream; charset=utf-8");
        assert_eq!(Kind::Unary.answered(ok, &events), Kind::EventStream);
        assert_eq!(Kind::Unary.answered(ok, &with("content-type", " text/event-stream ;x")), Kind::EventStream);
        for other in ["text/plain", "text/event-streams", "text/event-stream2;x"] {
            assert_eq!(Kind::Unary.answered(ok, &with("content-type", other)), Kind::Unary, "{other}");
        }
    }

    #[test]
    fn an_upgrade_that_was_refused_is_an_answer_like_any() {
        let asked = Kind::of_request(&Method::GET, &with("upgrade", "websocket"));
        assert_eq!(asked.answered(StatusCode::SWITCHING_PROTOCOLS, &HeaderMap::new()), Kind::Upgrade);
        assert_eq!(asked.answered(StatusCode::FORBIDDEN, &HeaderMap::new()), Kind::Unary);
    }
}

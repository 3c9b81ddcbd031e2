//! What an answer's status says about the endpoint that gave it: to its breaker, and to those who choose.
//!
//! An endpoint that answers quickly with less than was asked for must not win by its quickness, and yet it is not broken.

use http::StatusCode;

/// How a try ended, as far as its endpoint is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered.
    Success,
    /// It answered that it has had enough: for its breaker it is well, for those who choose it is as bad as a failure.
    Busy,
    /// It counts against the endpoint.
    Failure,
}

impl Verdict {
    /// Of an application's HTTP status.
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::TOO_MANY_REQUESTS => Self::Busy,
            _ if status.is_server_error() => Self::Failure,
            _ => Self::Success,
        }
    }

    /// Of an application's gRPC status: `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS` are failures,
    /// `RESOURCE_EXHAUSTED` is gRPC's 429. The others are about the request.
    pub fn of_grpc(status: u8) -> Self {
        match status {
            8 => Self::Busy,
            4 | 13..=15 => Self::Failure,
            _ => Self::Success,
        }
    }

    /// Whether choosing should shun it. Where a breaker `judges`, failures are left to that: it must see failures in a row to
    /// judge them, and an endpoint that it let back in must not be shunned.
    pub(super) fn is_shunned(self, judges: bool) -> bool {
        match self {
            Self::Success => false,
            Self::Busy => true,
            Self::Failure => !judges,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_429_and_its_like_are_busy_and_only_what_the_endpoint_did_wrong_is_a_failure() {
        let of = |status| Verdict::of_status(StatusCode::from_u16(status).unwrap());
        assert!([200, 204, 302, 401, 403, 404, 428].into_iter().all(|status| of(status) == Verdict::Success));
        assert!([500, 501, 502, 503, 504].into_iter().all(|status| of(status) == Verdict::Failure));
        assert_eq!(of(429), Verdict::Busy);
        let failures: Vec<u8> = (0..=20).filter(|status| Verdict::of_grpc(*status) == Verdict::Failure).collect();
        assert_eq!(failures, [4, 13, 14, 15]);
        let busy: Vec<u8> = (0..=20).filter(|status| Verdict::of_grpc(*status) == Verdict::Busy).collect();
        assert_eq!(busy, [8]);
    }
}

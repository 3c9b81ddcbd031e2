//! gRPC statuses among the conditions of a retry: what they are in HTTP, and when it is worth waiting for trailers.
//!
//! A unary call that fails sends no message: its status stands in the head, or in trailers that follow the head at once. So a
//! status can decide about a retry as long as no data came before it, and nobody has to hold a stream back.

use equerry_policies::policy::Retry;
use http::HeaderMap;

/// The HTTP code that stands for a gRPC status in `retry.codes`, as google.rpc.Code maps them. `None`: nothing that a retry
/// could mend, or no failure.
pub fn http_code(status: u8) -> Option<u16> {
    match status {
        1 => Some(499),
        2 | 13 | 15 => Some(500),
        4 => Some(504),
        8 => Some(429),
        10 => Some(409),
        14 => Some(503),
        _ => None,
    }
}

/// The gRPC status in a head or in trailers.
pub fn status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Whether the head of a gRPC response should be kept back until the first frame of its body: when trailers come then, they
/// hold the status, and [`super::Failure::Grpc`] can be judged. When data comes, or nothing for a while, both are passed on.
///
/// Not while the request is still being sent: then the caller may be waiting for the head before it goes on.
pub fn may_look_for_trailers(head: &HeaderMap, retry: Option<&Retry>, request_ended: bool) -> bool {
    let can_decide = |retry: &Retry| (0..=16).filter_map(http_code).any(|code| retry.codes.contains(&code));
    request_ended && retry.is_some_and(can_decide) && is_grpc(head) && status(head).is_none()
}

/// Whether the head of a response to a gRPC call promises a status that is still to come, in trailers. A call that ends
/// without one has failed, whatever was said before (gRPC over HTTP/2, "Responses").
pub fn owes_status(code: http::StatusCode, head: &HeaderMap) -> bool {
    code == http::StatusCode::OK && is_grpc(head) && status(head).is_none()
}

/// Whether a head is that of a gRPC call.
pub(crate) fn is_grpc(head: &HeaderMap) -> bool {
    let Some(kind) = head.get(http::header::CONTENT_TYPE) else { return false };
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn head(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_head_is_kept_back_only_where_its_trailers_could_lead_to_a_retry() {
        let retry = Retry { codes: vec![503], attempts: 1, backoff: Duration::ZERO };
        let grpc = head(&[("content-type", "application/grpc+proto")]);
        assert!(may_look_for_trailers(&grpc, Some(&retry), true));
        assert!(!may_look_for_trailers(&grpc, Some(&retry), false), "the caller may wait for the head");
        assert!(!may_look_for_trailers(&grpc, None, true));
        let at_once = head(&[("content-type", "application/grpc"), ("grpc-status", "14")]);
        assert!(!may_look_for_trailers(&at_once, Some(&retry), true));
        assert_eq!(status(&at_once), Some(14));
        for other in ["application/grpc-web", "application/json"] {
            assert!(!may_look_for_trailers(&head(&[("content-type", other)]), Some(&retry), true), "{other}");
        }
        let by_others = Retry { codes: vec![502], ..retry };
        assert!(!may_look_for_trailers(&grpc, Some(&by_others), true), "no gRPC status is 502");
    }

    #[test]
    fn a_status_is_owed_where_a_grpc_answer_has_none_in_its_head() {
        let ok = http::StatusCode::OK;
        assert!(owes_status(ok, &head(&[("content-type", "application/grpc")])));
        assert!(!owes_status(ok, &head(&[("content-type", "application/grpc"), ("grpc-status", "0")])));
        // What no gRPC server said is known by its code, or its kind.
        assert!(!owes_status(ok, &head(&[("content-type", "text/html")])));
        assert!(!owes_status(http::StatusCode::BAD_GATEWAY, &head(&[("content-type", "application/grpc")])));
    }
}

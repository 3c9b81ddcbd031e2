//! What a callee's sidecar says to its caller's when it cuts a response that has begun: the reason, as the code of an HTTP/2
//! RST_STREAM.
//!
//! Codes that RFC 9113 does not know mean nothing to others (section 7), so nobody is misled; a sidecar of a version that has other
//! reasons takes one that it does not know for any reset. Over HTTP/1.1 there is no place for a word after the head: there it is a
//! connection that broke.

use equerry_traffic::Reason;

/// The first four bits of all codes of ours: far from those that are registered.
const OURS: u32 = 0xe << 28;

/// The code of a reason: FNV-1a of its word, which outlasts the order in which reasons are listed.
pub(super) fn of(reason: Reason) -> u32 {
    let fold = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    OURS | reason.as_str().bytes().fold(0x811c_9dc5, fold) >> 4
}

/// The reason that a code stands for.
pub(super) fn reason(code: u32) -> Option<Reason> {
    Reason::ALL.iter().find(|reason| of(**reason) == code).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_code_of_its_own_and_no_other_code_means_one() {
        for known in Reason::ALL {
            assert_eq!(reason(of(*known)), Some(*known));
        }
        for other in (0..64).chain([OURS, u32::MAX]) {
            assert_eq!(reason(other), None, "{other:#x}");
        }
        // On the wire: it may not change.
        assert_eq!(of(Reason::AuthzDenied), 0xe7ec_d47a);
    }
}

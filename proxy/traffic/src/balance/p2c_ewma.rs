//! The better of two endpoints drawn at random, by peak-EWMA cost: near the best choice, without herding to it.

use std::time::Instant;

use super::{EndpointState, Pick};
use crate::breaker::Admission;

/// How often two endpoints are drawn before all are looked at: enough while most may be tried.
const DRAWS: usize = 4;

/// Power of two choices over [`EndpointState::cost`].
#[derive(Debug, Clone, Copy, Default)]
pub struct P2cEwma;

impl Pick for P2cEwma {
    fn pick<E: AsRef<EndpointState>>(
        &self,
        endpoints: &[E],
        may: impl Fn(usize) -> Option<Admission>,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let count = endpoints.len();
        if count < 2 {
            return (0..count).find(|&index| may(index).is_some());
        }
        for _ in 0..DRAWS {
            let a = rng.usize(..count);
            // Drawn from the others, so that the two are never the same.
            let b = (a + 1 + rng.usize(..count - 1)) % count;
            match (may(a), may(b)) {
                // A breaker whose penalty is over gets its one probe when it is met: by cost alone it would never be.
                (Some(Admission::Probe), _) => return Some(a),
                (_, Some(Admission::Probe)) => return Some(b),
                (Some(_), Some(_)) => {
                    return Some(if endpoints[a].as_ref().cost(now) <= endpoints[b].as_ref().cost(now) {
                        a
                    } else {
                        b
                    });
                }
                (Some(_), None) if count == 2 => return Some(a),
                (None, Some(_)) if count == 2 => return Some(b),
                _ => {}
            }
        }
        let start = rng.usize(..count);
        (0..count).map(|step| (start + step) % count).find(|&index| may(index).is_some())
    }
}

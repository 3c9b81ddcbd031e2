//! The better of two endpoints drawn at random: near the best choice, without everybody herding to it.
//!
//! Where weights differ, both are drawn by weight and may be the same one: then shares are those of the weights while all
//! are alike, and load is compared in proportion to them.

use super::EndpointState;
use super::balancer::Field;
use super::draw::scaled;
use crate::breaker::Admission;

/// How often two endpoints are drawn before all are looked at: enough while most may be tried.
const DRAWS: usize = 4;

/// By what two endpoints are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Peak-EWMA latency times tries in flight.
    Cost,
    /// Tries in flight.
    Load,
}

/// The better of two of `field`.
pub(super) fn pick<E: AsRef<EndpointState>>(
    field: &Field<'_, E>,
    by: By,
    may: impl Fn(usize) -> Option<Admission>,
    rng: &mut fastrand::Rng,
) -> Option<usize> {
    let count = field.len();
    if count < 2 {
        return (0..count).find(|&index| may(index).is_some());
    }
    for _ in 0..DRAWS {
        let (a, b) = two(field, rng);
        match (may(a), may(b)) {
            // A breaker whose penalty is over gets its one probe when it is met: by cost alone it would never be.
            (Some(Admission::Probe), _) => return Some(a),
            (_, Some(Admission::Probe)) => return Some(b),
            (Some(_), Some(_)) => return Some(better(field, by, a, b)),
            (Some(_), None) if count == 2 => return Some(a),
            (None, Some(_)) if count == 2 => return Some(b),
            _ => {}
        }
    }
    // Most may not be tried: the better of the first two found from two places.
    let first = |start: usize| (start..count).chain(0..start).find(|&index| may(index).is_some());
    let a = first(rng.usize(..count))?;
    let b = first(rng.usize(..count))?;
    Some(better(field, by, a, b))
}

fn two<E: AsRef<EndpointState>>(field: &Field<'_, E>, rng: &mut fastrand::Rng) -> (usize, usize) {
    if field.is_even() {
        // Two that are never the same, of one random number.
        let (random, count) = (rng.u64(..), field.len() as u32);
        let (a, b) = (scaled(random, count), scaled(random << 32, count - 1));
        (a, if b < a { b } else { b + 1 })
    } else {
        (field.draw(rng), field.draw(rng))
    }
}

fn better<E: AsRef<EndpointState>>(field: &Field<'_, E>, by: By, a: usize, b: usize) -> usize {
    let cost = |index: usize| match by {
        By::Cost => field.state(index).cost(field.weight(index), field.moment),
        By::Load => field.state(index).in_flight() as f32 / field.weight(index),
    };
    // Of two alike the first, which was drawn by weight.
    if a == b || cost(a) <= cost(b) { a } else { b }
}

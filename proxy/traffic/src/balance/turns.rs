//! Round robin: a fixed order in which each member stands as often as it weighs, as evenly spread as it can be (what nginx's
//! smooth weighted round robin gives, made once instead of at every pick), and a count that walks along it without a lock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Longest order kept: beyond it weights are rounded.
const LONGEST: u64 = 1 << 18;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turns {
    next: AtomicU64,
    /// `None`: every member once, in the order of the list.
    order: Option<Box<[u32]>>,
    members: u64,
}

impl Turns {
    /// For members of these weights, each above 0; begins at turn `first`.
    pub(super) fn new(weights: &[u32], first: u64) -> Self {
        let even = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let order = (!even).then(|| spread(weights));
        Self { next: AtomicU64::new(first), order, members: weights.len() as u64 }
    }

    /// The turn that would be given now.
    pub(super) fn at(&self) -> u64 {
        self.next.load(Relaxed)
    }

    /// Takes the next turn: whose it is. There must be a member.
    pub(super) fn take(&self) -> usize {
        let turn = self.next.fetch_add(1, Relaxed);
        match &self.order {
            None => (turn % self.members) as usize,
            Some(order) => order[(turn % order.len() as u64) as usize] as usize,
        }
    }
}

/// The k-th turn of a member of weight w is due at (k + 1/2) / w of a round; turns are given as they fall due.
fn spread(weights: &[u32]) -> Box<[u32]> {
    let weights = rounded(weights);
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    // Dues as fractions (2k + 1) / 2w, compared without rounding.
    let due = |index: usize, turn: u64| Due { above: 2 * turn + 1, below: u64::from(weights[index]), index };
    let mut queue: BinaryHeap<Reverse<Due>> = (0..weights.len()).map(|index| Reverse(due(index, 0))).collect();
    let mut order = Vec::with_capacity(total as usize);
    while let Some(Reverse(Due { above, index, .. })) = queue.pop() {
        order.push(index as u32);
        let turn = above.div_ceil(2);
        if turn < u64::from(weights[index]) {
            queue.push(Reverse(due(index, turn)));
        }
    }
    order.into_boxed_slice()
}

/// The same proportions in the smallest numbers; where the order would grow too long, as near as it gets.
fn rounded(weights: &[u32]) -> Vec<u32> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let total: u64 = weights.iter().map(|weight| u64::from(weight / divisor)).sum();
    let scaled = |weight: u32| (u64::from(weight / divisor) * LONGEST / total).max(1) as u32;
    weights.iter().map(|weight| if total <= LONGEST { weight / divisor } else { scaled(*weight) }).collect()
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[derive(Debug, PartialEq, Eq)]
struct Due {
    above: u64,
    below: u64,
    index: usize,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.above * other.below).cmp(&(other.above * self.below)).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(weights: &[u32]) -> Vec<u32> {
        spread(weights).into_vec()
    }

    #[test]
    fn a_heavy_member_never_gets_all_its_turns_at_once() {
        assert_eq!(order(&[5, 1, 1]), [0, 0, 0, 1, 2, 0, 0]);
        assert_eq!(order(&[3, 2]), [0, 1, 0, 1, 0]);
        assert_eq!(order(&[20, 10]), [0, 1, 0], "proportions count, not numbers");
    }

    #[test]
    fn all_alike_take_turns_in_the_order_of_the_list() {
        let turns = Turns::new(&[4, 4, 4], 1);
        assert_eq!((0..5).map(|_| turns.take()).collect::<Vec<_>>(), [1, 2, 0, 1, 2]);
    }

    #[test]
    fn ten_thousand_members_of_odd_weights_make_an_order_of_bounded_length() {
        let weights: Vec<u32> = (0..10_000).map(|n| n % 997 + 1).collect();
        let order = order(&weights);
        assert!(order.len() <= LONGEST as usize + weights.len(), "{}", order.len());
        let mut given = vec![0_u32; weights.len()];
        order.iter().for_each(|index| given[*index as usize] += 1);
        assert!(given.iter().all(|turns| *turns > 0), "nobody is left out");
    }

    proptest! {
        #[test]
        fn at_every_moment_of_a_round_each_has_had_its_share_within_less_than_two_turns(
            weights in prop::collection::vec(1_u32..40, 2..20),
        ) {
            let (order, weights) = (order(&weights), rounded(&weights));
            let total: u32 = weights.iter().sum();
            prop_assert_eq!(order.len(), total as usize);
            let mut had = vec![0_u32; weights.len()];
            for (turn, index) in order.iter().enumerate() {
                had[*index as usize] += 1;
                for (had, weight) in had.iter().zip(&weights) {
                    let due = f64::from(*weight) * (turn + 1) as f64 / f64::from(total);
                    prop_assert!((f64::from(*had) - due).abs() < 2.0, "{:?} at turn {turn}", weights);
                }
            }
            prop_assert_eq!(had, weights);
        }
    }
}

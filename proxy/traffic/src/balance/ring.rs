//! The hash ring: every member has points on it by weight, and a request goes to the member of the first point at or after
//! its hash. When a member comes or goes, only what lies before its points moves.
//!
//! How many points a member has does not depend on how many members there are, or the points of all would move with each.
//! Where a `minimumSize` is written it does, as in Envoy: as many for the lightest member as make the whole that large.

use equerry_policies::policy::RingHash;

use super::Member;
use super::hash::mix;

/// Points for each unit of weight where no minimum is written (nginx's ketama): shares are then within some 8% of what they
/// should be.
const POINTS_EACH: u64 = 160;
/// Where that would make a larger ring, points are halved, and halved again.
const LARGE: u64 = 1 << 20;
/// So many points share an arc, more or less: two lines of the processor's cache, while the arcs themselves stay in its nearest.
const AN_ARC: usize = 16;

/// The ring.
#[derive(Debug)]
pub(super) struct Ring {
    /// By position.
    points: Box<[Point]>,
    /// The first point of each of 2^k equal arcs, so that a look-up begins near where it ends.
    arcs: Box<[u32]>,
    /// 32 - k.
    shift: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    at: u32,
    member: u32,
}

impl Ring {
    pub(super) fn new(members: &[Member], settings: &RingHash) -> Self {
        // Two at one position: the same comes first in every process, whatever the order of the list.
        let mut by_id: Vec<u32> = (0..members.len() as u32).collect();
        by_id.sort_unstable_by_key(|index| members[*index as usize].id);
        let counts = counts(members, settings);
        let mut points: Vec<Point> = Vec::with_capacity(counts.iter().sum::<u64>() as usize);
        for (rank, index) in by_id.iter().enumerate() {
            let id = members[*index as usize].id;
            let point = |number| Point { at: (mix(id, number) >> 32) as u32, member: rank as u32 };
            points.extend((0..counts[*index as usize]).map(point));
        }
        points.sort_unstable();
        points.dedup_by_key(|point| point.at);
        points.iter_mut().for_each(|point| point.member = by_id[point.member as usize]);
        let bits = (points.len() / AN_ARC).max(2).ilog2();
        let shift = 32 - bits;
        let first = |arc: u64| points.partition_point(|point| u64::from(point.at) < arc << shift) as u32;
        let arcs = (0..1_u64 << bits).map(first).collect();
        Self { points: points.into_boxed_slice(), arcs, shift }
    }

    /// The members from a hash on, clockwise, once around; one that has several points comes several times.
    pub(super) fn from(&self, hash: u64) -> impl Iterator<Item = usize> {
        let at = (hash >> 32) as u32;
        let mut start = self.arcs.get((at >> self.shift) as usize).map_or(0, |first| *first as usize);
        while self.points.get(start).is_some_and(|point| point.at < at) {
            start += 1;
        }
        let (before, after) = self.points.split_at(start.min(self.points.len()));
        after.iter().chain(before).map(|point| point.member as usize)
    }
}

/// How many points each member has.
fn counts(members: &[Member], settings: &RingHash) -> Vec<u64> {
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let lightest = members.iter().map(|member| u64::from(member.weight)).min().unwrap_or(1);
    let size = match settings.minimum_size.map(u64::from) {
        None => std::iter::successors(Some(POINTS_EACH * total), |size| Some(size / 2)).find(|size| *size <= LARGE),
        // Points of the lightest, rounded up, so that proportions hold exactly; the ring is at least as large as asked.
        Some(minimum) => Some(((minimum * lightest).div_ceil(total.max(1)).max(1) * total).div_ceil(lightest)),
    };
    let size = size.unwrap_or(LARGE).min(u64::from(settings.maximum_size));
    // A running sum, so that what rounding takes from one member it gives to the next.
    let mut so_far = 0;
    let mut count = |member: &Member| {
        let before = size * so_far / total;
        so_far += u64::from(member.weight);
        size * so_far / total - before
    };
    members.iter().map(&mut count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use equerry_policies::policy::HashOn;

    fn members(weights: &[u32]) -> Vec<Member> {
        weights.iter().enumerate().map(|(n, weight)| Member::new(&format!("i{n}"), *weight)).collect()
    }

    #[test]
    fn it_is_as_large_as_asked_and_in_proportion_to_the_weights() {
        let of = |weights: &[u32], minimum_size, maximum_size| {
            let settings = RingHash { minimum_size, maximum_size, ..RingHash::on(HashOn::Identity) };
            counts(&members(weights), &settings)
        };
        assert_eq!(of(&[1, 3], None, 1 << 20), [160, 480]);
        assert_eq!(of(&[1; 10_000], None, 1 << 20), [80; 10_000], "halved");
        assert_eq!(of(&[1, 3], Some(100), 1 << 20), [25, 75]);
        assert_eq!(of(&[1, 2], Some(100), 1 << 20), [34, 68], "the lightest rounded up");
        assert_eq!(of(&[1; 4], Some(10), 2).iter().sum::<u64>(), 2, "a ring too small for all");
    }

    #[test]
    fn a_walk_begins_at_the_first_point_at_or_after_the_hash_and_goes_once_around() {
        let settings = RingHash { minimum_size: Some(300), ..RingHash::on(HashOn::Identity) };
        let ring = Ring::new(&members(&[1, 2, 3]), &settings);
        let plain: Vec<Point> = ring.points.to_vec();
        let mut rng = fastrand::Rng::with_seed(3);
        let edges = plain.iter().flat_map(|point| {
            [point.at, point.at.wrapping_add(1), point.at.wrapping_sub(1)].map(|at| u64::from(at) << 32)
        });
        let anywhere: Vec<u64> = (0..10_000).map(|_| rng.u64(..)).chain([0, u64::MAX]).collect();
        for hash in edges.chain(anywhere) {
            let at = (hash >> 32) as u32;
            let first = plain.iter().find(|point| point.at >= at).unwrap_or(&plain[0]);
            assert_eq!(ring.from(hash).next(), Some(first.member as usize), "{at}");
            assert_eq!(ring.from(hash).count(), plain.len());
        }
    }

    #[test]
    fn a_ring_without_points_leads_nowhere() {
        assert_eq!(Ring::new(&[], &RingHash::on(HashOn::Identity)).from(7).next(), None);
    }
}

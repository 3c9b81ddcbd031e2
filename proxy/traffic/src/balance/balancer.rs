//! A list of endpoints made ready to be chosen from: tables, orders and rings are made here, once for each change of the list
//! or its settings, and never on the way of a request.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use equerry_policies::policy::{Algorithm, LoadBalancer};
use http::request::Parts;

use super::draw::Draw;
use super::hash::{Hash, Source, hash_key, hash_of, mix};
use super::maglev::Table;
use super::ramp::Ramps;
use super::ring::Ring;
use super::turns::Turns;
use super::{EndpointState, Moment, two};
use crate::breaker::Admission;

/// How often another endpoint is drawn, or another turn taken, before all are looked at.
const DRAWS: usize = 8;
/// How far a walk around the ring goes before all members are looked at, in points for each member.
const WALK: usize = 8;

/// One endpoint of the list that a [`Balancer`] is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub(super) id: u64,
    pub(super) weight: u32,
}

impl Member {
    /// `instance` names it and stays the same for as long as it lives, for every sidecar; `weight` is its share, 1 being
    /// usual and 0 counting as 1.
    pub fn new(instance: &str, weight: u32) -> Self {
        Self { id: hash_of(instance.as_bytes()), weight: weight.max(1) }
    }
}

/// How one of a list of endpoints is chosen.
#[derive(Debug)]
pub struct Balancer {
    settings: LoadBalancer,
    members: Vec<Member>,
    /// Weights relative to their mean; `None`: all weigh the same.
    relative: Option<Box<[f32]>>,
    ramps: Option<Ramps>,
    hash: Option<Hash>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    P2cEwma(Draw),
    LeastRequest(Draw),
    Random(Draw),
    RoundRobin(Draw, Turns),
    RingHash(Ring, Option<Bound>),
    Maglev(Table),
}

/// Bounded load: no endpoint has more in flight than so many percent of its fair share.
#[derive(Debug)]
struct Bound {
    /// The factor, in percent.
    percent: u32,
    total_weight: u64,
    /// What is in flight at all endpoints; outlives the list.
    in_flight: Arc<AtomicU32>,
}

impl Balancer {
    /// The balancer of a list. `before` is the one it replaces, whose turns, newcomers and counts go on; where neither list
    /// nor settings have changed it is that one, so this may be called whenever anything changes. `rng` says where a new
    /// round begins, so that many sidecars do not begin with the same endpoint.
    ///
    /// Each of `members` stands for the endpoint at its place in the list that is given to [`super::choose`].
    pub fn new(
        settings: &LoadBalancer,
        members: Vec<Member>,
        before: Option<&Arc<Self>>,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Arc<Self> {
        if let Some(before) = before.filter(|before| before.settings == *settings && before.members == members) {
            return Arc::clone(before);
        }
        let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
        let (way, hash) = match &settings.algorithm {
            Algorithm::P2cEwma => (Way::P2cEwma(Draw::new(&weights)), None),
            Algorithm::LeastRequest => (Way::LeastRequest(Draw::new(&weights)), None),
            Algorithm::Random => (Way::Random(Draw::new(&weights)), None),
            Algorithm::RoundRobin => {
                let first = match before.map(|before| &before.way) {
                    Some(Way::RoundRobin(_, turns)) => turns.at(),
                    _ => u64::from(rng.u32(..)),
                };
                (Way::RoundRobin(Draw::new(&weights), Turns::new(&weights, first)), None)
            }
            Algorithm::RingHash(ring) => {
                let in_flight = before.and_then(|before| before.load().cloned()).unwrap_or_default();
                let total_weight = weights.iter().copied().map(u64::from).sum();
                let bound = |percent| Bound { percent, total_weight, in_flight };
                (Way::RingHash(Ring::new(&members, ring), ring.bounded_load.map(bound)), Hash::new(&ring.hash))
            }
            Algorithm::Maglev(maglev) => {
                (Way::Maglev(Table::new(&members, maglev.table_size)), Hash::new(&maglev.hash))
            }
        };
        let ramps = settings.slow_start.map(|slow_start| {
            Ramps::new(slow_start, &members, before.map(|before| (&*before.members, before.ramps.as_ref())), now)
        });
        Arc::new(Self { settings: settings.clone(), relative: relative(&weights), members, ramps, hash, way })
    }

    /// The hash of a request in its normal form, for [`super::Wanted`]; `None` where nothing is hashed, or the request does
    /// not have what is hashed.
    pub fn key(&self, request: &Parts, source: &Source<'_>) -> Option<u64> {
        hash_key(self.hash.as_ref()?, request, source)
    }

    /// Where tries in flight are counted together; `None`: nobody needs it.
    pub(super) fn load(&self) -> Option<&Arc<AtomicU32>> {
        match &self.way {
            Way::RingHash(_, Some(bound)) => Some(&bound.in_flight),
            _ => None,
        }
    }

    /// Whether an answer counts as in flight until all of it has passed, and not only until it begins: where choices go by how
    /// much is in flight. By latency, what has begun is no longer waited for.
    pub(super) fn counts_whole_answers(&self) -> bool {
        matches!(self.way, Way::LeastRequest(_) | Way::RingHash(_, Some(_)))
    }

    /// The place of the endpoint to try: one that `may` be tried, or `None` when there is none. Without a `hash`, those that
    /// go by one choose at random.
    pub(super) fn pick<E: AsRef<EndpointState>>(
        &self,
        endpoints: &[E],
        hash: Option<u64>,
        may: impl Fn(usize) -> Option<Admission>,
        (now, moment): (Instant, Moment),
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        if self.members.is_empty() {
            return None;
        }
        let may_be = |index: &usize| may(*index).is_some();
        match &self.way {
            Way::P2cEwma(draw) => two::pick(&self.field(endpoints, draw, (now, moment)), two::By::Cost, may, rng),
            Way::LeastRequest(draw) => two::pick(&self.field(endpoints, draw, (now, moment)), two::By::Load, may, rng),
            Way::Random(draw) => {
                let field = self.field(endpoints, draw, (now, moment));
                (0..DRAWS).map(|_| field.draw(rng)).find(may_be).or_else(|| self.any(rng.usize(..), may_be))
            }
            Way::RoundRobin(draw, turns) => {
                let field = self.field(endpoints, draw, (now, moment));
                // A newcomer lets some of its turns pass.
                let takes = |index: &usize| may_be(index) && field.is_ready(*index, rng);
                (0..DRAWS).map(|_| turns.take()).find(takes).or_else(|| self.any(turns.take(), may_be))
            }
            Way::RingHash(ring, bound) => {
                let hash = hash.unwrap_or_else(|| rng.u64(..));
                let walk = || ring.from(hash).take(WALK * self.members.len());
                let has_room = |index: &usize| {
                    let Some(bound) = bound else { return true };
                    // Where nothing is in flight there is always room, and nothing else need be read.
                    let in_flight = endpoints[*index].as_ref().in_flight();
                    in_flight == 0 || bound.has_room_beside(in_flight, self.members[*index])
                };
                // When all that may be tried have their share in flight, the bound gives way.
                let first = walk().find(|index| may_be(index) && has_room(index));
                first
                    .or_else(|| self.any(hash as usize, |index| may_be(index) && has_room(index)))
                    .or_else(|| walk().find(may_be))
                    .or_else(|| self.any(hash as usize, may_be))
            }
            Way::Maglev(table) => {
                let hash = hash.unwrap_or_else(|| rng.u64(..));
                // Requests of an endpoint that may not be tried are spread over the others, the same always to the same.
                let places = std::iter::once(hash).chain((1..DRAWS as u64).map(|attempt| mix(hash, attempt)));
                places.filter_map(|hash| table.at(hash)).find(may_be).or_else(|| self.any(hash as usize, may_be))
            }
        }
    }

    fn field<'a, E>(&'a self, endpoints: &'a [E], draw: &'a Draw, (now, moment): (Instant, Moment)) -> Field<'a, E> {
        let ramps = self.ramps.as_ref().filter(|ramps| ramps.is_on(now));
        Field { endpoints, draw, relative: self.relative.as_deref(), ramps, now, moment }
    }

    /// The first member from place `start` on that will do.
    fn any(&self, start: usize, will_do: impl Fn(&usize) -> bool) -> Option<usize> {
        let count = self.members.len();
        let start = start % count;
        (start..count).chain(0..start).find(will_do)
    }
}

impl Bound {
    /// Whether a member that has so much in flight may have one more, the try counted that is being placed: what it has is
    /// less than its share, rounded up.
    fn has_room_beside(&self, in_flight: u32, member: Member) -> bool {
        let all = u128::from(self.in_flight.load(Relaxed)) + 1;
        let share = u128::from(self.percent) * all * u128::from(member.weight);
        u128::from(in_flight) * 100 * u128::from(self.total_weight) < share
    }
}

fn relative(weights: &[u32]) -> Option<Box<[f32]>> {
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return None;
    }
    let mean = weights.iter().copied().map(f64::from).sum::<f64>() / weights.len() as f64;
    Some(weights.iter().map(|weight| (f64::from(*weight) / mean) as f32).collect())
}

/// What is drawn from.
pub(super) struct Field<'a, E> {
    endpoints: &'a [E],
    draw: &'a Draw,
    relative: Option<&'a [f32]>,
    /// Newcomers, while there are some.
    ramps: Option<&'a Ramps>,
    now: Instant,
    /// The same.
    pub(super) moment: Moment,
}

impl<E: AsRef<EndpointState>> Field<'_, E> {
    pub(super) fn len(&self) -> usize {
        match self.draw {
            Draw::Even(count) => *count as usize,
            Draw::ByWeight(columns) => columns.len(),
        }
    }

    /// All weigh the same, now.
    pub(super) fn is_even(&self) -> bool {
        self.relative.is_none() && self.ramps.is_none()
    }

    pub(super) fn state(&self, index: usize) -> &EndpointState {
        self.endpoints[index].as_ref()
    }

    /// What it weighs now; 1.0 is usual.
    pub(super) fn weight(&self, index: usize) -> f32 {
        self.relative.map_or(1.0, |relative| relative[index])
            * self.ramps.map_or(1.0, |ramps| ramps.factor(index, self.now))
    }

    /// One of them, by weight.
    pub(super) fn draw(&self, rng: &mut fastrand::Rng) -> usize {
        // Each newcomer that is drawn is refused as often as it lacks weight; where all are newcomers somebody must be taken.
        for _ in 0..DRAWS {
            let index = self.draw.one(rng);
            if self.is_ready(index, rng) {
                return index;
            }
        }
        self.draw.one(rng)
    }

    fn is_ready(&self, index: usize, rng: &mut fastrand::Rng) -> bool {
        let Some(ramps) = self.ramps else { return true };
        let factor = ramps.factor(index, self.now);
        factor >= 1.0 || rng.f32() < factor
    }
}

#[cfg(test)]
#[path = "balancer_tests.rs"]
mod tests;

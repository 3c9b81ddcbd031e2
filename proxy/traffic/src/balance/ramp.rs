//! Slow start: an endpoint that joins a list weighs a tenth at first and its whole weight after a window, so that caches,
//! pools and compilers warm up before the crowd comes (Envoy's `slow_start_config`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use equerry_policies::policy::SlowStart;

use super::Member;

/// What a newcomer weighs at least, of its weight (Envoy's `min_weight_percent`).
const LEAST: f32 = 0.1;

/// The newcomers of one list.
#[derive(Debug)]
pub(super) struct Ramps {
    settings: SlowStart,
    /// When each member joined; `None`: long ago.
    joined: Vec<Option<Instant>>,
    /// When the last of them has its whole weight; `None`: there are no newcomers.
    over: Option<Instant>,
}

impl Ramps {
    /// Who of `members` is new since `before`, a list and its ramps. Those of the very first list are not: they are new to
    /// this process, not to the world, and where all are new nobody is.
    pub(super) fn new(
        settings: SlowStart,
        members: &[Member],
        before: Option<(&[Member], Option<&Self>)>,
        now: Instant,
    ) -> Self {
        let joined = match before {
            None | Some(([], _)) => vec![None; members.len()],
            Some((known, ramps)) => {
                let at: HashMap<u64, usize> = known.iter().enumerate().map(|(at, member)| (member.id, at)).collect();
                let joined = |member: &Member| match at.get(&member.id) {
                    None => Some(now),
                    Some(index) => ramps.and_then(|ramps| ramps.joined.get(*index).copied().flatten()),
                };
                members.iter().map(joined).collect()
            }
        };
        let over = joined.iter().flatten().max().map(|last| *last + settings.window);
        Self { settings, joined, over }
    }

    /// Whether anybody is still warming up.
    pub(super) fn is_on(&self, now: Instant) -> bool {
        self.over.is_some_and(|over| now < over)
    }

    /// What a member weighs now, of its weight.
    pub(super) fn factor(&self, index: usize, now: Instant) -> f32 {
        let Some(joined) = self.joined.get(index).copied().flatten() else { return 1.0 };
        let age = now.saturating_duration_since(joined);
        if age >= self.settings.window {
            return 1.0;
        }
        let ratio = ratio(age, self.settings.window);
        let grown = if self.settings.aggression == SlowStart::AGGRESSION {
            ratio
        } else {
            ratio.powf(100.0 / self.settings.aggression.max(1) as f32)
        };
        grown.max(LEAST)
    }
}

fn ratio(age: Duration, window: Duration) -> f32 {
    age.as_secs_f32() / window.as_secs_f32()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn members(ids: &[&str]) -> Vec<Member> {
        ids.iter().map(|id| Member::new(id, 1)).collect()
    }

    fn settings(aggression: u32) -> SlowStart {
        SlowStart { window: 10 * SECOND, aggression }
    }

    #[test]
    fn a_newcomer_grows_from_a_tenth_to_the_whole_and_keeps_its_age_when_the_list_changes_again() {
        let now = Instant::now();
        let (first, second, third) = (members(&["a"]), members(&["a", "b"]), members(&["b", "c"]));
        let one = Ramps::new(settings(100), &first, None, now);
        assert!(!one.is_on(now), "nobody of the first list is new");
        let two = Ramps::new(settings(100), &second, Some((&first, Some(&one))), now);
        let at = |ramps: &Ramps, index, after| ramps.factor(index, now + after);
        assert_eq!((at(&two, 0, Duration::ZERO), at(&two, 1, Duration::ZERO)), (1.0, 0.1));
        assert_eq!((at(&two, 1, 5 * SECOND), at(&two, 1, 10 * SECOND)), (0.5, 1.0));
        let three = Ramps::new(settings(100), &third, Some((&second, Some(&two))), now + 5 * SECOND);
        assert_eq!((at(&three, 0, 5 * SECOND), at(&three, 1, 5 * SECOND)), (0.5, 0.1));
        assert!(three.is_on(now + 14 * SECOND) && !three.is_on(now + 15 * SECOND));
    }

    #[test]
    fn more_aggression_grows_faster_at_first() {
        let now = Instant::now();
        let (known, all) = (members(&["a"]), members(&["a", "b"]));
        let factor = |aggression| {
            Ramps::new(settings(aggression), &all, Some((&known, None)), now)
                .factor(1, now + Duration::from_millis(2500))
        };
        assert_eq!((factor(100), factor(200)), (0.25, 0.5));
        assert!(factor(50) < 0.11, "and less slower");
    }
}

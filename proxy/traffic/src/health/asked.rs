//! What asking an endpoint has shown: how many answers in a row change the verdict, how long to wait before the next
//! question, and when so many are unwell that asking itself is not believed.

use std::time::{Duration, Instant};

use equerry_policies::policy::HealthCheck;

/// What is remembered of one endpoint that is asked. Before the first answer nothing is said against it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    verdict: Option<Turn>,
    /// Answers in a row that say otherwise than the verdict.
    otherwise: u32,
    since: Option<Instant>,
    /// Why the last question failed.
    detail: String,
    /// So many endpoints are unwell that all are used.
    panic: bool,
}

/// The verdict on an endpoint that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It answers as it should.
    Well,
    /// It does not.
    Unwell,
}

impl Asked {
    /// Takes in an answer, good or why not. Returns the verdict when it changed: the first answer decides alone, later ones
    /// by the thresholds of `settings`.
    pub fn answered(&mut self, answer: Result<(), String>, settings: &HealthCheck, now: Instant) -> Option<Turn> {
        let says = if answer.is_ok() { Turn::Well } else { Turn::Unwell };
        if let Err(why) = answer {
            self.detail = why;
        }
        if self.verdict == Some(says) {
            self.otherwise = 0;
            return None;
        }
        self.otherwise = self.otherwise.saturating_add(1);
        let needed = match (self.verdict, says) {
            (None, _) => 1,
            (Some(_), Turn::Well) => settings.healthy_threshold,
            (Some(_), Turn::Unwell) => settings.unhealthy_threshold,
        };
        if self.otherwise < needed {
            return None;
        }
        (self.verdict, self.otherwise, self.since) = (Some(says), 0, Some(now));
        Some(says)
    }

    /// Whether all are used, well or not; see [`panics`].
    pub fn set_panic(&mut self, panic: bool) {
        self.panic = panic;
    }

    /// Whether its answers say that it is not well.
    pub fn is_unwell(&self) -> bool {
        self.verdict == Some(Turn::Unwell)
    }

    /// Whether it gets no requests for that.
    pub fn keeps_away(&self) -> bool {
        self.is_unwell() && !self.panic
    }

    /// The verdict, and since when; `None` before the first answer.
    pub fn verdict(&self) -> Option<(Turn, Option<Instant>)> {
        self.verdict.map(|verdict| (verdict, self.since))
    }

    /// Why the last question failed.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

/// How long to wait before the next question. `random` is in 0..1.
pub fn rest(settings: &HealthCheck, random: f64) -> Duration {
    let share = f64::from(settings.jitter_percent) / 100.0 * random.clamp(0.0, 1.0);
    settings.interval + settings.interval.mul_f64(share)
}

/// Whether so few of the endpoints are well that it is rather the questions that are wrong (Envoy's panic threshold): then
/// all are used.
pub fn panics(unwell: usize, total: usize, percent: u32) -> bool {
    let well = total.saturating_sub(unwell);
    unwell > 0 && well * 100 < total.saturating_mul(percent as usize)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use equerry_policies::policy::Ask;
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings(healthy: u32, unhealthy: u32) -> HealthCheck {
        HealthCheck { healthy_threshold: healthy, unhealthy_threshold: unhealthy, ..HealthCheck::asking(Ask::Tcp {}) }
    }

    /// `+` and `-` are answers; what comes back says after each whether requests are kept away, `x` or `o`.
    fn told(settings: &HealthCheck, answers: &str) -> String {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let one = |answer: char| {
            asked.answered(if answer == '+' { Ok(()) } else { Err("503".to_owned()) }, settings, now);
            if asked.keeps_away() { 'x' } else { 'o' }
        };
        answers.chars().map(one).collect()
    }

    #[test]
    fn the_first_answer_decides_alone_and_later_ones_by_threshold() {
        assert_eq!(told(&settings(2, 3), "+--+---+-++--"), "ooooooxxxxooo");
        assert_eq!(told(&settings(1, 1), "+-+-"), "oxox");
        assert_eq!(told(&settings(2, 3), "-+-++"), "xxxxo");
    }

    #[test]
    fn an_endpoint_that_was_not_asked_yet_may_be_used_and_a_verdict_says_since_when_and_why() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        assert!(asked.verdict().is_none() && !asked.keeps_away());
        let settings = settings(1, 2);
        assert_eq!(asked.answered(Ok(()), &settings, now), Some(Turn::Well));
        assert_eq!(asked.answered(Err("503".to_owned()), &settings, now + SECOND), None);
        assert_eq!(asked.answered(Err("refused".to_owned()), &settings, now + 2 * SECOND), Some(Turn::Unwell));
        assert_eq!(asked.verdict(), Some((Turn::Unwell, Some(now + 2 * SECOND))));
        assert_eq!(asked.detail(), "refused");
        asked.set_panic(true);
        assert!(asked.is_unwell() && !asked.keeps_away());
    }

    #[test]
    fn questions_are_spread_by_their_jitter_and_never_come_early() {
        let settings = HealthCheck { interval: 10 * SECOND, jitter_percent: 20, ..settings(1, 1) };
        assert_eq!(rest(&settings, 0.0), 10 * SECOND);
        assert_eq!(rest(&settings, 0.5), 11 * SECOND);
        assert!(rest(&settings, 1.0) <= 12 * SECOND);
    }

    #[test]
    fn below_the_threshold_the_questions_are_not_believed() {
        assert!(!panics(5, 10, 50) && panics(6, 10, 50), "half of them well is enough");
        assert!(panics(1, 1, 1) && !panics(1, 1, 0), "0 switches it off");
        assert!(!panics(0, 0, 100) && !panics(0, 4, 100) && panics(1, 4, 100));
    }

    proptest! {
        /// Against a plain model: the last run of equal answers.
        #[test]
        fn the_verdict_is_that_of_the_last_run_of_answers_that_was_long_enough(
            answers in prop::collection::vec(any::<bool>(), 1..60), healthy in 1u32..4, unhealthy in 1u32..4,
        ) {
            let settings = settings(healthy, unhealthy);
            let (mut asked, now) = (Asked::default(), Instant::now());
            let (mut verdict, mut run) = (answers[0], 0);
            for (n, good) in answers.iter().enumerate() {
                run = if n > 0 && answers[n - 1] == *good { run + 1 } else { 1 };
                if run >= if *good { healthy } else { unhealthy } {
                    verdict = *good;
                }
                asked.answered(if *good { Ok(()) } else { Err(String::new()) }, &settings, now);
                prop_assert_eq!(asked.is_unwell(), !verdict);
            }
        }
    }
}

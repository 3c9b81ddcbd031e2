//! One verdict on an endpoint from all that is known of it: what its own sidecar says with its lease, what somebody who asked
//! it found, and how it treated our requests.
//!
//! Whoever has looked at what we are about to use counts most: our own requests, then our own question, then the word of its
//! sidecar. A sidecar's word does not outlive its lease, and an old list never says that an endpoint is well, only that it may be.

use std::fmt;
use std::time::{Duration, Instant};

use crate::breaker::State;

/// What an endpoint's own sidecar last said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leased<'a> {
    /// Its probe of the application succeeds.
    pub healthy: bool,
    /// If not, why.
    pub detail: &'a str,
    /// When the lease ends unless it is renewed.
    pub until: Instant,
}

/// What somebody who asked the endpoint found, where it has no sidecar that could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    /// It answered as it should.
    pub healthy: bool,
    /// If not, why.
    pub detail: &'a str,
    /// When it was asked.
    pub at: Instant,
}

/// All that is known of an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Signs<'a> {
    /// `None`: it has no sidecar.
    pub leased: Option<Leased<'a>>,
    /// Since when the control plane has been away, so that leases cannot be seen renewed; `None`: it is there.
    pub away_since: Option<Instant>,
    /// `None`: nobody asks it.
    pub asked: Option<Asked<'a>>,
    /// What is asked longer ago than this says nothing.
    pub asked_within: Duration,
    /// Its breaker, if it enforces.
    pub breaker: Option<State>,
    /// It met us with an identity that it should not have.
    pub misidentified: bool,
}

/// Whether an endpoint may be used, and what says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health<'a> {
    /// It may.
    Usable(Because<'a>),
    /// One request may try it.
    Probing,
    /// It may not.
    Unusable(Because<'a>),
}

/// What a verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because<'a> {
    /// It is not who it should be.
    Identity,
    /// Its breaker is open, until then at least.
    Breaker {
        /// When the penalty ends.
        until: Instant,
    },
    /// It was asked.
    Asked(&'a str),
    /// Its sidecar says so.
    Leased(&'a str),
    /// Its lease has ended.
    LeaseOver,
    /// Its lease can not be renewed while the control plane is away: what was last said holds.
    LastKnown,
    /// Nobody says anything against it.
    Nothing,
}

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("it has another identity than it should"),
            Self::Breaker { .. } => f.write_str("its breaker is open"),
            Self::Asked("") => f.write_str("it answers when asked"),
            Self::Asked(detail) => write!(f, "asked, it fails: {detail}"),
            Self::Leased("") => f.write_str("its sidecar says that it is well"),
            Self::Leased(detail) => write!(f, "its sidecar says: {detail}"),
            Self::LeaseOver => f.write_str("its lease is over"),
            Self::LastKnown => f.write_str("the control plane is away, and this is the last that was known"),
            Self::Nothing => f.write_str("nobody says anything against it"),
        }
    }
}

/// Weighs the signs, the nearest first.
pub fn judge<'a>(signs: &Signs<'a>, now: Instant) -> Health<'a> {
    if signs.misidentified {
        return Health::Unusable(Because::Identity);
    }
    match signs.breaker {
        Some(State::Open { until, .. }) if until <= now => return Health::Probing,
        Some(State::Open { until, .. } | State::HalfOpen { until, .. }) => {
            return Health::Unusable(Because::Breaker { until });
        }
        Some(State::Closed { .. }) | None => {}
    }
    if let Some(asked) = signs.asked.filter(|asked| now.saturating_duration_since(asked.at) <= signs.asked_within) {
        let because = Because::Asked(if asked.healthy { "" } else { asked.detail });
        return if asked.healthy { Health::Usable(because) } else { Health::Unusable(because) };
    }
    let Some(leased) = signs.leased else { return Health::Usable(Because::Nothing) };
    let expired = leased.until <= now;
    // Ended while nobody could tell us of its renewal, or before.
    let unseen = signs.away_since.is_some_and(|since| since <= leased.until);
    match (leased.healthy, expired) {
        (_, true) if !unseen => Health::Unusable(Because::LeaseOver),
        (false, _) => Health::Unusable(Because::Leased(leased.detail)),
        (true, true) => Health::Usable(Because::LastKnown),
        (true, false) => Health::Usable(Because::Leased("")),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn nothing() -> Signs<'static> {
        Signs {
            leased: None,
            away_since: None,
            asked: None,
            asked_within: 30 * SECOND,
            breaker: Some(State::Closed { failures: 0 }),
            misidentified: false,
        }
    }

    fn leased(healthy: bool, until: Instant) -> Option<Leased<'static>> {
        Some(Leased { healthy, detail: if healthy { "" } else { "connection refused" }, until })
    }

    #[test]
    fn an_endpoint_nobody_speaks_of_may_be_used() {
        assert_eq!(judge(&nothing(), Instant::now()), Health::Usable(Because::Nothing));
    }

    #[test]
    fn a_sidecars_word_holds_as_long_as_its_lease() {
        let now = Instant::now();
        let with = |healthy, until| judge(&Signs { leased: leased(healthy, until), ..nothing() }, now);
        assert_eq!(with(true, now + SECOND), Health::Usable(Because::Leased("")));
        assert_eq!(with(false, now + SECOND), Health::Unusable(Because::Leased("connection refused")));
        assert_eq!(with(true, now), Health::Unusable(Because::LeaseOver));
    }

    #[test]
    fn while_the_control_plane_is_away_the_last_word_holds() {
        let now = Instant::now();
        let signs =
            |healthy, away| Signs { leased: leased(healthy, now + SECOND), away_since: Some(away), ..nothing() };
        let later = now + 60 * SECOND;
        assert_eq!(judge(&signs(true, now), later), Health::Usable(Because::LastKnown));
        assert_eq!(judge(&signs(false, now), later), Health::Unusable(Because::Leased("connection refused")));
        let went_later = now + 30 * SECOND;
        assert_eq!(judge(&signs(true, went_later), later), Health::Unusable(Because::LeaseOver), "seen to end");
    }

    #[test]
    fn our_own_question_counts_before_its_sidecars_word_while_it_is_fresh() {
        let now = Instant::now();
        let asked = Some(Asked { healthy: false, detail: "503", at: now });
        let signs = Signs { leased: leased(true, now + 60 * SECOND), asked, ..nothing() };
        assert_eq!(judge(&signs, now + 30 * SECOND), Health::Unusable(Because::Asked("503")));
        assert_eq!(judge(&signs, now + 31 * SECOND), Health::Usable(Because::Leased("")));
    }

    #[test]
    fn how_it_treats_our_requests_counts_before_what_anybody_says() {
        let now = Instant::now();
        let until = now + SECOND;
        let asked = Some(Asked { healthy: true, detail: "", at: now });
        let open = Signs { asked, breaker: Some(State::Open { until, penalty: SECOND }), ..nothing() };
        assert_eq!(judge(&open, now), Health::Unusable(Because::Breaker { until }));
        assert_eq!(judge(&open, until), Health::Probing);
        let probed = Signs { breaker: Some(State::HalfOpen { until, penalty: SECOND }), ..open };
        assert_eq!(judge(&probed, until), Health::Unusable(Because::Breaker { until }), "somebody else is the probe");
        let somebody_else = Signs { misidentified: true, ..nothing() };
        assert_eq!(judge(&somebody_else, now), Health::Unusable(Because::Identity));
    }

    #[test]
    fn a_verdict_says_in_words_what_it_rests_on() {
        assert_eq!(Because::Leased("connection refused").to_string(), "its sidecar says: connection refused");
        assert_eq!(Because::Asked("503").to_string(), "asked, it fails: 503");
        assert_eq!(Because::LeaseOver.to_string(), "its lease is over");
    }
}

//! One verdict on an endpoint from all that is known of it: how it treated our requests, what it answered when it was asked,
//! and what its own sidecar says with its lease.
//!
//! Whoever has looked at what we are about to use counts most: who it proved to be, then our own requests, then our own
//! question, then the word of its sidecar. Nothing said against it makes it usable; a verdict says since when it holds.

mod asked;

use std::fmt;
use std::time::{Duration, Instant};

pub use asked::{Asked, Turn, panics, rest};

use crate::breaker::State;

/// It met us with an identity that it should not have, and is kept away for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// When it first did, of times in a row.
    pub since: Instant,
    /// When it last did.
    pub met: Instant,
    /// Until then it is not tried; then one try sees who it is.
    pub until: Instant,
    /// How long that was, the last time.
    pub penalty: Duration,
    /// Who it was.
    pub found: String,
}

impl Stranger {
    /// The first penalty; it doubles with each further meeting.
    pub const FIRST: Duration = Duration::from_secs(1);
    /// The longest.
    pub const LONGEST: Duration = Duration::from_secs(60);

    /// The same after it was met `now`. Tries that were under way together count as one meeting.
    pub fn again(before: Option<&Self>, found: &str, now: Instant) -> Self {
        let penalty = before.map_or(Self::FIRST, |before| before.penalty.saturating_mul(2).min(Self::LONGEST));
        let since = before.map_or(now, |before| before.since);
        Self { since, met: now, until: now + penalty, penalty, found: found.to_owned() }
    }
}

/// A breaker, as far as health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Where it stands.
    pub state: State,
    /// Since when it has not been closed, and what opened it; `None` while it is.
    pub since: Option<(Instant, &'static str)>,
}

/// All that is known of an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Signs<'a> {
    /// Somebody else was met there.
    pub stranger: Option<&'a Stranger>,
    /// Its breaker, if it enforces.
    pub breaker: Option<Opened>,
    /// What it answered; `None`: nobody asks it.
    pub asked: Option<&'a Asked>,
    /// What its sidecar says against it; `None`: nothing, or it has none.
    pub leased: Option<&'a str>,
}

/// Whether an endpoint may be used, what says so, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it may be used.
    pub standing: Standing,
    /// What that rests on.
    pub because: Because,
    /// Since when; `None` where nobody noted it.
    pub since: Option<Instant>,
}

/// Whether an endpoint may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Usable,
    /// One request may try it.
    Probing,
    /// It may not.
    Unusable,
}

/// What a verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// It is not who it should be; who it is.
    Identity(String),
    /// Its breaker is open, until then at least, opened by this.
    Breaker(Instant, &'static str),
    /// It was asked, and answered as it should.
    AnswersWell,
    /// It was asked; why that failed.
    Asked(String),
    /// The same, and so many others fail that all are used.
    Panic(String),
    /// What its sidecar says.
    Leased(String),
    /// Nobody says anything against it.
    Nothing,
}

impl Standing {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::Probing => "probing",
            Self::Unusable => "unusable",
        }
    }
}

impl Because {
    /// Every word of [`Self::as_str`].
    pub const WORDS: [&str; 6] = ["well", "identity_mismatch", "breaker", "health_check", "panic", "lease"];

    /// In one word, for metrics: who took it out.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Nothing | Self::AnswersWell => "well",
            Self::Identity(_) => "identity_mismatch",
            Self::Breaker(..) => "breaker",
            Self::Asked(_) => "health_check",
            Self::Panic(_) => "panic",
            Self::Leased(_) => "lease",
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(found) => write!(f, "it is not who it should be: {found}"),
            Self::Breaker(_, cause) => write!(f, "its breaker is open: {cause}"),
            Self::AnswersWell => f.write_str("it answers when asked"),
            Self::Asked(detail) => write!(f, "asked, it fails: {detail}"),
            Self::Panic(detail) => write!(f, "asked, it fails, but so do too many others: {detail}"),
            Self::Leased(detail) => write!(f, "its sidecar says: {detail}"),
            Self::Nothing => f.write_str("nobody says anything against it"),
        }
    }
}

/// Weighs the signs, the nearest first.
pub fn judge(signs: &Signs<'_>, now: Instant) -> Health {
    let unusable = |because, since| Health { standing: Standing::Unusable, because, since };
    let probing = |because, since| Health { standing: Standing::Probing, because, since };
    if let Some(stranger) = signs.stranger {
        let because = Because::Identity(stranger.found.clone());
        let is_over = stranger.until <= now;
        return if is_over { probing(because, Some(stranger.since)) } else { unusable(because, Some(stranger.since)) };
    }
    // A probe must not go where a question fails.
    let keeps_away = signs.asked.is_some_and(Asked::keeps_away);
    if let Some(Opened { state: State::Open { until, .. } | State::HalfOpen { until, .. }, since }) = signs.breaker {
        let is_over = matches!(signs.breaker, Some(Opened { state: State::Open { .. }, .. })) && until <= now;
        let (at, cause) = since.map_or((None, "unknown"), |(at, cause)| (Some(at), cause));
        let because = Because::Breaker(until, cause);
        if !(is_over && keeps_away) {
            return if is_over { probing(because, at) } else { unusable(because, at) };
        }
    }
    let usable = |because, since| Health { standing: Standing::Usable, because, since };
    match signs.asked.and_then(|asked| Some((asked, asked.verdict()?))) {
        Some((asked, (Turn::Unwell, since))) if keeps_away => {
            unusable(Because::Asked(asked.detail().to_owned()), since)
        }
        Some((asked, (Turn::Unwell, since))) => usable(Because::Panic(asked.detail().to_owned()), since),
        Some((_, (Turn::Well, since))) => usable(Because::AnswersWell, since),
        None => match signs.leased {
            Some(detail) => unusable(Because::Leased(detail.to_owned()), None),
            None => usable(Because::Nothing, None),
        },
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use equerry_policies::policy::{Ask, HealthCheck};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOTHING: Signs<'static> = Signs { stranger: None, breaker: None, asked: None, leased: None };

    fn asked(answer: Result<(), &str>, now: Instant) -> Asked {
        let mut asked = Asked::default();
        asked.answered(answer.map_err(str::to_owned), &HealthCheck::asking(Ask::Tcp {}), now);
        asked
    }

    fn told(signs: &Signs<'_>, now: Instant) -> (Standing, String) {
        let health = judge(signs, now);
        (health.standing, health.because.to_string())
    }

    #[test]
    fn an_endpoint_nobody_speaks_of_may_be_used_and_one_its_sidecar_speaks_against_may_not() {
        let now = Instant::now();
        assert_eq!(told(&NOTHING, now), (Standing::Usable, "nobody says anything against it".to_owned()));
        let leased = Signs { leased: Some("connection refused"), ..NOTHING };
        assert_eq!(told(&leased, now), (Standing::Unusable, "its sidecar says: connection refused".to_owned()));
    }

    #[test]
    fn what_it_answers_us_counts_before_its_sidecars_word() {
        let now = Instant::now();
        let (well, unwell) = (asked(Ok(()), now), asked(Err("status 503"), now));
        let signs = Signs { leased: Some("starting"), asked: Some(&well), ..NOTHING };
        assert_eq!(told(&signs, now).0, Standing::Usable);
        let failing = Signs { asked: Some(&unwell), ..NOTHING };
        assert_eq!(told(&failing, now), (Standing::Unusable, "asked, it fails: status 503".to_owned()));
        assert_eq!(judge(&failing, now + SECOND).since, Some(now));
        let mut panicking = unwell.clone();
        panicking.set_panic(true);
        let health = judge(&Signs { asked: Some(&panicking), ..NOTHING }, now);
        assert_eq!((health.standing, health.because.as_str()), (Standing::Usable, "panic"));
    }

    #[test]
    fn how_it_treats_our_requests_counts_before_what_anybody_says() {
        let now = Instant::now();
        let (until, since) = (now + SECOND, Some((now, "consecutive_failures")));
        let well = asked(Ok(()), now);
        let open = Opened { state: State::Open { until, penalty: SECOND }, since };
        let signs = Signs { breaker: Some(open), asked: Some(&well), ..NOTHING };
        assert_eq!(told(&signs, now), (Standing::Unusable, "its breaker is open: consecutive_failures".to_owned()));
        assert_eq!(judge(&signs, until).standing, Standing::Probing);
        let half = Opened { state: State::HalfOpen { until, penalty: SECOND }, since };
        let probed = Signs { breaker: Some(half), ..signs };
        assert_eq!(judge(&probed, until).standing, Standing::Unusable, "somebody else is the probe");
        let unwell = asked(Err("status 503"), now);
        let both = Signs { asked: Some(&unwell), ..signs };
        assert_eq!(told(&both, until).1, "asked, it fails: status 503", "it is not probed while a question fails");
        let stranger = Stranger::again(None, "nobody", now);
        let stranger = Signs { stranger: Some(&stranger), ..both };
        assert_eq!(told(&stranger, now).1, "it is not who it should be: nobody");
    }

    #[test]
    fn somebody_else_is_kept_away_for_longer_each_time_up_to_a_minute() {
        let mut now = Instant::now();
        let (first, mut met) = (now, Stranger::again(None, "a", now));
        let mut penalties = vec![met.penalty];
        for _ in 0..7 {
            now = met.until;
            met = Stranger::again(Some(&met), "a", now);
            penalties.push(met.penalty);
        }
        assert_eq!(penalties.iter().map(Duration::as_secs).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(met.since, first);
    }

    #[test]
    fn every_verdict_has_its_word() {
        let all = [
            Because::Nothing,
            Because::Identity(String::new()),
            Because::Breaker(Instant::now(), ""),
            Because::Asked(String::new()),
            Because::Panic(String::new()),
            Because::Leased(String::new()),
        ];
        assert_eq!(all.map(|because| because.as_str()), Because::WORDS);
    }
}

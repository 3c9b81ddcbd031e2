//! What is remembered of a name, step by step, with a clock of our own.

use super::*;

/// A name whose lookups we make up, and our clock.
struct Story {
    memory: Memory,
    start: Instant,
    bounds: Bounds,
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn found(addresses: &[&str], ttl: u64) -> Outcome {
    Outcome::Found {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ttl: Duration::from_secs(ttl),
    }
}

fn failed() -> Outcome {
    Outcome::Failed("SERVFAIL".to_owned())
}

impl Story {
    fn begin() -> Self {
        Self { memory: Memory::default(), start: Instant::now(), bounds: Bounds::default() }
    }

    fn learn(&mut self, at: f64, outcome: Outcome) -> Learned {
        self.memory.learn(outcome, self.start + seconds(at), &self.bounds, 0.5)
    }

    /// The answer at a moment, in words; `*`: whoever wants it need not wait.
    fn told(&self, at: f64) -> String {
        let now = self.start + seconds(at);
        let answer = match self.memory.answer(now) {
            None => "unknown".to_owned(),
            Some(Answer::Addresses(all)) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Some(Answer::Nobody) => "nobody".to_owned(),
            Some(Answer::Failed(why)) => format!("failed: {why}"),
        };
        if self.memory.is_ready(now) { format!("{answer} *") } else { answer }
    }

    /// When the name is looked up next, in seconds from the start.
    fn asks_at(&self) -> f64 {
        (self.memory.ask_at().unwrap() - self.start).as_secs_f64()
    }
}

#[test]
fn nothing_is_known_before_the_first_lookup() {
    let story = Story::begin();
    assert_eq!(story.told(0.0), "unknown");
    assert_eq!(story.memory.ask_at(), None);
}

#[test]
fn an_answer_holds_for_its_time_and_the_next_lookup_comes_before_it_is_over() {
    let mut story = Story::begin();
    assert_eq!(story.learn(0.0, found(&["192.0.2.2", "192.0.2.1", "::ffff:192.0.2.2"], 10)), Learned::Changed);
    assert_eq!(story.told(9.9), "192.0.2.1 192.0.2.2 *");
    assert_eq!(story.told(10.0), "192.0.2.1 192.0.2.2", "whoever wants it now waits for a lookup");
    assert!((8.0..9.6).contains(&story.asks_at()), "{}", story.asks_at());
    assert_eq!(story.learn(8.5, found(&["192.0.2.1", "192.0.2.2"], 10)), Learned::Same);
    assert_eq!(story.learn(17.0, found(&["192.0.2.3"], 10)), Learned::Changed);
    assert_eq!(story.told(17.0), "192.0.2.3 *");
}

#[test]
fn the_same_addresses_in_another_order_are_the_very_same_list() {
    let mut story = Story::begin();
    story.learn(0.0, found(&["192.0.2.2", "192.0.2.1"], 10));
    let before = story.memory.answer(story.start);
    story.learn(5.0, found(&["192.0.2.1", "192.0.2.2"], 10));
    let (Some(Answer::Addresses(before)), Some(Answer::Addresses(after))) = (before, story.memory.answer(story.start))
    else {
        unreachable!("addresses were found")
    };
    assert!(Arc::ptr_eq(&before, &after));
}

#[test]
fn the_time_of_an_answer_has_bounds() {
    let mut story = Story::begin();
    story.learn(0.0, found(&["192.0.2.1"], 0));
    assert_eq!((story.told(0.9), story.told(1.0)), ("192.0.2.1 *".to_owned(), "192.0.2.1".to_owned()));
    story.learn(1.0, found(&["192.0.2.1"], 604_800));
    assert_eq!((story.told(300.9), story.told(301.0)), ("192.0.2.1 *".to_owned(), "192.0.2.1".to_owned()));
    assert!(story.asks_at() < 301.0);
}

#[test]
fn a_name_without_addresses_is_believed_to_have_none_for_a_bounded_time() {
    let nobody = |ttl: u64| Outcome::Nobody { ttl: Some(Duration::from_secs(ttl)) };
    let mut story = Story::begin();
    assert_eq!(story.learn(0.0, nobody(86_400)), Learned::Changed);
    assert_eq!((story.told(29.9), story.told(30.0)), ("nobody *".to_owned(), "nobody".to_owned()));
    story.learn(30.0, nobody(0));
    assert_eq!((story.told(30.9), story.told(31.0)), ("nobody *".to_owned(), "nobody".to_owned()));
    story.learn(31.0, Outcome::Nobody { ttl: None });
    assert_eq!((story.told(35.9), story.told(36.0)), ("nobody *".to_owned(), "nobody".to_owned()));
    assert_eq!(story.learn(36.0, found(&[], 10)), Learned::Same, "an empty answer says the same");
    assert_eq!(story.told(36.0), "nobody *");
}

#[test]
fn a_name_that_is_said_to_be_gone_is_gone_at_once() {
    let mut story = Story::begin();
    story.learn(0.0, found(&["192.0.2.1"], 10));
    assert_eq!(story.learn(8.5, Outcome::Nobody { ttl: None }), Learned::Changed);
    assert_eq!(story.told(8.5), "nobody *");
}

#[test]
fn what_came_last_stays_in_use_while_the_dns_is_down_but_not_for_ever() {
    let mut story = Story::begin();
    story.learn(0.0, found(&["192.0.2.1"], 10));
    assert_eq!(story.learn(8.5, failed()), Learned::Kept);
    assert!(!story.memory.is_stale(story.start + seconds(9.0)), "its time is not over");
    assert_eq!(story.told(100.0), "192.0.2.1 *", "nobody waits for a DNS that is down");
    assert!(story.memory.is_stale(story.start + seconds(100.0)));
    let mut at = 8.5;
    while at < 3_600.0 {
        assert_eq!(story.learn(at, failed()), Learned::Same);
        let rest = story.asks_at() - at;
        assert!((0.5..=30.0).contains(&rest), "{rest}");
        at = story.asks_at();
    }
    assert_eq!(story.told(3_609.9), "192.0.2.1 *");
    assert_eq!(story.told(3_610.0), "failed: what the DNS said last is too old to be used *");
    assert_eq!(story.learn(3_611.0, failed()), Learned::Lost);
    assert_eq!(story.told(3_611.0), "failed: SERVFAIL *");
    assert_eq!(story.learn(3_700.0, found(&["192.0.2.1"], 10)), Learned::Changed);
}

#[test]
fn the_dns_that_answers_again_is_noticed_even_when_it_says_the_same() {
    let mut story = Story::begin();
    story.learn(0.0, found(&["192.0.2.1"], 10));
    story.learn(9.0, failed());
    assert_eq!(story.learn(12.0, found(&["192.0.2.1"], 10)), Learned::Recovered);
    assert!(!story.memory.is_stale(story.start + seconds(12.0)));
    assert_eq!(story.told(22.0), "192.0.2.1", "and its time counts again");
}

#[test]
fn a_name_that_never_had_an_answer_is_asked_for_more_and_more_seldom() {
    let mut story = Story::begin();
    let mut rests = Vec::new();
    let mut at = 0.0;
    for _ in 0..8 {
        story.learn(at, failed());
        assert_eq!(story.told(at), "failed: SERVFAIL *", "nobody waits again for what just failed");
        rests.push(story.asks_at() - at);
        at = story.asks_at();
    }
    assert_eq!(rests.iter().map(|rest| rest.round()).collect::<Vec<_>>(), [1.0, 2.0, 3.0, 6.0, 12.0, 23.0, 23.0, 23.0]);
    assert_eq!(story.told(at), "failed: SERVFAIL", "then whoever wants it waits for the next lookup");
}

#[test]
fn whoever_answers_cannot_make_us_hold_thousands_of_addresses() {
    let mut story = Story::begin();
    let many = (0..5_000_u32).map(|number| IpAddr::V4((0x0a00_0000 + number).into())).collect();
    story.learn(0.0, Outcome::Found { addresses: many, ttl: Duration::from_secs(10) });
    let Some(Answer::Addresses(addresses)) = story.memory.answer(story.start) else { unreachable!("many were found") };
    assert_eq!(addresses.len(), MOST_ADDRESSES);
}

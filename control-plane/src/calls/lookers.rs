//! People who look on at single calls: what each asked for, and which sidecars are to be told of it.
//!
//! Whoever looks gets no more in a second than they asked for, whatever sidecars send: the rest is dropped and counted. Nor does one
//! sidecar take the place of others, or more memory than its calls are worth.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use equerry_policies::names::{AccountName, Namespace, TenantName};
use equerry_wire::proto;
use tokio::sync::mpsc;

use crate::registry::InstanceKey;

/// Those who may look at once, and questions that may be open at once.
pub const MOST_LOOKERS: usize = 32;
/// Calls that may wait for one who looks.
const WAITING: usize = 1_024;
/// Longest text of a call in bytes: what the longest of a sidecar's own takes.
const LONGEST: usize = 1_024;
/// All texts of a call together.
const LONGEST_TOGETHER: usize = 4_096;

/// Which sidecars a look concerns; all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Where {
    /// Only this instance.
    pub instance: Option<InstanceKey>,
    /// Only of this namespace.
    pub namespace: Option<Namespace>,
    /// Only of these namespaces, because the token is limited to them; empty: of all.
    pub within: Vec<Namespace>,
    /// Only calls that this tenant was charged for, because the token is limited to it, whatever sidecars tell.
    pub tenant: Option<TenantName>,
}

impl Where {
    /// Whether a sidecar is concerned, before anything is known of its calls.
    pub fn concerns(&self, key: &InstanceKey) -> bool {
        self.instance.as_ref().is_none_or(|wanted| wanted == key)
            && self.namespace.as_ref().is_none_or(|wanted| *wanted == key.namespace)
            && (self.within.is_empty() || self.within.contains(&key.namespace))
    }

    /// Whether a call may be told.
    pub fn sees(&self, sample: &proto::CallSample) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == sample.tenant)
    }
}

/// A call, as one sidecar saw it, and which sidecar.
pub type Told = (InstanceKey, Arc<proto::CallSample>);
/// A sidecar's answer.
pub type Answer = (InstanceKey, Vec<proto::CallSample>);

#[derive(Debug)]
struct Tap {
    place: Where,
    filter: proto::CallFilter,
    per_second: u32,
    told: mpsc::Sender<Told>,
    second: Second,
    dropped: u64,
}

/// How many calls were told in the present second.
#[derive(Debug)]
struct Second {
    began: Instant,
    told: u32,
    /// By each sidecar.
    by: HashMap<InstanceKey, u32>,
}

impl Second {
    fn beginning(now: Instant) -> Self {
        Self { began: now, told: 0, by: HashMap::new() }
    }

    /// Whether there is room for a call of this sidecar, of `most` that are wanted, of which `share` are its own.
    fn takes(&mut self, key: &InstanceKey, most: u32, share: u32) -> bool {
        let its = self.by.get(key).copied().unwrap_or(0);
        let takes = self.told < most && its < share;
        if takes {
            self.told += 1;
            self.by.insert(key.clone(), its + 1);
        }
        takes
    }
}

#[derive(Debug)]
struct Question {
    filter: proto::CallFilter,
    limit: u32,
    asked: BTreeSet<InstanceKey>,
    answers: mpsc::UnboundedSender<Answer>,
}

/// Everybody who looks on.
#[derive(Debug, Default)]
pub struct Lookers {
    last: u64,
    taps: BTreeMap<u64, Tap>,
    questions: BTreeMap<u64, Question>,
}

impl Lookers {
    /// Somebody looks on; `None` when too many do. The calls come out of the receiver until [`Lookers::end`].
    pub fn follow(
        &mut self,
        place: Where,
        filter: proto::CallFilter,
        per_second: u32,
        now: Instant,
    ) -> Option<(u64, mpsc::Receiver<Told>)> {
        if self.taps.len() >= MOST_LOOKERS {
            return None;
        }
        let (told, calls) = mpsc::channel(WAITING);
        self.last += 1;
        let second = Second::beginning(now);
        self.taps.insert(self.last, Tap { place, filter, per_second, told, second, dropped: 0 });
        Some((self.last, calls))
    }

    /// Somebody asks for the last calls of these sidecars; `None` when too many do. Answers come out of the receiver until
    /// [`Lookers::end`].
    pub fn ask(
        &mut self,
        asked: BTreeSet<InstanceKey>,
        filter: proto::CallFilter,
        limit: u32,
    ) -> Option<(u64, mpsc::UnboundedReceiver<Answer>)> {
        if self.questions.len() >= MOST_LOOKERS {
            return None;
        }
        let (answers, answered) = mpsc::unbounded_channel();
        self.last += 1;
        self.questions.insert(self.last, Question { filter, limit, asked, answers });
        Some((self.last, answered))
    }

    /// Somebody looks on no longer.
    pub fn end(&mut self, id: u64) {
        self.taps.remove(&id);
        self.questions.remove(&id);
    }

    /// Calls that one who looks was not told, because there were too many.
    pub fn dropped(&self, id: u64) -> u64 {
        self.taps.get(&id).map_or(0, |tap| tap.dropped)
    }

    /// What a sidecar is to tell now, when `reporting` do, questions that it has answered left out.
    pub fn wish(&self, key: &InstanceKey, answered: &BTreeSet<u64>, reporting: usize) -> proto::CallWish {
        let taps = self.taps.iter().filter(|(_, tap)| tap.place.concerns(key));
        let follow = |(id, tap): (&u64, &Tap)| {
            let per_second = share(tap.per_second, reporting);
            proto::CallFollow { id: *id, filter: Some(tap.filter.clone()), per_second }
        };
        let open = self.questions.iter().filter(|(id, open)| open.asked.contains(key) && !answered.contains(id));
        let question = |(id, open): (&u64, &Question)| proto::CallQuestion {
            id: *id,
            filter: Some(open.filter.clone()),
            limit: open.limit,
        };
        proto::CallWish { follows: taps.map(follow).collect(), questions: open.map(question).collect() }
    }

    /// A sidecar tells of a call, when `reporting` do.
    pub fn saw(
        &mut self,
        key: &InstanceKey,
        account: &AccountName,
        mut sample: proto::CallSample,
        reporting: usize,
        now: Instant,
    ) {
        // Each once, whatever it says.
        let follows: BTreeSet<u64> = std::mem::take(&mut sample.follows).into_iter().collect();
        let sample = Arc::new(sanitized(sample, account));
        for id in follows {
            let Some(tap) = self.taps.get_mut(&id).filter(|tap| tap.place.concerns(key) && tap.place.sees(&sample))
            else {
                continue;
            };
            if now.saturating_duration_since(tap.second.began).as_secs() >= 1 {
                tap.second = Second::beginning(now);
            }
            // Its second is not ours, and it may not have heard yet that there are more of them.
            let share = share(tap.per_second, reporting).saturating_mul(2);
            let told = tap.second.takes(key, tap.per_second, share)
                && tap.told.try_send((key.clone(), Arc::clone(&sample))).is_ok();
            tap.dropped += u64::from(!told);
        }
    }

    /// A sidecar says how many it could not tell more than before, to whoever follows there.
    pub fn lost(&mut self, key: &InstanceKey, more: u64) {
        for tap in self.taps.values_mut().filter(|tap| tap.place.concerns(key)) {
            tap.dropped = tap.dropped.saturating_add(more);
        }
    }

    /// A sidecar answers a question.
    pub fn answered(&mut self, key: &InstanceKey, account: &AccountName, answer: proto::CallAnswer) {
        let Some(open) = self.questions.get_mut(&answer.question) else { return };
        if open.asked.remove(key) {
            let limit = usize::try_from(open.limit).unwrap_or(usize::MAX);
            let samples = answer.samples.into_iter().take(limit).map(|sample| sanitized(sample, account)).collect();
            // Nobody may wait for it any more.
            let _ = open.answers.send((key.clone(), samples));
        }
    }
}

/// How many calls a second one sidecar is to tell, of those that are wanted: each may have to tell all of it, and all together not
/// much more.
fn share(per_second: u32, reporting: usize) -> u32 {
    let share = per_second.saturating_mul(4) / u32::try_from(reporting.max(1)).unwrap_or(u32::MAX);
    per_second.min(share.max(2))
}

/// The call without what is too long to be true. A caller's sidecar speaks for its own account alone.
fn sanitized(mut sample: proto::CallSample, account: &AccountName) -> proto::CallSample {
    if sample.outbound {
        sample.source = account.to_string();
    }
    let mut left = LONGEST_TOGETHER;
    for text in [
        &mut sample.source,
        &mut sample.destination,
        &mut sample.method,
        &mut sample.protocol,
        &mut sample.reason,
        &mut sample.tenant,
        &mut sample.request_id,
        &mut sample.trace_id,
        &mut sample.policy,
        &mut sample.route,
        &mut sample.upstream,
        &mut sample.authority,
        &mut sample.path,
        &mut sample.detail,
    ] {
        let most = text.floor_char_boundary(left.min(LONGEST));
        if most < text.len() {
            // The rest of it is not kept either.
            *text = text[..most].to_owned();
        }
        left -= text.len();
    }
    sample.follows = Vec::new();
    sample
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(text: &str) -> InstanceKey {
        let (namespace, id) = text.split_once('/').unwrap();
        InstanceKey { namespace: namespace.parse().unwrap(), id: id.parse().unwrap() }
    }

    fn account() -> AccountName {
        AccountName::parse("shop/frontend").unwrap()
    }

    fn call(follows: &[u64]) -> proto::CallSample {
        proto::CallSample {
            outbound: true,
            source: "bank/vault".into(),
            follows: follows.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn who_looks_is_told_of_the_sidecars_they_asked_for_and_nobody_lies_about_who_they_are() {
        let mut lookers = Lookers::default();
        let now = Instant::now();
        let place = Where { namespace: Some("shop".parse().unwrap()), ..Where::default() };
        let (id, mut calls) = lookers.follow(place, proto::CallFilter::default(), 10, now).unwrap();
        assert_eq!(lookers.wish(&key("shop/a"), &BTreeSet::new(), 1).follows.len(), 1);
        assert_eq!(lookers.wish(&key("bank/a"), &BTreeSet::new(), 1).follows.len(), 0);
        lookers.saw(&key("shop/a"), &account(), call(&[id, 99]), 1, now);
        lookers.saw(&key("bank/a"), &account(), call(&[id]), 1, now);
        let (from, sample) = calls.try_recv().unwrap();
        assert_eq!((from, sample.source.as_str()), (key("shop/a"), "shop/frontend"));
        assert!(calls.try_recv().is_err(), "a sidecar that was not asked tells nobody anything");
        lookers.end(id);
        assert_eq!(lookers.wish(&key("shop/a"), &BTreeSet::new(), 1), proto::CallWish::default());
    }

    #[test]
    fn a_limited_token_looks_only_where_it_holds() {
        let place = Where { within: vec!["shop".parse().unwrap()], ..Where::default() };
        assert!(place.concerns(&key("shop/a")) && !place.concerns(&key("bank/a")));
    }

    #[test]
    fn nobody_is_told_more_in_a_second_than_they_asked_for_and_the_rest_is_counted() {
        let mut lookers = Lookers::default();
        let now = Instant::now();
        let (id, mut calls) = lookers.follow(Where::default(), proto::CallFilter::default(), 2, now).unwrap();
        for _ in 0..5 {
            lookers.saw(&key("shop/a"), &account(), call(&[id]), 1, now);
        }
        lookers.saw(&key("shop/a"), &account(), call(&[id]), 1, now + Duration::from_secs(1));
        assert_eq!((std::iter::from_fn(|| calls.try_recv().ok()).count(), lookers.dropped(id)), (3, 3));
        lookers.lost(&key("shop/a"), 4);
        assert_eq!(lookers.dropped(id), 7);
        let many: Vec<_> =
            (0..MOST_LOOKERS).map(|_| lookers.follow(Where::default(), proto::CallFilter::default(), 2, now)).collect();
        assert!(many.last().unwrap().is_none());
    }

    #[test]
    fn the_more_sidecars_there_are_the_less_each_tells() {
        let mut lookers = Lookers::default();
        lookers.follow(Where::default(), proto::CallFilter::default(), 100, Instant::now()).unwrap();
        let of = |reporting| lookers.wish(&key("shop/a"), &BTreeSet::new(), reporting).follows[0].per_second;
        assert_eq!([of(1), of(4), of(40), of(10_000)], [100, 100, 10, 2]);
    }

    #[test]
    fn a_sidecar_that_tells_without_end_takes_neither_the_place_of_others_nor_the_memory() {
        let mut lookers = Lookers::default();
        let now = Instant::now();
        let (id, mut calls) = lookers.follow(Where::default(), proto::CallFilter::default(), 100, now).unwrap();
        for _ in 0..50 {
            lookers.saw(&key("shop/bad"), &account(), call(&vec![id; 1_000]), 100, now);
        }
        lookers.saw(&key("shop/good"), &account(), call(&[id]), 100, now);
        let told: Vec<InstanceKey> = std::iter::from_fn(|| calls.try_recv().ok()).map(|(key, _)| key).collect();
        let of = |who: &str| told.iter().filter(|from| **from == key(who)).count();
        assert_eq!((of("shop/bad"), of("shop/good")), (8, 1), "4 are its share, of a second that is not quite ours");
        assert_eq!(lookers.dropped(id), 42, "and each call counts once");

        let long = "ü".repeat(1_000_000);
        let texts = |call: &proto::CallSample| {
            [&call.path, &call.authority, &call.destination, &call.tenant, &call.request_id, &call.detail]
                .map(String::len)
        };
        let huge = proto::CallSample {
            path: long.clone(),
            authority: long.clone(),
            destination: long.clone(),
            tenant: long.clone(),
            request_id: long.clone(),
            detail: long,
            follows: vec![id],
            ..Default::default()
        };
        lookers.saw(&key("shop/other"), &account(), huge.clone(), 100, now);
        let (_, told) = calls.try_recv().unwrap();
        assert!(texts(&told).into_iter().all(|length| length <= LONGEST), "{:?}", texts(&told));
        assert!(texts(&told).into_iter().sum::<usize>() <= LONGEST_TOGETHER, "{:?}", texts(&told));
        let (id, mut answers) = lookers.ask(BTreeSet::from([key("shop/a")]), proto::CallFilter::default(), 1).unwrap();
        lookers.answered(&key("shop/a"), &account(), proto::CallAnswer { question: id, samples: vec![huge] });
        assert!(texts(&answers.try_recv().unwrap().1[0]).into_iter().sum::<usize>() <= LONGEST_TOGETHER);
    }

    #[test]
    fn a_question_is_answered_once_by_each_who_was_asked() {
        let mut lookers = Lookers::default();
        let asked = BTreeSet::from([key("shop/a"), key("shop/b")]);
        let (id, mut answers) = lookers.ask(asked, proto::CallFilter::default(), 1).unwrap();
        assert_eq!(lookers.wish(&key("shop/a"), &BTreeSet::new(), 2).questions.len(), 1);
        assert_eq!(lookers.wish(&key("shop/a"), &BTreeSet::from([id]), 2).questions.len(), 0);
        let answer = || proto::CallAnswer { question: id, samples: vec![call(&[]), call(&[])] };
        for who in ["shop/a", "shop/a", "shop/c"] {
            lookers.answered(&key(who), &account(), answer());
        }
        let (from, samples) = answers.try_recv().unwrap();
        assert_eq!((from, samples.len()), (key("shop/a"), 1), "and no more than was asked for");
        assert!(answers.try_recv().is_err());
    }
}

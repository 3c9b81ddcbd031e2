//! What travels from hop to hop beside a request: how much time is left, and that it is a retry.
//!
//! Both stand in the member `eq` of `tracestate` (W3C Trace Context), which applications pass on with their traces. They are
//! believed only to shorten, or to retry less, so that nobody gains by making them up.
//!
//! Between proxies the time left is relative (`d`, in milliseconds), because clocks differ. To the application beside it a
//! sidecar writes the moment (`u`, Unix milliseconds), because what the application sends later comes back to the same clock.

use std::time::{Duration, SystemTime};

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::texts;

const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const OURS: &[u8] = b"eq=";
/// The specification's bound on members.
const MOST_MEMBERS: usize = 32;

/// What a request carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// What is left of the deadline of the exchange that it is part of; `None`: nothing is said.
    pub remaining: Option<Duration>,
    /// Some hop before has made a retry of it. Then no other does, or each hop of a chain would multiply the work of those behind.
    pub retried: bool,
}

/// Whom a request comes from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// Another machine.
    Peer,
    /// The application beside this proxy, which shares its clock.
    Application,
}

/// Reads the member `eq` of a request that comes from `from`; what cannot be read says nothing. `None`: there is no `tracestate`.
pub fn read(headers: &HeaderMap, from: Other, now: impl Fn() -> SystemTime) -> Option<Carried> {
    let lines = headers.get_all(TRACESTATE);
    lines.iter().next()?;
    let mut carried = Carried::default();
    let ours = members(lines.iter()).find_map(|member| member.strip_prefix(OURS));
    let Some(ours) = ours else { return Some(carried) };
    for field in ours.split(|byte| *byte == b';') {
        let [name, b':', value @ ..] = field else { continue };
        let number = std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok());
        let Some(number) = number else { continue };
        let left = match *name {
            b'd' => Some(Duration::from_millis(number)),
            b'u' if from == Other::Application => until(number, now()),
            b'r' => {
                carried.retried |= number > 0;
                None
            }
            _ => None,
        };
        carried.remaining = match (carried.remaining, left) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    Some(carried)
}

/// What is left until a moment in Unix milliseconds. A moment that has passed says nothing: nobody can tell work that was given
/// up from work in the background that outlives its request and passes its trace on, and that must not be refused.
fn until(millis: u64, now: SystemTime) -> Option<Duration> {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))?;
    at.duration_since(now).ok().filter(|left| !left.is_zero())
}

/// Writes the member `eq` of a request that goes to `to`, in front of all others, as the specification wants what was changed
/// last. A request that carries nothing carries no such member.
pub fn write(headers: &mut HeaderMap, carried: Carried, to: Other, now: impl Fn() -> SystemTime) {
    match headers.entry(TRACESTATE) {
        Entry::Vacant(place) => {
            if carried != Carried::default() {
                place.insert(line(carried, to, now, b""));
            }
        }
        Entry::Occupied(mut lines) => {
            let is_ours = |member: &&[u8]| member.starts_with(OURS);
            if carried == Carried::default() && !members(lines.iter()).any(|member| is_ours(&member)) {
                return;
            }
            let others = members(lines.iter()).filter(|member| !is_ours(member)).take(MOST_MEMBERS - 1);
            let others = others.collect::<Vec<_>>().join(&b","[..]);
            if carried == Carried::default() && others.is_empty() {
                lines.remove();
            } else {
                lines.insert(line(carried, to, now, &others));
            }
        }
    }
}

/// What is carried, in front of `others`.
fn line(carried: Carried, to: Other, now: impl Fn() -> SystemTime, others: &[u8]) -> HeaderValue {
    let mut digits = itoa::Buffer::new();
    let (which, left) = match carried.remaining.map(|left| (to, left)) {
        Some((Other::Peer, left)) => ("d:", digits.format(whole_millis(left))),
        Some((Other::Application, left)) => ("u:", digits.format(unix_millis(now().checked_add(left)))),
        None => ("", ""),
    };
    let retried = match (carried.retried, left) {
        (false, _) => "",
        (true, "") => "r:1",
        (true, _) => ";r:1",
    };
    let ours = if carried == Carried::default() { &[] } else { OURS };
    let comma = if ours.is_empty() || others.is_empty() { "" } else { "," };
    let said = [ours, which.as_bytes(), left.as_bytes(), retried.as_bytes(), comma.as_bytes(), others];
    // All of it is ours, or stood in such a value.
    texts::header_value(&said).unwrap_or(HeaderValue::from_static(""))
}

fn unix_millis(at: Option<SystemTime>) -> u64 {
    let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(u64::MAX, whole_millis)
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The members of every `tracestate` header, in order.
fn members<'a>(lines: impl Iterator<Item = &'a HeaderValue>) -> impl Iterator<Item = &'a [u8]> {
    let all = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    all.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> impl Fn() -> SystemTime {
        move || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn with(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (TRACESTATE, line.parse().unwrap())).collect()
    }

    fn read(headers: &HeaderMap, from: Other, now: impl Fn() -> SystemTime) -> Carried {
        super::read(headers, from, now).unwrap_or_default()
    }

    fn seen(headers: &HeaderMap) -> Vec<&str> {
        headers.get_all(TRACESTATE).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn a_deadline_travels_through_two_sidecars_and_the_application_between_them() {
        // From the first sidecar to the second; clocks of different machines differ.
        let mut request = with(&["other=1"]);
        write(&mut request, Carried { remaining: Some(2 * SECOND), retried: false }, Other::Peer, at(77));
        assert_eq!(seen(&request), ["eq=d:2000,other=1"]);
        let arrived = read(&request, Other::Peer, at(1000));
        assert_eq!(arrived.remaining, Some(2 * SECOND));
        // To the application, which works for half a second and then calls somebody, passing its trace on.
        write(&mut request, arrived, Other::Application, at(1000));
        assert_eq!(seen(&request), ["eq=u:1002000,other=1"]);
        let called = read(&request, Other::Application, || at(1000)() + SECOND / 2);
        assert_eq!(called.remaining, Some(SECOND * 3 / 2));
        write(&mut request, called, Other::Peer, at(1000));
        assert_eq!(seen(&request), ["eq=d:1500,other=1"]);
    }

    #[test]
    fn work_in_the_background_that_outlives_its_request_has_no_deadline() {
        let request = with(&["eq=u:1000000"]);
        assert_eq!(read(&request, Other::Application, at(999)).remaining, Some(SECOND));
        assert_eq!(read(&request, Other::Application, at(1000)).remaining, None);
        assert_eq!(read(&request, Other::Application, at(1009)).remaining, None);
    }

    #[test]
    fn the_moment_of_another_machines_clock_is_not_believed() {
        assert_eq!(read(&with(&["eq=u:1000000"]), Other::Peer, at(999)), Carried::default());
    }

    #[test]
    fn the_mark_of_a_retry_stays_on_everything_that_follows_from_it() {
        let mut request = HeaderMap::new();
        write(&mut request, Carried { remaining: None, retried: true }, Other::Peer, at(0));
        assert_eq!(seen(&request), ["eq=r:1"]);
        let carried = read(&request, Other::Peer, at(0));
        write(&mut request, carried, Other::Application, at(0));
        assert!(read(&request, Other::Application, at(0)).retried);
    }

    #[test]
    fn nonsense_says_nothing_and_other_members_keep_their_order() {
        for nonsense in ["eq=", "eq=d", "eq=d:", "eq=d:-1", "eq=d:1.5", "eq=x:1", "eq=r:0", "seq=d:1", "eq@vendor=d:1"]
        {
            assert_eq!(read(&with(&[nonsense]), Other::Application, at(0)), Carried::default(), "{nonsense}");
        }
        let mut request = with(&["a=1, eq=d:5 ,b=2", "c=3"]);
        write(&mut request, Carried::default(), Other::Peer, at(0));
        assert_eq!(seen(&request), ["a=1,b=2,c=3"]);
        let mut only_ours = with(&["eq=d:5"]);
        write(&mut only_ours, Carried::default(), Other::Peer, at(0));
        assert!(seen(&only_ours).is_empty());
    }

    #[test]
    fn a_request_without_a_trace_carries_nothing_which_is_not_the_same_as_saying_nothing() {
        assert_eq!(super::read(&HeaderMap::new(), Other::Peer, at(0)), None);
        assert_eq!(super::read(&with(&["a=1"]), Other::Peer, at(0)), Some(Carried::default()));
    }

    #[test]
    fn a_request_that_carries_nothing_is_not_touched() {
        let mut request = with(&["a=1", "b=2"]);
        write(&mut request, Carried::default(), Other::Peer, at(0));
        assert_eq!(seen(&request), ["a=1", "b=2"]);
    }

    #[test]
    fn there_are_never_more_members_than_the_specification_allows() {
        let many: Vec<String> = (0..40).map(|number| format!("v{number}=1")).collect();
        let mut request = with(&[&many.join(",")]);
        write(&mut request, Carried { remaining: Some(SECOND), retried: true }, Other::Peer, at(0));
        let members: Vec<&[u8]> = members(request.get_all(TRACESTATE).iter()).collect();
        assert_eq!((members.len(), members[0]), (MOST_MEMBERS, &b"eq=d:1000;r:1"[..]));
    }

    proptest! {
        #[test]
        fn a_strangers_bytes_never_do_more_than_shorten(line in "[ -~]{0,60}") {
            let mut request = HeaderMap::new();
            request.insert(TRACESTATE, HeaderValue::from_str(&line).unwrap());
            let carried = read(&request, Other::Application, at(1000));
            write(&mut request, carried, Other::Peer, at(1000));
            prop_assert_eq!(read(&request, Other::Peer, at(1000)).retried, carried.retried);
        }
    }
}

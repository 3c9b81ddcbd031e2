//! Single calls for people who look on: a few of the last ones are always kept, and while somebody follows, those they asked for.
//!
//! On the request path this is two comparisons. What is kept is bounded, ordinary calls are sampled twice a second and those that
//! went wrong twenty times, and nothing is kept of a query or a header that a client chose beyond what the access log tells.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use equerry_traffic::Reason;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Direction, Exchange, reason};

/// Calls of each kind that are kept.
const KEPT: usize = 64;
/// An ordinary call is kept at most this often ...
const ORDINARY: Duration = Duration::from_millis(500);
/// ... and one that went wrong this often.
const WRONG: Duration = Duration::from_millis(50);
/// Calls that may wait to be told to those who follow.
const WAITING: usize = 1_024;
/// Longest path, authority or detail that is kept, in bytes.
const LONGEST: usize = 1_024;

/// A call that ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) direction: Direction,
    pub(crate) started: SystemTime,
    pub(crate) took: Duration,
    pub(crate) upstream: Option<Duration>,
    pub(crate) source: Option<String>,
    pub(crate) destination: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) authority: String,
    pub(crate) protocol: &'static str,
    pub(crate) status: u16,
    pub(crate) reason: Reason,
    pub(crate) policy: Option<String>,
    pub(crate) route: Option<String>,
    pub(crate) tenant: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) upstream_address: Option<String>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) request_id: String,
    pub(crate) trace_id: Option<String>,
    pub(crate) tls: bool,
    pub(crate) epoch: u64,
    pub(crate) detail: Option<String>,
    /// Whose wishes it fulfils.
    pub(crate) follows: Vec<u64>,
}

/// Which calls somebody asks for: all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) source: Option<String>,
    pub(crate) destination: Option<String>,
    pub(crate) direction: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) path_prefix: Option<String>,
    /// From and to.
    pub(crate) status: Option<(u16, u16)>,
    pub(crate) reason: Option<String>,
    pub(crate) tenant: Option<String>,
    /// Only what failed or was refused.
    pub(crate) failed: bool,
}

/// Somebody who looks on.
#[derive(Debug)]
pub(crate) struct Follow {
    id: u64,
    filter: Filter,
    per_second: u64,
    /// The second, and how many were told in it.
    told: Mutex<(u64, u64)>,
}

impl Follow {
    /// Somebody who wants calls of a kind, at most so many in a second.
    pub(crate) fn new(id: u64, filter: Filter, per_second: u64) -> Self {
        Self { id, filter, per_second, told: Mutex::default() }
    }

    fn has_room(&self, second: u64) -> bool {
        let mut told = locked(&self.told);
        if told.0 != second {
            *told = (second, 0);
        }
        told.1 += 1;
        told.1 <= self.per_second
    }
}

/// Where single calls are kept and told. Shared by all workers.
#[derive(Debug)]
pub(crate) struct Lookout {
    began: Instant,
    /// When the next of each kind is kept, in nanoseconds since `began`.
    next_ordinary: AtomicU64,
    next_wrong: AtomicU64,
    kept: Mutex<[VecDeque<Sample>; 2]>,
    followed: AtomicBool,
    follows: Mutex<Vec<Follow>>,
    to_followers: Sender<Sample>,
    told: Mutex<Option<Receiver<Sample>>>,
    dropped: AtomicU64,
}

impl Lookout {
    pub(crate) fn new() -> Self {
        let (to_followers, told) = channel(WAITING);
        Self {
            began: Instant::now(),
            next_ordinary: AtomicU64::new(0),
            next_wrong: AtomicU64::new(0),
            kept: Mutex::default(),
            followed: AtomicBool::new(false),
            follows: Mutex::default(),
            to_followers,
            told: Mutex::new(Some(told)),
            dropped: AtomicU64::new(0),
        }
    }

    /// An exchange ended.
    pub(super) fn saw(&self, exchange: &Exchange) {
        let wrong = went_wrong(exchange.reason, exchange.status);
        let ended = (exchange.started + exchange.duration).saturating_duration_since(self.began);
        let now = u64::try_from(ended.as_nanos()).unwrap_or(u64::MAX);
        let (next, pause) = if wrong { (&self.next_wrong, WRONG) } else { (&self.next_ordinary, ORDINARY) };
        let due = next.load(Ordering::Relaxed);
        if now >= due {
            let later = now.saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX));
            if next.compare_exchange(due, later, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.keep(Sample::of(exchange), wrong);
            }
        }
        if self.followed.load(Ordering::Relaxed) {
            self.tell(exchange, now / 1_000_000_000);
        }
    }

    fn keep(&self, sample: Sample, wrong: bool) {
        let mut kept = locked(&self.kept);
        let ring = &mut kept[usize::from(wrong)];
        if ring.len() >= KEPT {
            ring.pop_front();
        }
        ring.push_back(sample);
    }

    fn tell(&self, exchange: &Exchange, second: u64) {
        let wanted = |follow: &&Follow| follow.filter.wants(exchange);
        let (mut follows, mut too_many) = (Vec::new(), 0);
        for follow in locked(&self.follows).iter().filter(wanted) {
            if follow.has_room(second) {
                follows.push(follow.id);
            } else {
                too_many += 1;
            }
        }
        if !follows.is_empty() && self.to_followers.try_send(Sample { follows, ..Sample::of(exchange) }).is_err() {
            too_many += 1;
        }
        if too_many > 0 {
            self.dropped.fetch_add(too_many, Ordering::Relaxed);
        }
    }

    /// From now on these look on, and nobody else.
    pub(crate) fn follow(&self, follows: Vec<Follow>) {
        let any = !follows.is_empty();
        let mut now = locked(&self.follows);
        *now = follows;
        self.followed.store(any, Ordering::Relaxed);
    }

    /// Whom somebody looks on as, by id.
    pub(crate) fn followers(&self) -> Vec<u64> {
        locked(&self.follows).iter().map(|follow| follow.id).collect()
    }

    /// The last calls of a kind that were kept, the newest first.
    pub(crate) fn recent(&self, filter: &Filter, limit: usize) -> Vec<Sample> {
        let kept = locked(&self.kept);
        let mut found: Vec<Sample> =
            kept.iter().flatten().filter(|sample| filter.wants_sample(sample)).cloned().collect();
        found.sort_by_key(|sample| std::cmp::Reverse(sample.started));
        found.truncate(limit);
        found
    }

    /// Calls that were wanted and not told, because there were too many.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Where the calls come out that somebody follows; given once.
    pub(crate) fn told(&self) -> Option<Receiver<Sample>> {
        locked(&self.told).take()
    }
}

/// Whether a call failed or was refused.
pub(crate) fn went_wrong(reason: Reason, status: u16) -> bool {
    reason != Reason::Ok || status >= 500
}

/// Whether nobody but this side of the mesh or the application is to blame for how a call ended.
pub(crate) fn failed(reason: Reason, status: u16) -> bool {
    match reason {
        Reason::Ok => status >= 500,
        // The caller left, or sent what nobody understands.
        Reason::ClientGone | Reason::BadRequest | Reason::TooLarge | Reason::ClientSlow => false,
        Reason::NoRoute | Reason::NoSuchPort | Reason::NoService => false,
        other => !refused(other),
    }
}

/// Whether a policy, a token or a quota refused a call.
pub(crate) fn refused(reason: Reason) -> bool {
    matches!(reason.http_status(), 401 | 403 | 429)
}

impl Sample {
    fn of(exchange: &Exchange) -> Self {
        let of_http = |text: &str| (!exchange.tunnel).then(|| cut(text));
        let trace = exchange.traceparent.as_ref().and_then(|value| value.to_str().ok()?.split('-').nth(1));
        Self {
            direction: exchange.direction,
            started: SystemTime::now().checked_sub(exchange.duration).unwrap_or(SystemTime::UNIX_EPOCH),
            took: exchange.duration,
            upstream: exchange.upstream_time,
            source: exchange.source.as_ref().map(|id| format!("{}/{}", id.namespace, id.account)),
            destination: exchange.destination.as_ref().map(ToString::to_string),
            method: of_http(exchange.method.as_str()),
            path: of_http(exchange.target.path()),
            authority: cut(&String::from_utf8_lossy(exchange.authority.as_bytes())),
            protocol: if exchange.tunnel { "TCP" } else { reason::protocol(exchange.protocol) },
            status: exchange.status,
            reason: exchange.reason,
            policy: exchange.policy_rule.as_deref().map(cut),
            route: exchange.route.as_deref().map(cut),
            tenant: exchange.tenant.as_ref().map(ToString::to_string),
            attempts: exchange.attempts,
            upstream_address: exchange.upstream_address.map(|address| address.to_string()),
            bytes_in: exchange.bytes_in,
            bytes_out: exchange.bytes_out,
            request_id: cut(&String::from_utf8_lossy(exchange.request_id.as_bytes())),
            trace_id: trace.map(cut),
            tls: exchange.tls,
            epoch: exchange.epoch,
            detail: exchange.detail.as_deref().map(cut),
            follows: Vec::new(),
        }
    }
}

/// A text, cut at a character.
fn cut(text: &str) -> String {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

impl Filter {
    /// Asked of every exchange while somebody follows: what is cheap is asked first.
    fn wants(&self, exchange: &Exchange) -> bool {
        self.status_and_reason(exchange.status, exchange.reason)
            && is(self.direction.as_deref(), Some(exchange.direction.as_str()))
            && is(self.method.as_deref(), (!exchange.tunnel).then_some(exchange.method.as_str()))
            && self.path_prefix.as_ref().is_none_or(|path| !exchange.tunnel && exchange.target.path().starts_with(path))
            && is(self.tenant.as_deref(), exchange.tenant.as_ref().map(|tenant| tenant.as_str()))
            && self.destination.as_ref().is_none_or(|wanted| {
                exchange
                    .destination
                    .as_ref()
                    .is_some_and(|known| pair(wanted, known.namespace.as_str(), known.name.as_str()))
            })
            && self.source.as_ref().is_none_or(|wanted| {
                exchange
                    .source
                    .as_ref()
                    .is_some_and(|known| pair(wanted, known.namespace.as_str(), known.account.as_str()))
            })
    }

    fn wants_sample(&self, sample: &Sample) -> bool {
        self.status_and_reason(sample.status, sample.reason)
            && is(self.direction.as_deref(), Some(sample.direction.as_str()))
            && is(self.method.as_deref(), sample.method.as_deref())
            && self
                .path_prefix
                .as_ref()
                .is_none_or(|prefix| sample.path.as_ref().is_some_and(|path| path.starts_with(prefix)))
            && is(self.tenant.as_deref(), sample.tenant.as_deref())
            && is(self.destination.as_deref(), sample.destination.as_deref())
            && is(self.source.as_deref(), sample.source.as_deref())
    }

    fn status_and_reason(&self, status: u16, reason: Reason) -> bool {
        self.status.is_none_or(|(from, to)| (from..=to).contains(&status))
            && is(self.reason.as_deref(), Some(reason.as_str()))
            && (!self.failed || went_wrong(reason, status))
    }
}

/// Whether what is found is what is wanted, if anything is.
fn is(wanted: Option<&str>, found: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| found == Some(wanted))
}

/// Whether a text is `first/second`.
fn pair(text: &str, first: &str, second: &str) -> bool {
    text.split_once('/') == Some((first, second))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "lookout_tests.rs"]
mod tests;

//! What watches over an exchange whose response has begun: when it must have ended, for how long nothing may pass, for how
//! long its caller may take nothing, and how much may pass.
//!
//! Most responses are here whole before anybody has to wait. So a timer is made only where somebody is waited for.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use equerry_policies::compile::RouteRule;
use equerry_traffic::Refusal;
use equerry_traffic::balance::Verdict;
use equerry_traffic::deadline::{Authors, Deadline, Kind, Pace, Rest};
use equerry_traffic::retry;
use http::HeaderMap;
use http_body::Body;
use tokio::time::Sleep;

use super::attempt::patience;
use super::between::{self, Counting};
use super::facts::Record;
use super::now;
use super::standing::Standing;
use super::tries::{self, Answered, Errand};
use crate::codec::Seldom;
use crate::live::Backend;
use crate::upstream::Told;

/// The limits on the rest of one exchange.
pub(crate) struct Watch {
    rest: Rest,
    kind: Kind,
    /// Bytes of the response that may still pass.
    allowed: u64,
    /// The caller has seen data.
    has_begun: bool,
    /// It is a gRPC call whose status has not come.
    owes_status: bool,
    /// Since when the next piece is waited for.
    waiting_since: Option<Instant>,
    /// Since when the caller takes nothing of what waits for it.
    blocked_since: Option<Instant>,
    /// How fast it comes and goes, once somebody was waited for.
    paces: Option<Box<Paces>>,
    /// Its head said how long it is, and silence has an end: whoever sends it may not crawl.
    declared: bool,
    /// The request's body, which may still be coming: then nothing stands still.
    told: Option<Rc<Told>>,
    alarm: Option<Seldom<Pin<Box<Sleep>>>>,
    /// The endpoint that is judged by how the response ends.
    unjudged: Option<usize>,
    /// Who set the limits, where they are written down.
    rule: Option<Arc<RouteRule>>,
    backend: Option<Arc<Backend>>,
    /// What let it in, where it may outlast that.
    standing: Option<Box<Standing>>,
    /// How large it is, where its head does not say that.
    counting: Option<Box<Counting>>,
}

/// How fast a response comes and goes. Apart, because most need it never.
#[derive(Default)]
struct Paces {
    /// Of the caller, who takes it.
    reader: Pace,
    /// Of whoever sends it.
    writer: Pace,
}

impl Watch {
    /// Begins with the head of the response to an errand.
    ///
    /// # Errors
    /// When the head says already that there is too much.
    pub(crate) fn over(answered: &Answered, errand: &Errand<'_>, told: Option<Rc<Told>>) -> Result<Self, Refusal> {
        let traffic = &errand.backend.traffic;
        let kind = errand.kind.answered(answered.status(), answered.headers());
        let rest = errand.deadline.after_head(kind, errand.began, traffic);
        let allowed = traffic.limits.response_bytes.unwrap_or(u64::MAX);
        let says_something = |rule: &&Arc<RouteRule>| rule.request_timeout.is_some() || rule.retry.is_some();
        let rule = errand.rule.filter(says_something).cloned();
        let unjudged = errand.unjudged.get();
        let backend = (traffic.name.is_some() || unjudged.is_some()).then(|| Arc::clone(errand.backend));
        if let Some(told) = &told {
            // Nobody will send it again.
            told.whole.replace(None);
        }
        let owes_status = owes_status(kind, answered);
        let counting = between::note(answered, kind, errand.backend);
        // A stream says nothing for as long as it likes, and whoever does not say how much comes may be one.
        let declared = rest.idle.is_some() && !kind.is_streaming() && answered.body().size_hint().exact().is_some();
        let watch =
            Self { allowed, owes_status, told, unjudged, rule, backend, counting, declared, ..Self::with(rest, kind) };
        match answered.body().size_hint().exact() {
            Some(length) if length > allowed => Err(watch.too_large()),
            _ => Ok(watch),
        }
    }

    /// Begins at the callee, where nobody's policy is known but how long the caller will wait.
    pub(crate) fn at_callee(answered: &Answered, deadline: &Deadline, kind: Kind, began: Instant) -> Self {
        let kind = kind.answered(answered.status(), answered.headers());
        let owes_status = owes_status(kind, answered);
        Self { owes_status, ..Self::with(deadline.after_head_at_callee(kind, began), kind) }
    }

    /// The same, over what may outlast that which let it in.
    pub(crate) fn standing(mut self, standing: Option<Box<Standing>>) -> Self {
        self.standing = standing;
        self
    }

    /// Keeps the headers of what let it in, where they are needed, out of a map that can be used again.
    pub(crate) fn keep(&mut self, headers: &mut HeaderMap) {
        if let Some(standing) = &mut self.standing {
            standing.keep(headers);
        }
    }

    /// What let it in, for whoever goes on with its connection.
    pub(crate) fn take_standing(&mut self) -> Option<Box<Standing>> {
        self.standing.take()
    }

    /// Whether it may go on at all.
    ///
    /// # Errors
    /// When what let it in lets it in no more.
    pub(crate) fn stands(&mut self, cx: &mut Context<'_>) -> Result<(), Refusal> {
        let Some(standing) = &mut self.standing else { return Ok(()) };
        standing.poll(cx).inspect_err(|_| self.standing = None)
    }

    /// Over a connection that is made now, for bytes.
    pub(crate) fn over_connection(backend: &Arc<Backend>) -> Self {
        let began = now();
        let rest = Deadline::after(began, None).after_head(Kind::Upgrade, began, &backend.traffic);
        let backend = backend.traffic.name.is_some().then(|| Arc::clone(backend));
        Self { backend, ..Self::with(rest, Kind::Upgrade) }
    }

    /// Over an answer to which nothing can happen but that nobody takes it.
    pub(crate) fn over_sending() -> Self {
        let began = now();
        Self::with(Deadline::after(began, None).after_head_at_callee(Kind::Unary, began), Kind::Unary)
    }

    fn with(rest: Rest, kind: Kind) -> Self {
        let (allowed, has_begun, told, alarm, rule, backend) = (u64::MAX, false, None, None, None, None);
        let (waiting_since, blocked_since, unjudged) = (None, None, None);
        Self {
            rest,
            kind,
            allowed,
            has_begun,
            owes_status: false,
            waiting_since,
            blocked_since,
            paces: None,
            declared: false,
            told,
            alarm,
            unjudged,
            rule,
            backend,
            standing: None,
            counting: None,
        }
    }

    /// When a connection that goes on without HTTP must end, and who says so.
    pub(crate) fn into_rest(self) -> (Rest, Option<Arc<RouteRule>>, Option<Arc<Backend>>) {
        (self.rest, self.rule, self.backend)
    }

    /// Whether it is a gRPC call, which can be told of its end in trailers.
    pub(crate) fn is_grpc(&self) -> bool {
        self.kind == Kind::Grpc
    }

    /// The response ends here.
    ///
    /// # Errors
    /// When it is a gRPC call without a status, which nobody may take for a success.
    pub(crate) fn ends(&mut self, record: &Record) -> Result<(), Refusal> {
        if !std::mem::take(&mut self.owes_status) {
            return Ok(());
        }
        self.ended(Verdict::Failure, record);
        Err(Refusal::UpstreamReset { detail: "the call ended without a gRPC status".to_owned() })
    }

    /// Whether it is a gRPC call whose status has not come.
    pub(crate) fn owes_status(&self) -> bool {
        self.owes_status
    }

    /// So many bytes have passed.
    ///
    /// # Errors
    /// When that is too much.
    pub(crate) fn passed(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.waiting_since = None;
        self.has_begun |= bytes > 0;
        if let Some(Paces { writer, .. }) = self.paces.as_deref_mut().filter(|_| self.declared) {
            writer.moves(bytes);
            if writer.is_waiting() {
                writer.rests(patience(), now());
                writer.judge(patience()).map_err(Refusal::AnswersTooSlowly)?;
            }
        }
        if let Some(counting) = &mut self.counting {
            counting.bytes += bytes;
        }
        match self.allowed.checked_sub(bytes) {
            Some(left) => {
                self.allowed = left;
                Ok(())
            }
            None => Err(self.too_large()),
        }
    }

    /// The response has ended so, unless that was the caller's doing: for an endpoint that is judged by it.
    pub(crate) fn ended(&mut self, verdict: Verdict, record: &Record) {
        self.ended_asking(verdict, None, record);
    }

    /// These trailers have come. Where a gRPC call failed by them, that is how it has ended.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap, record: &Record) {
        let Some(status) = retry::status(trailers).filter(|_| self.is_grpc()) else { return };
        self.owes_status = false;
        let verdict = Verdict::of_grpc(status);
        let alone = if verdict == Verdict::Success { None } else { tries::asked_alone(Some(trailers)) };
        self.ended_asking(verdict, alone, record);
    }

    fn ended_asking(&mut self, verdict: Verdict, alone: Option<Duration>, record: &Record) {
        let own_fault = self.told.as_ref().is_none_or(|told| told.broke_off.get().is_none());
        if let (Some(index), Some(backend), true) = (self.unjudged.take(), &self.backend, own_fault) {
            tries::judge_end(backend, index, (verdict, alone), record);
        }
    }

    /// Whether these trailers hold a status that a retry would be for, had the caller not seen data already.
    pub(crate) fn comes_too_late(&self, trailers: &HeaderMap) -> bool {
        let retry =
            self.rule.as_ref().and_then(|rule| rule.retry.as_ref()).filter(|_| self.is_grpc() && self.has_begun);
        let code = retry::status(trailers).and_then(retry::http_code);
        retry.zip(code).is_some_and(|(retry, code)| retry.codes.contains(&code))
    }

    /// The next piece is asked for: the caller has taken what there was.
    pub(crate) fn asks(&mut self) {
        if let Some(Paces { reader, .. }) = self.paces.as_deref_mut()
            && reader.is_waiting()
        {
            reader.rests(patience(), now());
        }
    }

    /// The next piece is waited for.
    ///
    /// # Errors
    /// When that has taken too long, or the exchange has.
    pub(crate) fn waits(&mut self, cx: &mut Context<'_>) -> Result<(), Refusal> {
        if self.rest.idle.is_none() && self.rest.end.at.is_none() {
            return Ok(());
        }
        let since = *self.waiting_since.get_or_insert_with(now);
        let request = self.told.as_ref().and_then(|told| told.moved.get());
        if self.declared && self.told.as_ref().is_none_or(|told| told.ended.get().is_some()) {
            self.paces.get_or_insert_default().writer.begins(since);
        }
        let since = request.map_or(since, |moved| moved.max(since));
        let stands_still = self.rest.idle.and_then(|idle| since.checked_add(idle));
        self.in_time(stands_still, Rest::stood_still, cx)
    }

    /// The caller takes nothing of what waits for it; so many bytes have `moved` since this was said last.
    ///
    /// # Errors
    /// When that has taken too long, the exchange has, or the caller crawls.
    pub(crate) fn blocked(&mut self, moved: u64, cx: &mut Context<'_>) -> Result<(), Refusal> {
        if moved > 0 {
            self.blocked_since = None;
        }
        self.stands(cx)?;
        let since = *self.blocked_since.get_or_insert_with(now);
        if self.rest.unread.is_some() {
            let reader = &mut self.paces.get_or_insert_default().reader;
            reader.waits(moved, patience(), now()).map_err(Refusal::ReadsTooSlowly)?;
        }
        let given_up = self.rest.unread.and_then(|unread| since.checked_add(unread));
        self.in_time(given_up, Rest::nobody_reads, cx)
    }

    /// Sets the alarm to the end of the exchange or `still`, whichever is earlier, unless that has come.
    fn in_time(
        &mut self,
        still: Option<Instant>,
        why: fn(&Rest) -> Refusal,
        cx: &mut Context<'_>,
    ) -> Result<(), Refusal> {
        let Some(due) = self.rest.end.at.into_iter().chain(still).min() else { return Ok(()) };
        let alarm = self.alarm.get_or_insert_with(|| Seldom::new(Box::pin(tokio::time::sleep_until(due.into()))));
        if alarm.future().deadline() > due.into() {
            alarm.change().as_mut().reset(due.into());
        }
        while alarm.is_over(cx) {
            let now = now();
            if due <= now {
                let over = self.rest.end.at.is_some_and(|end| end <= now);
                let refusal = if over { self.rest.end.passed() } else { why(&self.rest) };
                return Err(self.signed(refusal));
            }
            // Something has passed meanwhile.
            alarm.change().as_mut().reset(due.into());
        }
        Ok(())
    }

    fn signed(&self, refusal: Refusal) -> Refusal {
        let policy = self.backend.as_ref().map(|backend| &backend.traffic);
        refusal.signed(&Authors { rule: self.rule.as_deref(), policy })
    }

    fn too_large(&self) -> Refusal {
        let traffic = self.backend.as_ref().map(|backend| &backend.traffic);
        let limit = traffic.and_then(|traffic| traffic.limits.response_bytes).unwrap_or(u64::MAX);
        let policy = traffic.and_then(|traffic| traffic.name.as_ref()).map(ToString::to_string).unwrap_or_default();
        Refusal::ResponseTooLarge { limit, policy: policy.into() }
    }
}

fn owes_status(kind: Kind, answered: &Answered) -> bool {
    kind == Kind::Grpc && retry::owes_status(answered.status(), answered.headers())
}

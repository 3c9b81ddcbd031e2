//! What is known of one exchange, told to the observer once: when its response has been sent, or when it ends early.
//!
//! The record travels with the exchange. Whoever drops it has ended the exchange; until somebody says otherwise, the
//! cause is that the caller went away, whose status in logs and metrics is nginx's 499.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use equerry_traffic::{Reason, texts};
use http::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::request::Parts;
use http::uri::PathAndQuery;

use super::now;
use crate::live::Live;
use crate::observe::trace::{self, TRACEPARENT, TryOutcome};
use crate::observe::{Direction, Exchange, Logged, Observer, Sheet, Trace};

/// Names one request across all who handle it.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// A longer id is not an id; it is replaced.
const LONGEST_REQUEST_ID: usize = 128;

/// Descriptions kept by each thread for the next: as many exchanges as wait for their answers together. The allocator keeps seven
/// at hand, and looks for the others.
const SHEETS: usize = 64;
/// So many stay where nothing is asked.
const FEW_SHEETS: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Sheet>> = const { RefCell::new(Vec::new()) };
}

/// Lets go of what this thread keeps beyond a few descriptions; whether there were any.
pub(crate) fn put_down() -> bool {
    SPARE.with_borrow_mut(|spare| {
        let more = spare.len() > FEW_SHEETS;
        spare.truncate(FEW_SHEETS);
        more
    })
}

/// The record of one exchange.
#[derive(Debug)]
pub(crate) struct Record {
    /// `None`: nobody is told of it.
    open: Option<Sheet>,
    observe: Observer,
    /// Made when there is a body to count.
    received: OnceCell<Rc<Cell<u64>>>,
}

impl Record {
    /// Opens the record of the exchange that `about` begins to describe.
    pub(crate) fn open(about: Exchange, observe: &Observer) -> Self {
        Self::on(observe, |sheet| *sheet = Some(about))
    }

    /// The record of what `describe` writes, where it stays: a description is large.
    fn on(observe: &Observer, describe: impl FnOnce(&mut Option<Exchange>)) -> Self {
        let mut sheet = SPARE.with_borrow_mut(|spare| {
            if spare.is_empty() {
                observe.blank_sheets(spare);
            }
            spare.pop().unwrap_or_default()
        });
        describe(&mut sheet);
        Self { open: Some(sheet), observe: observe.clone(), received: OnceCell::new() }
    }

    /// When the exchange began.
    pub(crate) fn began(&self) -> Instant {
        let exchange = self.open.as_deref().and_then(Option::as_ref);
        exchange.map_or_else(now, |exchange| exchange.started)
    }

    /// The record of an exchange that nobody is told of: a copy of another one.
    pub(crate) fn untold(observe: &Observer) -> Self {
        Self { open: None, observe: observe.clone(), received: OnceCell::new() }
    }

    /// Changes what is known.
    pub(crate) fn note(&mut self, change: impl FnOnce(&mut Exchange)) {
        if let Some(open) = self.open.as_deref_mut().and_then(Option::as_mut) {
            change(open);
        }
    }

    /// How it ended, and with which status.
    pub(crate) fn ended(&mut self, reason: Reason, status: u16) {
        self.note(|exchange| (exchange.reason, exchange.status) = (reason, status));
    }

    /// How it ended, its status having been sent.
    pub(crate) fn broke(&mut self, reason: Reason) {
        self.note(|exchange| exchange.reason = reason);
    }

    /// Holds on to what the access log is to say of a request beside the usual.
    pub(crate) fn asked_with(&mut self, live: &Live, headers: &HeaderMap) {
        let Some(asked) = live.workload.as_ref().and_then(|workload| workload.access_log.as_ref()) else { return };
        if self.observe.logs() {
            self.note(|exchange| exchange.logged = Some(Logged::of(asked, headers)));
        }
    }

    /// What is held on to so, to add to it.
    pub(crate) fn logged(&mut self) -> Option<&mut Logged> {
        self.open.as_deref_mut()?.as_mut()?.logged.as_deref_mut()
    }

    /// Whether whoever asks is in the mesh: another sidecar.
    pub(crate) fn is_between_sidecars(&self) -> bool {
        let exchange = self.open.as_deref().and_then(Option::as_ref);
        exchange.is_some_and(|exchange| exchange.direction == Direction::Inbound && exchange.source.is_some())
    }

    /// Bytes sent to the caller.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.note(|exchange| exchange.bytes_out += bytes as u64);
    }

    /// Bytes of the caller's body are counted here.
    pub(crate) fn received(&self) -> Rc<Cell<u64>> {
        Rc::clone(self.received.get_or_init(Rc::default))
    }

    /// The id of the request, for the body of a refusal.
    pub(crate) fn request_id(&self) -> &str {
        let exchange = self.open.as_deref().and_then(Option::as_ref);
        exchange.and_then(|exchange| exchange.request_id.to_str().ok()).unwrap_or_default()
    }

    /// When the exchange began, where somebody is told of it.
    pub(crate) fn started(&self) -> Option<Instant> {
        self.open.as_deref()?.as_ref().map(|exchange| exchange.started)
    }

    fn trace(&mut self) -> Option<&mut Trace> {
        self.open.as_deref_mut()?.as_mut()?.trace.as_deref_mut()
    }

    /// A try goes out with these headers, in which it is told its part in the trace.
    pub(crate) fn begins_try(&mut self, began: Instant, address: SocketAddr, headers: &mut HeaderMap) {
        if let Some(trace) = self.trace() {
            trace.begins_try(began, address, headers);
        }
    }

    /// The last try came back.
    pub(crate) fn ends_try(&mut self, ended: Instant, outcome: TryOutcome) {
        if let Some(trace) = self.trace() {
            trace.ends_try(ended, outcome);
        }
    }

    /// Who is told of retries, breakers and quotas.
    pub(crate) fn observe(&self) -> &Observer {
        &self.observe
    }
}

thread_local! {
    /// Why whatever is dropped at this moment is, and in which words.
    static CUT: RefCell<Option<(Reason, String)>> = const { RefCell::new(None) };
}

/// Drops exchanges that are under way: those whose end nobody has told end for this reason.
pub(crate) fn cut(reason: Reason, why: &str, drop_them: impl FnOnce()) {
    CUT.set(Some((reason, why.to_owned())));
    drop_them();
    CUT.set(None);
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(mut sheet) = self.open.take() else { return };
        if let Some(exchange) = sheet.as_mut() {
            if exchange.reason == Reason::ClientGone
                && let Some((reason, why)) = CUT.with_borrow(Clone::clone)
            {
                (exchange.reason, exchange.detail) = (reason, Some(why));
            }
            if exchange.status == 0 && !exchange.tunnel {
                // Nobody was there to be told a status; logs call that 499.
                exchange.status = exchange.reason.http_status();
            }
            exchange.bytes_in = self.received.get().map_or(0, |received| received.get());
            exchange.duration = now().saturating_duration_since(exchange.started);
        }
        let Some(sheet) = self.observe.finished(sheet) else { return };
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SHEETS {
                spare.push(sheet);
            }
        });
    }
}

/// Opens the record of an exchange that its head begins to describe, and takes part in its trace.
pub(crate) fn open(direction: Direction, parts: &mut Parts, peer_address: SocketAddr, observe: &Observer) -> Record {
    let begun = observe.tracer().map(|tracer| tracer.begin(direction, &mut parts.headers, SystemTime::now()));
    Record::on(observe, |sheet| {
        let about = sheet.insert(describe(direction, parts, peer_address));
        if let Some((trace, told)) = begun {
            (about.trace, about.traceparent) = (trace, Some(told));
        }
    })
}

/// Starts the description of an exchange: what its head says, before anything is decided.
pub(crate) fn describe(direction: Direction, parts: &mut Parts, peer_address: SocketAddr) -> Exchange {
    let Given { request_id: id, traceparent: trace, b3, user_agent, x_forwarded_for } = Given::by(&parts.headers);
    let request_id = request_id(id, &mut parts.headers);
    let traceparent = traceparent(trace, b3, &mut parts.headers);
    Exchange {
        direction,
        started: now(),
        duration: std::time::Duration::ZERO,
        upstream_time: None,
        epoch: 0,
        method: parts.method.clone(),
        target: PathAndQuery::from_static("/"),
        authority: HeaderValue::from_static(""),
        protocol: parts.version,
        tunnel: false,
        upgrade: None,
        status: 0,
        reason: Reason::ClientGone,
        bytes_in: 0,
        bytes_out: 0,
        source: None,
        destination: None,
        destination_principal: None,
        route: None,
        policy_rule: None,
        noted: None,
        tenant: None,
        attempts: 0,
        retry_outcome: None,
        upstream_address: None,
        upstream_protocol: None,
        peer_address,
        request_id,
        traceparent: Some(traceparent),
        trace: None,
        tls: false,
        user_agent,
        x_forwarded_for,
        sni: None,
        detail: None,
        logged: None,
        copies: None,
    }
}

/// What a head says about itself. One walk finds it: to look for each name costs a hash.
#[derive(Default)]
struct Given {
    request_id: Option<HeaderValue>,
    /// `None` also where there are several.
    traceparent: Option<HeaderValue>,
    /// There are headers of B3.
    b3: bool,
    user_agent: Option<HeaderValue>,
    x_forwarded_for: Option<HeaderValue>,
}

impl Given {
    fn by(headers: &HeaderMap) -> Self {
        let (mut given, mut traces) = (Self::default(), 0);
        for (name, value) in headers {
            given.b3 |= name.as_str() == "b3" || name.as_str().starts_with("x-b3-");
            let place = match name.as_str().len() {
                10 if *name == USER_AGENT => &mut given.user_agent,
                11 if *name == TRACEPARENT => {
                    traces += 1;
                    &mut given.traceparent
                }
                12 if *name == REQUEST_ID => &mut given.request_id,
                15 if *name == X_FORWARDED_FOR => &mut given.x_forwarded_for,
                _ => continue,
            };
            if place.is_none() {
                *place = Some(value.clone());
            }
        }
        given.traceparent.take_if(|_| traces > 1);
        given
    }
}

/// The caller's id if it is one, else a new one; forwarded either way.
fn request_id(given: Option<HeaderValue>, headers: &mut HeaderMap) -> HeaderValue {
    let is_one = |id: &HeaderValue| (1..=LONGEST_REQUEST_ID).contains(&id.len()) && id.to_str().is_ok();
    given.filter(is_one).unwrap_or_else(|| set(headers, REQUEST_ID, &new_request_id()))
}

/// Sets a header to a text, which header and record then share.
fn set(headers: &mut HeaderMap, name: HeaderName, text: &[u8]) -> HeaderValue {
    let value = texts::header_value(&[text]).unwrap_or(HeaderValue::from_static(""));
    headers.insert(name, value.clone());
    value
}

/// A random UUID (RFC 9562 version 4). It names a request and protects nothing, so any randomness will do.
fn new_request_id() -> [u8; 36] {
    let random = fastrand::u128(..);
    let versioned = random & !(0xf000_u128 << 64) | (0x4000_u128 << 64);
    let id = versioned & !(0xc000_u128 << 48) | (0x8000_u128 << 48);
    let digits = hex(id);
    let mut text = *b"........-....-....-....-............";
    for (group, from) in [(0..8, 0), (9..13, 8), (14..18, 12), (19..23, 16), (24..36, 20)] {
        let length = group.len();
        text[group].copy_from_slice(&digits[from..from + length]);
    }
    text
}

/// The digits of a number, eight at a time. Formatting it takes twenty times as long, at every request.
fn hex(number: u128) -> [u8; 32] {
    let mut text = [0; 32];
    for (digits, bytes) in text.as_chunks_mut::<8>().0.iter_mut().zip(number.to_be_bytes().as_chunks::<4>().0) {
        *digits = hex_word(u32::from_be_bytes(*bytes));
    }
    text
}

/// Each half of a byte in a byte of its own, and then what makes a digit of it.
fn hex_word(word: u32) -> [u8; 8] {
    const EACH: u64 = u64::from_le_bytes([1; 8]);
    let mut halves = u64::from(word);
    halves = (halves << 16 | halves) & 0x0000_ffff_0000_ffff;
    halves = (halves << 8 | halves) & 0x00ff_00ff_00ff_00ff;
    halves = (halves << 4 | halves) & (EACH * 0xf);
    // Of 10 and above, adding 6 sets the fifth bit.
    let letters = (halves + EACH * 6) >> 4 & EACH;
    (halves + EACH * u64::from(b'0') + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

/// The trace this request belongs to. A well-formed `traceparent` is forwarded as it is; one of B3 is told in W3C's form too;
/// else a new trace begins, to be sampled as OpenTelemetry's SDKs sample a root by default.
fn traceparent(given: Option<HeaderValue>, b3: bool, headers: &mut HeaderMap) -> HeaderValue {
    if let Some(only) = given
        && only.to_str().is_ok_and(is_traceparent)
    {
        return only;
    }
    let begun = || (fastrand::u128(1..), fastrand::u64(1..), true);
    let told = if b3 { trace::w3c_of_b3(headers) } else { None };
    let (trace, span, sampled) = told.unwrap_or_else(begun);
    let mut made = *b"00-................................-................-01";
    made[3..35].copy_from_slice(&hex(trace));
    made[36..52].copy_from_slice(&hex(u128::from(span))[16..]);
    made[54] = b'0' + u8::from(sampled);
    set(headers, TRACEPARENT, &made)
}

/// `VERSION-TRACE-SPAN-FLAGS` in lower-case hex, neither id all zeros (W3C Trace Context section 3.2.2).
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
    };
    let zeros = |part: &str| part.bytes().all(|c| c == b'0');
    let mut parts = text.splitn(4, '-');
    let (Some(version), Some(trace), Some(span), Some(flags)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && !zeros(trace)
        && hex(span, 16)
        && !zeros(span)
        && (if version == "00" { hex(flags, 2) } else { flags.get(..2).is_some_and(|flags| hex(flags, 2)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{AccessLogTarget, ObserverOptions, SERIES_CAP};

    fn identified(headers: &mut HeaderMap) -> HeaderValue {
        request_id(Given::by(headers).request_id, headers)
    }

    fn traced(headers: &mut HeaderMap) -> HeaderValue {
        let given = Given::by(headers);
        traceparent(given.traceparent, given.b3, headers)
    }

    #[test]
    fn descriptions_kept_for_a_load_that_is_over_are_let_go_but_for_a_few() {
        let options = ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP };
        let observe = Observer::new(options).unwrap();
        let mut parts = http::Request::new(()).into_parts().0;
        let mut open = || Record::open(describe(Direction::Inbound, &mut parts, ([127, 0, 0, 1], 1).into()), &observe);
        drop((0..2 * SHEETS).map(|_| open()).collect::<Vec<_>>());
        let kept = || SPARE.with_borrow(Vec::len);
        assert_eq!(kept(), SHEETS);
        assert!(put_down());
        assert_eq!(kept(), FEW_SHEETS);
        assert!(!put_down());
    }

    #[test]
    fn an_exchange_is_shown_without_its_query_and_headers() {
        let mut parts = http::Request::new(()).into_parts().0;
        parts.headers.insert(USER_AGENT, HeaderValue::from_static("sesame"));
        let mut about = describe(Direction::Inbound, &mut parts, ([127, 0, 0, 1], 1).into());
        about.target = PathAndQuery::from_static("/a?access_token=sesame");
        let shown = format!("{about:?}");
        assert!(shown.contains("\"/a\"") && !shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn a_request_id_is_kept_when_it_is_one_and_made_when_it_is_not() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("abc-1"));
        assert_eq!(identified(&mut headers), "abc-1");
        headers.insert(REQUEST_ID, HeaderValue::from_str(&"x".repeat(200)).unwrap());
        let made = identified(&mut headers);
        assert_eq!(headers[&REQUEST_ID], made);
        let groups: Vec<usize> = made.to_str().unwrap().split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert!(made.as_bytes()[14] == b'4' && b"89ab".contains(&made.as_bytes()[19]), "{made:?}");
    }

    #[test]
    fn digits_are_those_that_formatting_gives() {
        for number in [0, 1, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210, u128::MAX, fastrand::u128(..)] {
            assert_eq!(hex(number), format!("{number:032x}").as_bytes());
        }
    }

    #[test]
    fn a_trace_that_b3_names_goes_on_in_w3cs_form() {
        for (flag, given) in [("01", "-1"), ("01", ""), ("00", "-0")] {
            let mut headers = HeaderMap::new();
            let b3 = format!("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7{given}");
            headers.insert("b3", HeaderValue::from_str(&b3).unwrap());
            let told = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flag}");
            assert_eq!((traced(&mut headers).to_str().unwrap(), &headers["b3"]), (told.as_str(), &b3.parse().unwrap()));
        }
    }

    #[test]
    fn a_trace_is_continued_when_it_is_well_formed_and_begun_when_it_is_not() {
        const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(GIVEN));
        assert_eq!(traced(&mut headers), GIVEN);
        assert_eq!(headers[TRACEPARENT], GIVEN);
        for bad in [
            "",
            "00-0",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            headers.insert(TRACEPARENT, HeaderValue::from_static(bad));
            let made = traced(&mut headers);
            assert_eq!(headers[TRACEPARENT], made);
            assert!(is_traceparent(made.to_str().unwrap()) && made != bad, "{bad}");
        }
        headers.insert(TRACEPARENT, HeaderValue::from_static(GIVEN));
        headers.append(TRACEPARENT, HeaderValue::from_static(GIVEN));
        let made = traced(&mut headers);
        assert!(made != GIVEN, "of two nobody knows which");
        assert_eq!(headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>(), [&made]);
    }
}

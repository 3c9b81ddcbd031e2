//! What a request says of the trace it belongs to, and how the next one is told: W3C Trace Context, and B3 in one header or
//! in several.
//!
//! W3C wins where both are there. What is no context is as good as none: nobody's request is refused for it.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

/// W3C Trace Context.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
/// The bit of W3C's flags that says that spans are kept.
const SAMPLED: u8 = 1;

/// A form of B3, which is written for those that do not know W3C's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum B3Form {
    /// One header, `b3`.
    B3,
    /// `x-b3-traceid` and its like.
    B3multi,
}

/// Forms of B3, beside W3C's, which is always written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forms {
    /// One header.
    pub(crate) single: bool,
    /// Several.
    pub(crate) multi: bool,
}

impl FromIterator<B3Form> for Forms {
    fn from_iter<I: IntoIterator<Item = B3Form>>(named: I) -> Self {
        named.into_iter().fold(Self::default(), |forms, form| match form {
            B3Form::B3 => Self { single: true, ..forms },
            B3Form::B3multi => Self { multi: true, ..forms },
        })
    }
}

impl Forms {
    /// These and those.
    pub(super) fn and(self, other: Self) -> Self {
        Self { single: self.single || other.single, multi: self.multi || other.multi }
    }
}

/// What came with a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Came {
    /// The trace, and the span that asks.
    pub(super) ids: Option<(u128, u64)>,
    /// Whether spans are to be kept; `None`: B3 leaves that to us, or nothing came.
    pub(super) sampled: Option<bool>,
    /// B3's word for: whatever the share.
    pub(super) debug: bool,
    /// W3C's header said it.
    pub(super) by_w3c: bool,
    /// In which forms of B3 it came.
    pub(super) forms: Forms,
}

impl Came {
    /// Reads it.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let forms = Forms { single: headers.contains_key(&B3), multi: headers.contains_key(&B3_TRACE) };
        let came = read_w3c(headers).or_else(|| read_b3(headers)).unwrap_or_default();
        Self { forms, ..came }
    }
}

/// A trace, as it is told to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) parent: Option<u64>,
    pub(super) sampled: bool,
    pub(super) debug: bool,
}

impl Context {
    /// Writes it, and returns W3C's form of it.
    pub(super) fn write(&self, headers: &mut HeaderMap, forms: Forms) -> HeaderValue {
        let Self { trace, span, parent, sampled, debug } = *self;
        if forms.single {
            let state = if debug { 'd' } else { char::from(b'0' + u8::from(sampled)) };
            let parent = parent.map(|parent| format!("-{parent:016x}")).unwrap_or_default();
            set(headers, B3, &format!("{trace:032x}-{span:016x}-{state}{parent}"));
        }
        if forms.multi {
            set(headers, B3_TRACE, &format!("{trace:032x}"));
            set(headers, B3_SPAN, &format!("{span:016x}"));
            match parent {
                Some(parent) => set(headers, B3_PARENT, &format!("{parent:016x}")),
                None => headers.remove(&B3_PARENT).map_or(HeaderValue::from_static(""), |gone| gone),
            };
            if debug {
                headers.remove(&B3_SAMPLED);
                set(headers, B3_FLAGS, "1");
            } else {
                set(headers, B3_SAMPLED, if sampled { "1" } else { "0" });
            }
        }
        set(headers, TRACEPARENT, &format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled)))
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &str) -> HeaderValue {
    // Digits and dashes.
    let value = HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
    headers.insert(name, value.clone());
    value
}

/// The trace that B3 names, as W3C's form tells it on; `None`: it names none.
pub(crate) fn w3c_of_b3(headers: &HeaderMap) -> Option<(u128, u64, bool)> {
    let came = read_b3(headers)?;
    let (trace, span) = came.ids?;
    Some((trace, span, came.sampled.unwrap_or(true)))
}

/// `VERSION-TRACE-SPAN-FLAGS` in lower-case hex, neither id all zeros (W3C Trace Context section 3.2.2), in one header only.
fn read_w3c(headers: &HeaderMap) -> Option<Came> {
    let mut given = headers.get_all(&TRACEPARENT).iter();
    let (text, None) = (given.next()?.to_str().ok()?, given.next()) else { return None };
    let mut parts = text.splitn(4, '-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version: u8 = lower(version, 2)?;
    let flags = if version == 0 {
        flags
    } else {
        flags.get(..2).filter(|_| matches!(flags.as_bytes().get(2), None | Some(b'-')))?
    };
    let flags: u8 = lower(flags, 2)?;
    let ids = ids(lower(trace, 32)?, lower(span, 16)?)?;
    let sampled = Some(flags & SAMPLED != 0);
    (version != 0xff).then_some(Came { ids: Some(ids), sampled, by_w3c: true, ..Came::default() })
}

fn read_b3(headers: &HeaderMap) -> Option<Came> {
    match headers.get(&B3) {
        Some(single) => read_single(single.to_str().ok()?),
        None => read_multi(headers),
    }
}

/// `TRACE-SPAN[-STATE[-PARENT]]`, or the state alone.
fn read_single(text: &str) -> Option<Came> {
    if let Some((sampled, debug)) = state(text) {
        return Some(Came { sampled: Some(sampled), debug, ..Came::default() });
    }
    let mut parts = text.splitn(4, '-');
    let ids = ids(trace_of_b3(parts.next()?)?, lower(parts.next()?, 16)?)?;
    let (sampled, debug) = match parts.next() {
        Some(given) => state(given).map(|(sampled, debug)| (Some(sampled), debug))?,
        None => (None, false),
    };
    Some(Came { ids: Some(ids), sampled, debug, ..Came::default() })
}

fn state(text: &str) -> Option<(bool, bool)> {
    match text {
        "0" => Some((false, false)),
        "1" => Some((true, false)),
        "d" => Some((true, true)),
        _ => None,
    }
}

fn read_multi(headers: &HeaderMap) -> Option<Came> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let trace = text(&B3_TRACE);
    let sampled = match text(&B3_SAMPLED) {
        Some("1" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        _ => None,
    };
    let debug = text(&B3_FLAGS) == Some("1");
    let sampled = if debug { Some(true) } else { sampled };
    let ids = match trace {
        Some(trace) => Some(ids(trace_of_b3(trace)?, lower(text(&B3_SPAN)?, 16)?)?),
        None => None,
    };
    (ids.is_some() || sampled.is_some()).then_some(Came { ids, sampled, debug, ..Came::default() })
}

/// B3's traces have 64 bits, or 128.
fn trace_of_b3(text: &str) -> Option<u128> {
    lower(text, 32).or_else(|| lower(text, 16))
}

fn ids(trace: u128, span: u64) -> Option<(u128, u64)> {
    (trace != 0 && span != 0).then_some((trace, span))
}

/// A number of so many digits in lower-case hex.
fn lower<N: TryFrom<u128>>(text: &str, digits: usize) -> Option<N> {
    let hex = text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    let number = u128::from_str_radix(text, 16).ok().filter(|_| hex && text.len() == digits)?;
    N::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

    fn headers(given: &[(&'static str, &'static str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn came(given: &[(&'static str, &'static str)]) -> (Option<(u128, u64)>, Option<bool>, bool) {
        let Came { ids, sampled, debug, .. } = Came::read(&headers(given));
        (ids, sampled, debug)
    }

    #[test]
    fn each_form_is_read_with_what_it_says_of_sampling() {
        let ids = Some((TRACE, SPAN));
        let short = Some((0xa3ce_929d_0e0e_4736, SPAN));
        for (given, expected) in [
            (
                &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")][..],
                (ids, Some(true), false),
            ),
            (&[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02")], (ids, Some(false), false)),
            (
                &[("traceparent", "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-new")],
                (ids, Some(true), false),
            ),
            (
                &[("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90")],
                (ids, Some(true), false),
            ),
            (&[("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-d")], (ids, Some(true), true)),
            (&[("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7")], (ids, None, false)),
            (&[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-0")], (short, Some(false), false)),
            (&[("b3", "0")], (None, Some(false), false)),
            (&[("x-b3-traceid", "a3ce929d0e0e4736"), ("x-b3-spanid", "00f067aa0ba902b7")], (short, None, false)),
            (
                &[
                    ("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"),
                    ("x-b3-spanid", "00f067aa0ba902b7"),
                    ("x-b3-sampled", "0"),
                ],
                (ids, Some(false), false),
            ),
            (
                &[("x-b3-traceid", "a3ce929d0e0e4736"), ("x-b3-spanid", "00f067aa0ba902b7"), ("x-b3-flags", "1")],
                (short, Some(true), true),
            ),
            (&[("x-b3-sampled", "0")], (None, Some(false), false)),
            // W3C wins.
            (
                &[
                    ("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-0"),
                    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
                ],
                (ids, Some(true), false),
            ),
        ] {
            assert_eq!(came(given), expected, "{given:?}");
        }
    }

    #[test]
    fn what_is_no_context_is_none() {
        for given in [
            ("traceparent", ""),
            ("traceparent", "00-0"),
            ("traceparent", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("traceparent", "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x"),
            ("traceparent", "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01new"),
            ("traceparent", "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("b3", "4bf92f3577b34da6a3ce929d0e0e4736"),
            ("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-x"),
            ("b3", "0000000000000000-00f067aa0ba902b7-1"),
            ("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ] {
            assert_eq!(came(&[given]), (None, None, false), "{given:?}");
        }
        let twice = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"); 2];
        let mut headers = headers(&twice[..1]);
        headers.append(TRACEPARENT, HeaderValue::from_static(twice[1].1));
        assert_eq!(Came::read(&headers).ids, None);
    }

    #[test]
    fn a_context_is_written_in_the_forms_asked_for_and_read_back() {
        let context = Context { trace: TRACE, span: SPAN, parent: Some(7), sampled: true, debug: false };
        let mut out = HeaderMap::new();
        let w3c = context.write(&mut out, Forms::default());
        assert_eq!((out.len(), &w3c), (1, &out["traceparent"]));
        assert_eq!(w3c, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        context.write(&mut out, [B3Form::B3, B3Form::B3multi].into_iter().collect());
        assert_eq!(out["b3"], "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-0000000000000007");
        assert_eq!(
            (&out["x-b3-parentspanid"], &out["x-b3-sampled"]),
            (&"0000000000000007".parse().unwrap(), &"1".parse().unwrap())
        );
        for form in ["traceparent", "b3", "x-b3-traceid"] {
            let mut alone = out.clone();
            for other in ["traceparent", "b3", "x-b3-traceid"].into_iter().filter(|other| *other != form) {
                alone.remove(other);
            }
            let read = Came::read(&alone);
            assert_eq!((read.ids, read.sampled), (Some((TRACE, SPAN)), Some(true)), "{form}");
        }
        let root = Context { parent: None, debug: true, ..context };
        root.write(&mut out, Forms { single: true, multi: true });
        assert_eq!(out["b3"], "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-d");
        assert!(
            !out.contains_key("x-b3-parentspanid") && !out.contains_key("x-b3-sampled") && out["x-b3-flags"] == "1"
        );
    }
}

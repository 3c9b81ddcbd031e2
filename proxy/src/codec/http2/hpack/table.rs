//! The tables of the reading end (RFC 7541 section 2.3): sixty-one fields that everybody knows, and those that came.

use std::collections::VecDeque;

use http::header::{self, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, StatusCode};

use super::field::{Field, Name};

/// A field beside what it counts for: the bytes of name and value, and 32 (RFC 7541 section 4.1).
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) field: Field,
    pub(super) size: u32,
    /// Bytes of the name.
    pub(super) name: u32,
}

impl Entry {
    /// Its name, and how many bytes that has.
    pub(super) fn name(&self) -> (Name, u32) {
        (self.field.name(), self.name)
    }
}

/// What name and value count for beside their bytes.
pub(super) const OVERHEAD: usize = 32;

/// How many fields everybody knows.
pub(super) const STATIC_ENTRIES: usize = 61;

const fn entry(field: Field, name: &str, value: &str) -> Entry {
    Entry { field, size: (name.len() + value.len() + OVERHEAD) as u32, name: name.len() as u32 }
}

const fn method(method: Method, text: &str) -> Entry {
    entry(Field::Method(method), ":method", text)
}

const fn path(text: &'static str) -> Entry {
    entry(Field::Path(PathAndQuery::from_static(text)), ":path", text)
}

const fn scheme(scheme: Scheme, text: &str) -> Entry {
    entry(Field::Scheme(scheme), ":scheme", text)
}

const fn status(status: StatusCode) -> Entry {
    entry(Field::Status(status), ":status", "200")
}

const fn named(name: HeaderName, text: &str) -> Entry {
    entry(Field::Header(name, HeaderValue::from_static("")), text, "")
}

const fn malformed(name: Name, text: &str, why: &'static str) -> Entry {
    entry(Field::Malformed(name, why), text, "")
}

/// RFC 7541 appendix A.
pub(super) static STATIC: [Entry; STATIC_ENTRIES] = [
    malformed(Name::Authority, ":authority", "the authority is none"),
    method(Method::GET, "GET"),
    method(Method::POST, "POST"),
    path("/"),
    path("/index.html"),
    scheme(Scheme::HTTP, "http"),
    scheme(Scheme::HTTPS, "https"),
    status(StatusCode::OK),
    status(StatusCode::NO_CONTENT),
    status(StatusCode::PARTIAL_CONTENT),
    status(StatusCode::NOT_MODIFIED),
    status(StatusCode::BAD_REQUEST),
    status(StatusCode::NOT_FOUND),
    status(StatusCode::INTERNAL_SERVER_ERROR),
    named(header::ACCEPT_CHARSET, "accept-charset"),
    entry(
        Field::Header(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate")),
        "accept-encoding",
        "gzip, deflate",
    ),
    named(header::ACCEPT_LANGUAGE, "accept-language"),
    named(header::ACCEPT_RANGES, "accept-ranges"),
    named(header::ACCEPT, "accept"),
    named(header::ACCESS_CONTROL_ALLOW_ORIGIN, "access-control-allow-origin"),
    named(header::AGE, "age"),
    named(header::ALLOW, "allow"),
    named(header::AUTHORIZATION, "authorization"),
    named(header::CACHE_CONTROL, "cache-control"),
    named(header::CONTENT_DISPOSITION, "content-disposition"),
    named(header::CONTENT_ENCODING, "content-encoding"),
    named(header::CONTENT_LANGUAGE, "content-language"),
    malformed(Name::ContentLength, "content-length", "a content-length that is no length"),
    named(header::CONTENT_LOCATION, "content-location"),
    named(header::CONTENT_RANGE, "content-range"),
    named(header::CONTENT_TYPE, "content-type"),
    named(header::COOKIE, "cookie"),
    named(header::DATE, "date"),
    named(header::ETAG, "etag"),
    named(header::EXPECT, "expect"),
    named(header::EXPIRES, "expires"),
    named(header::FROM, "from"),
    entry(Field::Host(HeaderValue::from_static("")), "host", ""),
    named(header::IF_MATCH, "if-match"),
    named(header::IF_MODIFIED_SINCE, "if-modified-since"),
    named(header::IF_NONE_MATCH, "if-none-match"),
    named(header::IF_RANGE, "if-range"),
    named(header::IF_UNMODIFIED_SINCE, "if-unmodified-since"),
    named(header::LAST_MODIFIED, "last-modified"),
    named(header::LINK, "link"),
    named(header::LOCATION, "location"),
    named(header::MAX_FORWARDS, "max-forwards"),
    named(header::PROXY_AUTHENTICATE, "proxy-authenticate"),
    named(header::PROXY_AUTHORIZATION, "proxy-authorization"),
    named(header::RANGE, "range"),
    named(header::REFERER, "referer"),
    named(HeaderName::from_static("refresh"), "refresh"),
    named(header::RETRY_AFTER, "retry-after"),
    named(header::SERVER, "server"),
    named(header::SET_COOKIE, "set-cookie"),
    named(header::STRICT_TRANSPORT_SECURITY, "strict-transport-security"),
    malformed(Name::Malformed(HOP), "transfer-encoding", HOP),
    named(header::USER_AGENT, "user-agent"),
    named(header::VARY, "vary"),
    named(header::VIA, "via"),
    named(header::WWW_AUTHENTICATE, "www-authenticate"),
];

/// Why some names are refused.
pub(super) const HOP: &str = "a header that only concerns an HTTP/1.1 connection";

/// The fields that came, the newest first.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    /// What they count for.
    size: u32,
    /// The most they may count for, as the writing end says.
    max: u32,
}

impl Table {
    /// An empty table.
    pub(super) fn new(max: u32) -> Self {
        Self { entries: VecDeque::new(), size: 0, max }
    }

    /// The entry with `index`, counted from 1 through both tables.
    pub(super) fn get(&self, index: usize) -> Option<&Entry> {
        let index = index.checked_sub(1)?;
        match STATIC.get(index) {
            Some(entry) => Some(entry),
            None => self.entries.get(index - STATIC_ENTRIES),
        }
    }

    /// The writing end uses only `max` bytes from now on.
    pub(super) fn resize(&mut self, max: u32) {
        self.max = max;
        self.evict(0);
    }

    /// Adds an entry, for which others go; one that is larger than the table leaves it empty.
    pub(super) fn add(&mut self, entry: Entry) {
        self.evict(entry.size);
        if entry.size <= self.max {
            self.size += entry.size;
            self.entries.push_front(entry);
        }
    }

    /// Makes room for `size` bytes.
    fn evict(&mut self, size: u32) {
        while self.size.saturating_add(size) > self.max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size;
        }
    }

    /// What its entries count for.
    #[cfg(test)]
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// How many entries it has.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

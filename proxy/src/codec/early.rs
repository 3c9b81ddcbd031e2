//! Heads that come before an answer (RFC 9110 section 15.2): `100 Continue`, `103 Early Hints`. Whoever reads them from the
//! upstream tells them here, and whoever serves the caller takes them from here, while the answer is still being made.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use http::StatusCode;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};

/// Most that are read in one exchange: who sends more is not about to answer.
const MOST: u32 = 32;

/// What a caller hears before its answer.
#[derive(Debug)]
pub(crate) struct Early {
    waiting: RefCell<VecDeque<(StatusCode, HeaderMap)>>,
    told: Cell<u32>,
    heard: bool,
}

/// More heads without an answer than anybody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST} interim responses")]
pub(crate) struct TooMany;

impl Early {
    /// For a caller who is told.
    pub(crate) const fn new() -> Self {
        Self::of(true)
    }

    /// For one who knows no such heads (HTTP/1.0), or is not there: they are counted all the same.
    pub(crate) const fn deaf() -> Self {
        Self::of(false)
    }

    const fn of(heard: bool) -> Self {
        Self { waiting: RefCell::new(VecDeque::new()), told: Cell::new(0), heard }
    }

    /// Passes one on, without what belongs to its own connection or what only the mesh may say.
    ///
    /// # Errors
    /// When there were too many.
    pub(crate) fn tell(&self, status: StatusCode, mut headers: HeaderMap) -> Result<(), TooMany> {
        self.told.set(self.told.get() + 1);
        if self.told.get() > MOST {
            return Err(TooMany);
        }
        if self.heard {
            strip(&mut headers);
            self.waiting.borrow_mut().push_back((status, headers));
        }
        Ok(())
    }

    /// Takes the next that the caller was not told of.
    pub(crate) fn take(&self) -> Option<(StatusCode, HeaderMap)> {
        self.waiting.borrow_mut().pop_front()
    }
}

fn strip(headers: &mut HeaderMap) {
    static ENDS_HERE: [HeaderName; 6] = [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    let options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        options.flat_map(|value| value.split(',')).map(|name| name.trim().to_lowercase()).collect();
    let goes = |name: &&HeaderName| {
        let text = name.as_str();
        ENDS_HERE.contains(name)
            || named.iter().any(|named| named == text)
            || matches!(text, "keep-alive" | "proxy-connection" | "proxy-status")
            || text.starts_with("x-equerry-")
    };
    while let Some(name) = headers.keys().find(goes).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_passed_on_and_what_belongs_to_a_connection_is_not() {
        let early = Early::new();
        let hints = HeaderMap::from_iter(
            [
                ("link", "</a.css>; rel=preload"),
                ("connection", "x-own, keep-alive"),
                ("x-own", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-status", "equerry; error=http_request_denied"),
                ("content-length", "3"),
            ]
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())),
        );
        early.tell(StatusCode::from_u16(103).unwrap(), hints).unwrap();
        let (status, headers) = early.take().unwrap();
        assert_eq!(status.as_u16(), 103);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["link"]);
        assert!(early.take().is_none());
    }

    #[test]
    fn an_endless_row_of_them_ends_also_where_nobody_hears_them() {
        for early in [Early::new(), Early::deaf()] {
            for _ in 0..MOST {
                early.tell(StatusCode::PROCESSING, HeaderMap::new()).unwrap();
            }
            assert_eq!(early.tell(StatusCode::PROCESSING, HeaderMap::new()), Err(TooMany));
        }
    }
}

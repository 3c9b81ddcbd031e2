//! Header maps whose messages have passed, kept for the next: their memory is most of what a head costs.

use std::cell::RefCell;

use http::HeaderMap;

/// Maps kept by each thread; as many exchanges as begin and end between two turns of its loop.
const KEPT: usize = 64;
/// A map that grew beyond this for some unusual message is let go.
const LARGEST: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map.
pub(crate) fn headers() -> HeaderMap {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| HeaderMap::with_capacity(LARGEST / 2))
}

/// Takes a map back.
pub(crate) fn keep(mut headers: HeaderMap) {
    headers.clear();
    if headers.capacity() > 0 && headers.capacity() <= LARGEST {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(headers);
            }
        });
    }
}

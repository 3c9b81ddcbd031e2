//! Header maps whose messages have passed, kept for the next: their memory is most of what a head costs.

use std::cell::RefCell;

use http::HeaderMap;

use crate::tidy::Surplus;

/// Maps kept by each thread; as many exchanges as begin and end between two turns of its loop.
const KEPT: usize = 64;
/// A map that grew beyond this for some unusual message is let go.
const LARGEST: usize = 64;
/// So many stay where hardly a message comes.
const FEW: usize = 4;

thread_local! {
    static SURPLUS: Surplus = const { Surplus::none() };
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map.
pub(crate) fn headers() -> HeaderMap {
    let kept = SPARE.with_borrow_mut(|spare| {
        let kept = spare.pop();
        SURPLUS.with(|surplus| surplus.taken(spare.len()));
        kept
    });
    kept.unwrap_or_else(|| HeaderMap::with_capacity(LARGEST / 2))
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

/// Whether a message has come on this thread since [`put_down`] was called last: each takes a map.
pub(crate) fn were_needed() -> bool {
    SPARE.with_borrow(|spare| SURPLUS.with(|surplus| surplus.was_needed(spare.len())))
}

/// Lets most of those go that this thread has not needed since it was last asked; whether there were any.
pub(crate) fn put_down() -> bool {
    SPARE.with_borrow_mut(|spare| {
        let more = SURPLUS.with(|surplus| surplus.too_many(spare.len(), FEW));
        spare.truncate(spare.len() - more);
        more > 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    #[test]
    fn maps_kept_for_a_load_that_is_over_are_let_go_by_and_by() {
        let all: Vec<HeaderMap> = (0..2 * KEPT).map(|_| headers()).collect();
        all.into_iter().for_each(keep);
        assert_eq!(kept(), KEPT);
        assert!(were_needed());
        assert!(!put_down(), "they were needed just now");
        assert!(!were_needed());
        assert!(put_down());
        assert_eq!(kept(), (KEPT - FEW) / 4 + FEW);
        let needed: Vec<HeaderMap> = (0..kept()).map(|_| headers()).collect();
        needed.into_iter().for_each(keep);
        assert!(!put_down(), "they were needed again");
        assert_eq!((0..9).filter(|_| put_down()).count(), 1);
        assert_eq!(kept(), FEW);
    }
}

//! Memory for short texts that come or are made with every message, such as a header's value: to allocate for each costs more than
//! to write it, so many share one piece. No decision, but what decisions write headers with.

use std::cell::RefCell;

use bytes::BytesMut;
use http::HeaderValue;

/// Bytes of the values of headers that share an allocation.
const SHEET: usize = 1024;

/// Memory in which texts stand one after another; it is used again once none of them is left. Whoever keeps one keeps no more
/// than that alive.
#[derive(Debug)]
pub struct Texts {
    sheet: BytesMut,
    size: usize,
}

impl Texts {
    /// Memory for texts of `size` bytes altogether, which is asked for with the first.
    pub fn of(size: usize) -> Self {
        Self { sheet: BytesMut::new(), size }
    }

    /// A text made of these parts.
    pub fn join(&mut self, parts: &[&[u8]]) -> BytesMut {
        let length = parts.iter().map(|part| part.len()).sum();
        if self.sheet.capacity() < length && !self.sheet.try_reclaim(self.size.max(length)) {
            self.sheet = BytesMut::with_capacity(self.size.max(length));
        }
        // Room is made once, not before each of them.
        self.sheet.resize(length, 0);
        let mut rest = &mut self.sheet[..];
        for part in parts {
            let (here, behind) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = behind;
        }
        self.sheet.split()
    }
}

/// The value of a header, made of these parts; `None`: they cannot stand in one.
pub fn header_value(parts: &[&[u8]]) -> Option<HeaderValue> {
    thread_local! {
        static TEXTS: RefCell<Texts> = RefCell::new(Texts::of(SHEET));
    }
    let text = TEXTS.with_borrow_mut(|texts| texts.join(parts)).freeze();
    HeaderValue::from_maybe_shared(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_share_memory_that_is_used_again_when_they_are_gone() {
        let mut texts = Texts::of(8);
        let (one, other) = (texts.join(&[b"ab", b"", b"cd"]), texts.join(&[b"efgh"]));
        assert_eq!((&*one, &*other), (&b"abcd"[..], &b"efgh"[..]));
        assert_eq!(one.as_ptr().wrapping_add(4), other.as_ptr());
        drop(one);
        let elsewhere = texts.join(&[b"ij"]);
        assert_eq!((&*other, &*elsewhere), (&b"efgh"[..], &b"ij"[..]), "what somebody has is not written over");
        drop((other, elsewhere));
        let used = texts.join(&[b"12345678"]).as_ptr();
        assert_eq!(used, texts.join(&[b"87654321"]).as_ptr());
        assert_eq!(&*texts.join(&[&[b'x'; 20]]), &[b'x'; 20], "one may be longer than all that share");
    }

    #[test]
    fn a_value_is_one_or_none() {
        assert_eq!(header_value(&[b"a", b"1"]).unwrap(), "a1");
        assert_eq!(header_value(&[]).unwrap(), "");
        assert_eq!(header_value(&[b"a\r\nb: c"]), None);
        assert!(header_value(&[&[b'x'; 2 * SHEET]]).is_some());
    }
}

//! Flow control's arithmetic (RFC 9113 sections 5.2 and 6.9): how much may be sent, and how much may still come.
//!
//! A window can fall below zero when SETTINGS shrink it, and must never grow beyond 2^31-1; both are kept in 64 bits, where
//! nothing overflows.

use super::bad::{Bad, Code};

/// The window of every stream and of the connection before anybody says otherwise.
pub(crate) const INITIAL: u32 = 65_535;
/// The largest window.
pub(crate) const LARGEST: u32 = (1 << 31) - 1;

/// What the peer lets us send, on a stream or on the whole connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SendWindow(i64);

impl SendWindow {
    /// A window as wide as the peer's SETTINGS say.
    pub(crate) const fn new(initial: u32) -> Self {
        Self(initial as i64)
    }

    /// Bytes that may be sent now.
    pub(crate) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// `length` bytes, which were available, are sent.
    pub(crate) fn sent(&mut self, length: usize) {
        debug_assert!(length <= self.available(), "only what is available is sent");
        self.0 -= length as i64;
    }

    /// WINDOW_UPDATE on `stream`; 0 is the connection.
    ///
    /// # Errors
    /// When the window would grow beyond the largest.
    pub(crate) fn widen(&mut self, stream: u32, increment: u32) -> Result<(), Bad> {
        let widened = self.0 + i64::from(increment);
        if widened > i64::from(LARGEST) {
            return Err(Bad::at(stream, Code::FLOW_CONTROL_ERROR, "a window grew beyond 2^31-1"));
        }
        self.0 = widened;
        Ok(())
    }

    /// SETTINGS_INITIAL_WINDOW_SIZE changed from `old` to `new`: every open stream's window moves by the difference.
    ///
    /// # Errors
    /// When the window would grow beyond the largest, which is the connection's error (RFC 9113 section 6.9.2).
    pub(crate) fn resize(&mut self, old: u32, new: u32) -> Result<(), Bad> {
        let moved = self.0 + i64::from(new) - i64::from(old);
        if moved > i64::from(LARGEST) {
            return Err(Bad::connection(Code::FLOW_CONTROL_ERROR, "SETTINGS grew a window beyond 2^31-1"));
        }
        self.0 = moved;
        Ok(())
    }
}

/// What we let the peer send, on a stream or on the whole connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceiveWindow {
    /// How wide it is when nothing is on the way.
    size: u32,
    /// What the peer may still send.
    left: u32,
    /// What was used up and not yet announced.
    owed: u32,
}

impl ReceiveWindow {
    /// A window of `size` bytes, which is at most [`LARGEST`], that the peer knows of.
    pub(crate) const fn new(size: u32) -> Self {
        Self { size, left: size, owed: 0 }
    }

    /// Widens the window to `size` bytes; the increment of the WINDOW_UPDATE that says so; 0: none.
    pub(crate) fn grow(&mut self, size: u32) -> u32 {
        let more = size.min(LARGEST).saturating_sub(self.size);
        self.size += more;
        self.left += more;
        more
    }

    /// DATA of `length` bytes came on `stream`, padding included; 0 is the connection.
    ///
    /// # Errors
    /// When there was no room for it.
    pub(crate) fn came(&mut self, stream: u32, length: usize) -> Result<(), Bad> {
        let left = u32::try_from(length).ok().and_then(|length| self.left.checked_sub(length));
        self.left = left.ok_or(Bad::at(stream, Code::FLOW_CONTROL_ERROR, "more data than the window allows"))?;
        Ok(())
    }

    /// `length` bytes of what came are used up. The increment of the WINDOW_UPDATE to be sent; 0: none yet, because they are
    /// announced once they are half of the window.
    pub(crate) fn used(&mut self, length: usize) -> u32 {
        // What came was below the window's size.
        self.owed = self.owed.saturating_add(u32::try_from(length).unwrap_or(u32::MAX)).min(self.size - self.left);
        if self.owed == 0 || self.owed < self.size / 2 {
            return 0;
        }
        self.announce()
    }

    /// The increment that announces all that was used up; 0: nothing was.
    pub(crate) fn announce(&mut self) -> u32 {
        let increment = std::mem::take(&mut self.owed);
        self.left += increment;
        increment
    }

    /// How wide it is when nothing is on the way.
    pub(crate) const fn size(self) -> u32 {
        self.size
    }

    /// Bytes the peer may still send.
    #[cfg(test)]
    pub(crate) const fn left(self) -> u32 {
        self.left
    }

    /// Bytes that came and were not used up.
    #[cfg(test)]
    pub(crate) const fn held(self) -> u32 {
        self.size - self.left - self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_window_may_fall_below_zero_and_recovers() {
        let mut window = SendWindow::new(100);
        window.sent(80);
        window.resize(100, 10).unwrap();
        assert_eq!((window, window.available()), (SendWindow(-70), 0));
        window.widen(1, 71).unwrap();
        assert_eq!(window.available(), 1);
        window.resize(10, 100).unwrap();
        assert_eq!(window.available(), 91);
    }

    #[test]
    fn a_window_that_grows_too_wide_is_an_error_of_its_stream_or_connection() {
        let mut window = SendWindow::new(INITIAL);
        window.widen(3, LARGEST - INITIAL).unwrap();
        assert_eq!(
            window.widen(3, 1),
            Err(Bad::Stream { stream: 3, code: Code::FLOW_CONTROL_ERROR, why: "a window grew beyond 2^31-1" })
        );
        assert_eq!(
            window.widen(0, 1),
            Err(Bad::Connection { code: Code::FLOW_CONTROL_ERROR, why: "a window grew beyond 2^31-1" })
        );
        assert_eq!(window.available(), LARGEST as usize, "a refused increment changes nothing");
        assert!(matches!(window.resize(1, 2), Err(Bad::Connection { code: Code::FLOW_CONTROL_ERROR, .. })));
    }

    #[test]
    fn what_is_used_up_is_announced_by_halves() {
        let mut window = ReceiveWindow::new(100);
        window.came(1, 60).unwrap();
        assert_eq!(window.used(30), 0);
        assert_eq!(window.used(19), 0);
        assert_eq!((window.left(), window.held()), (40, 11));
        assert_eq!(window.used(1), 50);
        assert_eq!((window.left(), window.held()), (90, 10));
        assert_eq!(window.used(1_000), 0, "never more than came");
        assert_eq!(window.announce(), 10);
        assert_eq!(window.announce(), 0);
        assert_eq!(window, ReceiveWindow::new(100));
    }

    #[test]
    fn more_than_the_window_is_refused() {
        let mut window = ReceiveWindow::new(10);
        window.came(5, 10).unwrap();
        assert!(matches!(window.came(5, 1), Err(Bad::Stream { stream: 5, code: Code::FLOW_CONTROL_ERROR, .. })));
        assert!(matches!(window.came(0, usize::MAX), Err(Bad::Connection { .. })));
        assert_eq!(window.grow(20), 10);
        assert_eq!(window.grow(20), 0);
        window.came(5, 10).unwrap();
    }
}

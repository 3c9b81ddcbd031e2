//! What a peer did wrong, and what it is told: RFC 9113 section 5.4.
//!
//! A mistake either ends one stream or leaves nothing on the connection that could be trusted. Each carries the code that
//! goes on the wire and the words that go into the log.

use std::fmt;

/// An error code (RFC 9113 section 7). Codes nobody knows are carried as they came; those nobody here says have no constant.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Code(pub(crate) u32);

impl Code {
    /// Nothing is wrong.
    pub(crate) const NO_ERROR: Self = Self(0x0);
    /// The protocol was violated.
    pub(crate) const PROTOCOL_ERROR: Self = Self(0x1);
    /// Our own fault.
    pub(crate) const INTERNAL_ERROR: Self = Self(0x2);
    /// More was sent than there was room for.
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// A frame on a stream that had ended.
    pub(crate) const STREAM_CLOSED: Self = Self(0x5);
    /// A frame of a wrong size.
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// Nothing was done about the stream: it may be tried again.
    pub(crate) const REFUSED_STREAM: Self = Self(0x7);
    /// The stream is not needed any more.
    pub(crate) const CANCEL: Self = Self(0x8);
    /// The header compression has lost its state.
    pub(crate) const COMPRESSION_ERROR: Self = Self(0x9);
    /// The peer asks for more than it should.
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(0xb);

    /// Its name; `None`: nobody knows it.
    pub(crate) fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(usize::try_from(self.0).ok()?).copied()
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Bad {
    /// Nothing more can be done on the connection: GOAWAY with `code`, then the end.
    #[error("{why} ({code})")]
    Connection {
        /// What the peer is told.
        code: Code,
        /// What we say about it.
        why: &'static str,
    },
    /// One stream ends: RST_STREAM with `code`. The connection goes on.
    #[error("{why} ({code}, stream {stream})")]
    Stream {
        /// The stream; never 0.
        stream: u32,
        /// What the peer is told.
        code: Code,
        /// What we say about it.
        why: &'static str,
    },
}

impl Bad {
    /// A mistake that ends the connection.
    pub(crate) const fn connection(code: Code, why: &'static str) -> Self {
        Self::Connection { code, why }
    }

    /// A mistake that ends `stream`; stream 0 is the connection itself.
    pub(crate) const fn at(stream: u32, code: Code, why: &'static str) -> Self {
        if stream == 0 { Self::Connection { code, why } } else { Self::Stream { stream, code, why } }
    }

    /// A violation of the protocol, of the connection.
    pub(crate) const fn protocol(why: &'static str) -> Self {
        Self::connection(Code::PROTOCOL_ERROR, why)
    }

    /// The code the peer is told.
    pub(crate) const fn code(self) -> Code {
        match self {
            Self::Connection { code, .. } | Self::Stream { code, .. } => code,
        }
    }

    /// What we say about it.
    pub(crate) const fn why(self) -> &'static str {
        match self {
            Self::Connection { why, .. } | Self::Stream { why, .. } => why,
        }
    }
}

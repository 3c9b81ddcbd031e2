//! HTTP/1.1 (RFC 9112), read strictly: what two readers could read differently is refused, never repaired.
//!
//! [`head`], [`framing`] and [`mod@write`] are pure: bytes to heads and bodies, and back. There is no parser behind them: lines
//! are cut at CRLF, and what makes a method, target, name or value is checked once, by the type that holds it.

pub(crate) mod call;
mod fields;
pub(crate) mod framing;
pub(crate) mod head;
mod send;
pub(crate) mod serve;
mod write;

#[cfg(test)]
mod broken_tests;
#[cfg(test)]
mod framing_tests;
#[cfg(test)]
mod head_tests;
#[cfg(test)]
mod response_tests;
#[cfg(test)]
mod write_tests;

/// How a body's end is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body, or one of no bytes.
    Empty,
    /// It has this many bytes; never 0, which is [`Framing::Empty`].
    Length(u64),
    /// It comes in chunks, the last of which says so.
    Chunked,
    /// It ends with its connection; responses only.
    UntilClose,
}

/// Why a head or a body cannot be read. After it nothing more can be read from the same stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Bad {
    /// A head or trailers of more bytes or fields than are taken from anybody (431).
    #[error("more than {} bytes or {} fields of headers", crate::codec::MAX_HEADER_BYTES, crate::codec::MAX_HEADERS)]
    TooLarge,
    /// It is not HTTP, or several readers could read it differently (400); says what was found.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// HTTP, but neither 1.0 nor 1.1 (505).
    #[error("a version of HTTP other than 1.0 and 1.1")]
    Version,
    /// The stream ended in the middle of a body.
    #[error("it ended in the middle")]
    Cut,
    /// A head that had begun was not whole after so long (408).
    #[error("a head that was not whole after {0:?}")]
    Slow(std::time::Duration),
}

impl Bad {
    /// One word, for metrics and logs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::TooLarge => "head_too_large",
            Self::Malformed(_) => "malformed",
            Self::Version => "http_version",
            Self::Cut => "cut_off",
            Self::Slow(_) => "head_timeout",
        }
    }
}

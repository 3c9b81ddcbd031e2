//! Messages made by hand, for what no HTTP library would send: bytes as they stand over HTTP/1.1, frames over HTTP/2, and answers
//! read without believing them.
//!
//! Whatever is asked comes back within a few seconds, or what came until then: a peer that says nothing is an answer too.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a peer may say nothing before it is taken to have nothing to say.
const PATIENCE: Duration = Duration::from_secs(5);

/// What begins every HTTP/2 connection, with empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The flag of the last frame of a stream's side.
pub const END_STREAM: u8 = 0x1;
/// The flag of the last frame of a block of fields.
pub const END_HEADERS: u8 = 0x4;

/// An answer over HTTP/1.1, as it was framed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, as it stands.
    pub head: String,
    /// The body, without its framing.
    pub body: String,
}

/// A connection over which bytes are said and answers read.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    came: Vec<u8>,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn to(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, came: Vec::new() })
    }

    /// Says this. That the other side no longer listens is seen by what it says.
    pub async fn say(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes)).await;
    }

    /// Says this, if the other side still listens and takes it by then; reads nothing.
    pub async fn says(&mut self, bytes: &[u8], until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        matches!(timeout(left, self.stream.write_all(bytes)).await, Ok(Ok(())))
    }

    /// The next answer to a request of this method, interim ones passed over; `None`: the connection has ended, or nothing came.
    ///
    /// # Errors
    /// When what came is no answer.
    pub async fn answer(&mut self, method: &str) -> Result<Option<Answer>> {
        loop {
            let Some(end) = self.until(|came| find(came, b"\r\n\r\n").map(|at| at + 4)).await else {
                if self.came.is_empty() {
                    return Ok(None);
                }
                bail!("no head of an answer: {}", shown(&self.came));
            };
            let head = String::from_utf8_lossy(&self.came[..end]).into_owned();
            self.came.drain(..end);
            let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
            let Some(status) = status.filter(|_| head.starts_with("HTTP/1.1 ")) else { bail!("no status: {head}") };
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let none = method == "HEAD" || matches!(status, 101 | 204 | 304);
            let body = if none { Vec::new() } else { self.body(&head).await? };
            return Ok(Some(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() }));
        }
    }

    async fn body(&mut self, head: &str) -> Result<Vec<u8>> {
        let field = |name: &str| {
            let line = |line: &&str| line.to_ascii_lowercase().starts_with(&format!("{name}:"));
            head.lines().find(line).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        if field("transfer-encoding").is_some() {
            return self.chunks().await;
        }
        let Some(length) = field("content-length") else { bail!("an answer without framing: {head}") };
        let length: usize = length.parse().with_context(|| format!("content-length {length}"))?;
        self.take(length).await
    }

    async fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let end = self.until(|came| find(came, b"\r\n").map(|at| at + 2)).await.context("a chunk's line")?;
            let line = String::from_utf8_lossy(&self.came[..end]).trim().to_owned();
            self.came.drain(..end);
            let size = usize::from_str_radix(&line, 16).with_context(|| format!("a chunk of {line}"))?;
            if size == 0 {
                let end = self.until(|came| {
                    let empty = came.starts_with(b"\r\n").then_some(2);
                    empty.or_else(|| find(came, b"\r\n\r\n").map(|at| at + 4))
                });
                let end = end.await.context("the end of the chunks")?;
                self.came.drain(..end);
                return Ok(all);
            }
            all.extend(self.take(size).await?);
            self.take(2).await?;
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        let whole = self.until(|came| (came.len() >= length).then_some(length)).await;
        whole.with_context(|| format!("a body of {length} bytes broke off after {}", self.came.len()))?;
        Ok(self.came.drain(..length).collect())
    }

    /// Reads until what came is enough; `None`: it ended, or nothing more came.
    async fn until(&mut self, enough: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
        loop {
            if let Some(end) = enough(&self.came) {
                return Some(end);
            }
            match timeout(PATIENCE, self.stream.read_buf(&mut self.came)).await {
                Ok(Ok(1..)) => {}
                _ => return None,
            }
        }
    }

    /// Whether the other side has ended it, or does so soon; anything else that comes is an error.
    ///
    /// # Errors
    /// When more came than was asked for.
    pub async fn is_over(&mut self) -> Result<bool> {
        if !self.came.is_empty() {
            bail!("more came than was asked for: {}", shown(&self.came));
        }
        match timeout(PATIENCE, self.stream.read_buf(&mut self.came)).await {
            Ok(Ok(0) | Err(_)) => Ok(true),
            Ok(Ok(_)) => bail!("more came than was asked for: {}", shown(&self.came)),
            Err(_) => Ok(false),
        }
    }

    /// Whether nothing came that was not asked for, up to now.
    pub fn is_quiet(&self) -> bool {
        self.came.is_empty()
    }
}

/// What became of a request over HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    /// An answer with this status (0: one that is not spelled out here) and this body.
    Answer(u16, String),
    /// The stream was reset, or the connection ended.
    Reset,
}

/// Asks once over an HTTP/2 connection of its own, with these fields as they stand, and nothing behind them.
///
/// # Errors
/// When nobody listens there.
pub async fn ask_http2(address: SocketAddr, fields: &[(&[u8], &[u8])]) -> Result<Came> {
    let mut wire = Wire::to(address).await?;
    wire.say(&[PREFACE, &frame(1, END_STREAM | END_HEADERS, 1, &block(fields))].concat()).await;
    let (mut status, mut body) = (None, Vec::new());
    loop {
        let Some((kind, flags, stream, payload)) = wire.frame().await else { return Ok(Came::Reset) };
        match kind {
            // Empty SETTINGS need no answer for what is asked here; a reset or GOAWAY is one.
            3 | 7 if stream == 1 || kind == 7 => return Ok(Came::Reset),
            1 if stream == 1 && status.is_none() => status = Some(status_of(&payload)),
            0 if stream == 1 => body.extend(payload),
            _ => {}
        }
        if stream == 1 && matches!(kind, 0 | 1) && flags & END_STREAM != 0 {
            let body = String::from_utf8_lossy(&body).into_owned();
            return Ok(Came::Answer(status.unwrap_or_default(), body));
        }
    }
}

impl Wire {
    /// A connection that began with the preface.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn http2(address: SocketAddr) -> Result<Self> {
        let mut wire = Self::to(address).await?;
        wire.say(PREFACE).await;
        Ok(wire)
    }

    /// The next frame: type, flags, stream, payload; `None`: the connection has ended, or nothing came.
    pub async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        self.until(|came| (came.len() >= 9).then_some(9)).await?;
        let length = usize::from(self.came[0]) << 16 | usize::from(self.came[1]) << 8 | usize::from(self.came[2]);
        self.until(|came| (came.len() >= 9 + length).then_some(9 + length)).await?;
        let head: Vec<u8> = self.came.drain(..9).collect();
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some((head[3], head[4], stream, self.came.drain(..length).collect()))
    }
}

/// A frame as it stands.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A block of fields, none of which enters a table.
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(text.len(), &mut block);
            block.extend_from_slice(text);
        }
    }
    block
}

/// The length of a text without Huffman code: seven bits, and more where those are not enough (RFC 7541 section 5.1).
fn length(of: usize, out: &mut Vec<u8>) {
    let low = |number: usize| u8::try_from(number & 0xff).unwrap_or_default();
    if of < 127 {
        return out.push(low(of));
    }
    out.push(127);
    let mut rest = of - 127;
    while rest >= 128 {
        out.push(low(rest & 127) | 128);
        rest >>= 7;
    }
    out.push(low(rest));
}

/// The status with which a block begins, where it is one that HPACK has a number for, or is spelled out.
fn status_of(block: &[u8]) -> u16 {
    match block {
        // A change of the table's size comes first.
        [first, rest @ ..] if first & 0xe0 == 0x20 => status_of(rest),
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        // A literal whose name is `:status`, in the table or not.
        [0x08 | 0x48 | 0x18, 3, digits @ ..] => {
            digits.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or_default()
        }
        _ => 0,
    }
}

/// Where a text begins in another.
pub fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// Bytes for a reader's eyes.
pub fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(400)].escape_ascii().to_string()
}

/// A text in which `\r`, `\n`, `\t`, `\0`, `\\` and `\xNN` stand for bytes.
///
/// # Errors
/// When something else follows a backslash.
pub fn unescaped(text: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b's') => b' ',
            Some(b'x') => {
                let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).with_context(|| format!("\\x{digits} in {text}"))?
            }
            other => bail!("\\{other:?} in {text}"),
        });
    }
    Ok(out)
}

//! A faulty application of our own, on bare sockets: it does to its callers what no HTTP library would let it do.
//!
//! It knows just enough HTTP/1.1 to read what a sidecar sends, and HTTP/2 by prior knowledge. Every call carries its own name
//! (`x-call`), and every time the head of a call arrives it is counted, so that a test sees whether one was ever made twice.

mod http2;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// The length of a whole answer's body.
pub const ANSWER_LENGTH: usize = 4096;
/// How long a slow application thinks.
const SLOW: Duration = Duration::from_millis(800);

/// What an application does to those who call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing bad.
    None,
    /// Gone: its connections are reset and nobody listens.
    Killed,
    /// Takes connections and requests, and never says a word.
    Frozen,
    /// Answers well, but far too late.
    Slow,
    /// Resets the connection when it has read the request.
    Resets,
    /// Resets the connection in the middle of the body of its answer.
    ResetsMidBody,
    /// Closes every connection after an answer, without having said so.
    ClosesIdle,
    /// Sends more than the length it promised: a whole second answer that nobody asked for.
    SaysMore,
    /// Sends less than the length it promised, then closes.
    SaysLess,
    /// Breaks off a chunked body with something that is no chunk.
    BreaksChunks,
    /// Answers well before it reads the body.
    AnswersEarly,
    /// Answers 413 before it reads the body, which it never reads, and closes.
    RefusesEarly,
    /// Answers with bytes that are no HTTP.
    Garbage,
    /// Answers with a head of a megabyte.
    HeaderBomb,
    /// Refuses a stream without having looked at it; an HTTP/1.1 caller loses its connection instead.
    Refuses,
    /// Sends GOAWAY in the middle of the body of its answer and closes; over HTTP/1.1 it just closes.
    GoesAway,
    /// Says after every answer that its connection ends, and ends it when what came meanwhile is answered.
    SaysGoodbye,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "well",
            Self::Killed => "killed",
            Self::Frozen => "frozen",
            Self::Slow => "slow",
            Self::Resets => "resets before its answer",
            Self::ResetsMidBody => "resets mid-body",
            Self::ClosesIdle => "closes idle connections",
            Self::SaysMore => "says more than it promised",
            Self::SaysLess => "says less than it promised",
            Self::BreaksChunks => "breaks its chunks",
            Self::AnswersEarly => "answers before the body",
            Self::RefusesEarly => "refuses before the body",
            Self::Garbage => "sends garbage",
            Self::HeaderBomb => "sends a megabyte of headers",
            Self::Refuses => "refuses streams",
            Self::GoesAway => "goes away mid-body",
            Self::SaysGoodbye => "says goodbye every time",
        })
    }
}

/// How often each call arrived, at all applications that share this.
#[derive(Debug, Clone, Default)]
pub struct Arrivals(Arc<Mutex<HashMap<String, u32>>>);

impl Arrivals {
    fn add(&self, call: &str) {
        *locked(&self.0).entry(call.to_owned()).or_default() += 1;
    }

    /// How often a call arrived.
    pub fn of(&self, call: &str) -> u32 {
        locked(&self.0).get(call).copied().unwrap_or_default()
    }
}

/// An application that can be made to fail while it runs; gone when dropped.
#[derive(Debug)]
pub struct Faulty {
    name: &'static str,
    port: u16,
    arrivals: Arrivals,
    fault: watch::Sender<Fault>,
    listening: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Faulty {
    /// Serves on a port of loopback, well for now.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn start(name: &'static str, port: u16, arrivals: Arrivals) -> io::Result<Self> {
        let app = Self { name, port, arrivals, fault: watch::Sender::new(Fault::None), listening: Mutex::default() };
        app.listen().await?;
        Ok(app)
    }

    /// Behaves like this from now on.
    ///
    /// # Errors
    /// When it is to come back and its port is taken meanwhile.
    pub async fn suffer(&self, fault: Fault) -> io::Result<()> {
        let before = self.fault.send_replace(fault);
        if fault == Fault::Killed {
            if let Some(listening) = locked(&self.listening).take() {
                listening.abort();
            }
        } else if before == Fault::Killed {
            self.listen().await?;
        }
        Ok(())
    }

    async fn listen(&self) -> io::Result<()> {
        let listener = crate::listen(self.port).await?;
        let (name, arrivals, fault) = (self.name, self.arrivals.clone(), self.fault.subscribe());
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = Connection { stream, read: BytesMut::new(), name, arrivals: arrivals.clone() };
                let (serving, mut killed) = (fault.clone(), fault.clone());
                tokio::spawn(async move {
                    // A peer that breaks off is its own business.
                    let mut connection = connection;
                    let gone = tokio::select! {
                        gone = connection.serve(serving) => gone.unwrap_or(End::Close),
                        _ = killed.wait_for(|fault| *fault == Fault::Killed) => End::Reset,
                    };
                    if gone == End::Reset {
                        let _ = connection.stream.set_zero_linger();
                    }
                });
            }
        });
        *locked(&self.listening) = Some(listening);
        Ok(())
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        if let Some(listening) = locked(&self.listening).take() {
            listening.abort();
        }
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a connection goes on after an answer, or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    GoOn,
    Close,
    Reset,
}

struct Connection {
    stream: TcpStream,
    read: BytesMut,
    name: &'static str,
    arrivals: Arrivals,
}

/// How the body of a request is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

struct Head {
    call: String,
    body: Framing,
}

impl Connection {
    async fn serve(&mut self, fault: watch::Receiver<Fault>) -> io::Result<End> {
        if self.begins_http2().await? {
            let served = http2::serve(&mut self.stream, self.name, &self.arrivals, fault).await;
            return Ok(served.unwrap_or(End::Close));
        }
        loop {
            let Some(head) = self.head().await? else { return Ok(End::Close) };
            self.arrivals.add(&head.call);
            let fault = *fault.borrow();
            let end = self.answer(&head, fault).await?;
            if end != End::GoOn {
                return Ok(end);
            }
        }
    }

    /// No method of HTTP/1.1 that is used here begins like the preface of HTTP/2.
    async fn begins_http2(&self) -> io::Result<bool> {
        let mut first = [0; 2];
        loop {
            match self.stream.peek(&mut first).await? {
                0 => return Ok(false),
                1 => tokio::task::yield_now().await,
                _ => return Ok(&first == b"PR"),
            }
        }
    }

    async fn answer(&mut self, head: &Head, fault: Fault) -> io::Result<End> {
        let whole = self.whole(&head.call);
        let early = matches!(fault, Fault::AnswersEarly | Fault::RefusesEarly);
        if !early {
            self.pass_over(head.body).await?;
        }
        let half = &whole[..whole.len() - ANSWER_LENGTH / 2];
        match fault {
            Fault::None => self.say(&whole).await,
            Fault::Killed | Fault::Resets | Fault::Refuses => Ok(End::Reset),
            // Until whoever called has had enough.
            Fault::Frozen => self.stream.read_u8().await.map(|_| End::Close),
            Fault::Slow => {
                tokio::time::sleep(SLOW).await;
                self.say(&whole).await
            }
            Fault::ResetsMidBody => self.say(half).await.map(|_| End::Reset),
            Fault::SaysLess | Fault::GoesAway => self.say(half).await.map(|_| End::Close),
            Fault::ClosesIdle => self.say(&whole).await.map(|_| End::Close),
            Fault::SaysGoodbye => {
                let said = format!("HTTP/1.1 200 OK\r\ncontent-length: {ANSWER_LENGTH}\r\nconnection: close\r\n\r\n");
                self.say(&[said.into_bytes(), body(self.name, &head.call)].concat()).await.map(|_| End::Close)
            }
            Fault::SaysMore => {
                let unasked = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nSMUGGLED";
                self.say(&[&whole, unasked.as_slice()].concat()).await
            }
            Fault::BreaksChunks => {
                self.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nno chunk\r\n").await
            }
            Fault::AnswersEarly => {
                self.say(&whole).await?;
                self.pass_over(head.body).await.map(|()| End::GoOn)
            }
            Fault::RefusesEarly => {
                let refusal =
                    b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 8\r\nconnection: close\r\n\r\ntoo much";
                self.say(refusal).await.map(|_| End::Close)
            }
            Fault::Garbage => self.say(&[0, 159, 146, 150, b'\r', b'\n', b'\r', b'\n'].repeat(32)).await,
            Fault::HeaderBomb => {
                let line = format!("x-bomb: {}\r\n", "x".repeat(1000));
                self.say(format!("HTTP/1.1 200 OK\r\n{}", line.repeat(1000)).as_bytes()).await
            }
        }
    }

    /// A whole answer.
    fn whole(&self, call: &str) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {ANSWER_LENGTH}\r\n\r\n");
        [head.into_bytes(), body(self.name, call)].concat()
    }

    async fn say(&mut self, bytes: &[u8]) -> io::Result<End> {
        self.stream.write_all(bytes).await.map(|()| End::GoOn)
    }

    async fn head(&mut self) -> io::Result<Option<Head>> {
        let end = loop {
            if let Some(end) = position(&self.read, b"\r\n\r\n") {
                break end + 4;
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        };
        let text = String::from_utf8_lossy(&self.read.split_to(end)).into_owned();
        let field = |name: &str| {
            let fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).next()
        };
        let length = field("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
        let chunked = field("transfer-encoding").is_some();
        let body = if chunked { Framing::Chunked } else { Framing::Length(length) };
        Ok(Some(Head { call: field("x-call").unwrap_or_default(), body }))
    }

    /// Reads a body and forgets it.
    async fn pass_over(&mut self, body: Framing) -> io::Result<()> {
        match body {
            Framing::Length(mut left) => loop {
                let here = left.min(self.read.len());
                self.read.advance(here);
                left -= here;
                if left == 0 {
                    return Ok(());
                }
                self.more().await?;
            },
            Framing::Chunked => loop {
                let size = loop {
                    match position(&self.read, b"\r\n") {
                        Some(end) => break String::from_utf8_lossy(&self.read.split_to(end + 2)).into_owned(),
                        None => self.more().await?,
                    }
                };
                let mut left = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)? + 2;
                let last = left == 2;
                while left > 0 {
                    let here = left.min(self.read.len());
                    self.read.advance(here);
                    left -= here;
                    if left > 0 {
                        self.more().await?;
                    }
                }
                if last {
                    return Ok(());
                }
            },
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The body of an answer: it names who answers which call, and is filled up.
fn body(name: &str, call: &str) -> Vec<u8> {
    let mut body = format!("{name} answers {call}\n").into_bytes();
    body.resize(ANSWER_LENGTH, b'.');
    body
}

fn position(of: &[u8], what: &[u8]) -> Option<usize> {
    of.windows(what.len()).position(|window| window == what)
}

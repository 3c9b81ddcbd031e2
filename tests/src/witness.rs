//! An application that believes nothing and tells everything: on a bare socket it writes down each head as it stands, and answers
//! with it.
//!
//! It reads framing in the strictest way there is. What it cannot read is written down as such, so that a test sees it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::by_hand::find;

/// What is written down instead of a head that cannot be read.
pub const UNREADABLE: &str = "UNREADABLE";

/// Serves on a port of loopback until dropped.
#[derive(Debug)]
pub struct Witness {
    seen: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Witness {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn start(port: u16) -> io::Result<Self> {
        let listener = crate::listen(port).await?;
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let written = Arc::clone(&seen);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Whoever breaks off is its own business.
                tokio::spawn(serve(stream, Arc::clone(&written)));
            }
        });
        Ok(Self { seen, serving })
    }

    /// The heads that came since this was last asked, without their empty lines.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Vec<String>>>) -> io::Result<()> {
    let write_down = |head: String| seen.lock().unwrap_or_else(PoisonError::into_inner).push(head);
    let mut came = BytesMut::new();
    loop {
        let end = loop {
            if let Some(end) = find(&came, b"\r\n\r\n") {
                break end;
            }
            if stream.read_buf(&mut came).await? == 0 {
                if !came.is_empty() {
                    write_down(format!("{UNREADABLE} {}", came.escape_ascii()));
                }
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&came.split_to(end)).into_owned();
        came.advance(4);
        write_down(head.clone());
        if !body(&mut stream, &mut came, &head).await? {
            write_down(format!("{UNREADABLE} body of {head}"));
            return Ok(());
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// Reads past the body; false when its framing has more than one meaning, or none.
async fn body(stream: &mut TcpStream, came: &mut BytesMut, head: &str) -> io::Result<bool> {
    let fields: Vec<(String, &str)> = head
        .split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let all =
        |wanted: &str| fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| *value).collect::<Vec<_>>();
    match (all("content-length").as_slice(), all("transfer-encoding").as_slice()) {
        ([], []) => Ok(true),
        ([length], []) => match length.parse::<usize>() {
            Ok(length) => take(stream, came, length).await.map(|()| true),
            Err(_) => Ok(false),
        },
        ([], ["chunked"]) => chunks(stream, came).await,
        _ => Ok(false),
    }
}

async fn chunks(stream: &mut TcpStream, came: &mut BytesMut) -> io::Result<bool> {
    loop {
        let end = until(stream, came, |came| find(came, b"\r\n")).await?;
        let line = String::from_utf8_lossy(&came.split_to(end)).into_owned();
        came.advance(2);
        let Ok(size) = usize::from_str_radix(&line, 16) else { return Ok(false) };
        if size > 0 {
            take(stream, came, size + 2).await?;
            continue;
        }
        loop {
            let end = until(stream, came, |came| find(came, b"\r\n")).await?;
            came.advance(end + 2);
            if end == 0 {
                return Ok(true);
            }
        }
    }
}

async fn take(stream: &mut TcpStream, came: &mut BytesMut, length: usize) -> io::Result<()> {
    until(stream, came, |came| (came.len() >= length).then_some(length)).await?;
    came.advance(length);
    Ok(())
}

async fn until(
    stream: &mut TcpStream,
    came: &mut BytesMut,
    enough: impl Fn(&[u8]) -> Option<usize>,
) -> io::Result<usize> {
    loop {
        if let Some(end) = enough(came) {
            return Ok(end);
        }
        if stream.read_buf(came).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

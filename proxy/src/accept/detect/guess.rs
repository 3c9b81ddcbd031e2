//! What a connection speaks to a port of which nobody wrote down what is spoken there: requests, or bytes that are none.
//!
//! [`super::detect`] takes everything for HTTP/1 that it does not know, because its parser answers whoever is wrong; here what is
//! wrongly taken for HTTP would be broken. So the line must begin as a request's: an upper-case word, a blank, and a target.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{PREFACE, Speaks, Spoken};

/// The longest method that is known as one. What it leaves of the buffer holds the longest beginning of a target.
const LONGEST_METHOD: usize = 16;
/// How the target of a request begins.
const TARGETS: [&[u8]; 4] = [b"/", b"* ", b"http://", b"https:/"];

/// What the first bytes were, or that there were none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guess {
    /// HTTP, of this version.
    Requests(Speaks),
    /// Something else.
    Bytes,
    /// Nothing, in all the time there was.
    Silence,
}

/// Looks at the first bytes of `stream`, which may take as long as `patience`.
///
/// # Errors
/// The connection's own.
pub(crate) async fn guess<S: AsyncRead + Unpin>(stream: S, patience: Duration) -> io::Result<(Guess, Spoken<S>)> {
    let mut spoken = Spoken::unheard(stream);
    let guess = match tokio::time::timeout(patience, spoken.guess()).await {
        Ok(guess) => guess?,
        Err(_) if spoken.read == 0 => Guess::Silence,
        // Half a request's beginning, and then nothing.
        Err(_) => Guess::Bytes,
    };
    Ok((guess, spoken))
}

/// Looks again at a connection that was taken for HTTP/1 because it is nothing else that is known.
///
/// # Errors
/// The connection's own.
pub(crate) async fn begins_a_request<S: AsyncRead + Unpin>(
    spoken: &mut Spoken<S>,
    patience: Duration,
) -> io::Result<bool> {
    let guess = match of(&spoken.first[..usize::from(spoken.read)]) {
        Some(guess) => guess,
        None => tokio::time::timeout(patience, spoken.guess()).await.unwrap_or(Ok(Guess::Bytes))?,
    };
    Ok(matches!(guess, Guess::Requests(_)))
}

impl<S: AsyncRead + Unpin> Spoken<S> {
    async fn guess(&mut self) -> io::Result<Guess> {
        loop {
            let seen = usize::from(self.read);
            let read = self.stream.read(&mut self.first[seen..]).await?;
            self.read = u8::try_from(seen + read).unwrap_or(u8::MAX);
            if let Some(guess) = of(&self.first[..seen + read]) {
                return Ok(guess);
            }
            // It has said all, and that was no request.
            if read == 0 || seen + read == self.first.len() {
                return Ok(Guess::Bytes);
            }
        }
    }
}

/// What bytes begin; `None`: more must be known.
fn of(said: &[u8]) -> Option<Guess> {
    if said == PREFACE {
        return Some(Guess::Requests(Speaks::Http2));
    }
    if PREFACE.starts_with(said) {
        return None;
    }
    let method = said.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    if method == 0 || method > LONGEST_METHOD {
        return Some(Guess::Bytes);
    }
    let target = match &said[method..] {
        [] => return None,
        [b' ', target @ ..] => target,
        _ => return Some(Guess::Bytes),
    };
    if TARGETS.iter().any(|begin| begins_with(target, begin)) {
        return Some(Guess::Requests(Speaks::Http1));
    }
    let undecided = TARGETS.iter().any(|begin| begins_with(begin, target));
    if undecided { None } else { Some(Guess::Bytes) }
}

fn begins_with(text: &[u8], begin: &[u8]) -> bool {
    text.get(..begin.len()).is_some_and(|start| start.eq_ignore_ascii_case(begin))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn only_what_begins_as_a_request_is_taken_for_one() {
        let http1 = Some(Guess::Requests(Speaks::Http1));
        for (said, guess) in [
            (&b"GET / HTTP/1.1\r\n"[..], http1),
            (b"OPTIONS * HTTP/1.1\r\n", http1),
            (b"POST http://orders/", http1),
            (b"VERSION-CONTROL HTTPS://", http1),
            (b"PRI * HTTP/1.1\r\n", http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Guess::Requests(Speaks::Http2))),
            (b"GET", None),
            (b"GET ", None),
            (b"GET htt", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM", None),
            (b"GET key\r\n", Some(Guess::Bytes)),
            (b"GET hello\r\n", Some(Guess::Bytes)),
            (b"PING\r\n", Some(Guess::Bytes)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Guess::Bytes)),
            (b"\x16\x03\x01\x02\x00\x01", Some(Guess::Bytes)),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Guess::Bytes)),
            (b"ABCDEFGHIJKLMNOPQRSTUVWX", Some(Guess::Bytes)),
        ] {
            assert_eq!(of(said), guess, "{}", said.escape_ascii());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_waited_for_as_long_as_it_may_take_and_bytes_are_not_waited_for() {
        let begun = Instant::now();
        let (mut caller, ours) = tokio::io::duplex(64);
        let (guess_of, _) = guess(ours, PATIENCE).await.unwrap();
        assert_eq!((guess_of, begun.elapsed() >= PATIENCE), (Guess::Silence, true));
        assert!(caller.write_all(b"late").await.is_err(), "it was dropped");

        let (mut caller, ours) = tokio::io::duplex(64);
        caller.write_all(b"*1\r\n").await.unwrap();
        let begun = Instant::now();
        let (guess_of, mut spoken) = guess(ours, PATIENCE).await.unwrap();
        assert_eq!((guess_of, begun.elapsed()), (Guess::Bytes, Duration::ZERO));
        drop(caller);
        let mut again = Vec::new();
        spoken.read_to_end(&mut again).await.unwrap();
        assert_eq!(again, b"*1\r\n", "what was looked at is read again");
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_or_the_end_before_one_is_bytes() {
        let (mut caller, ours) = tokio::io::duplex(64);
        caller.write_all(b"GET ").await.unwrap();
        assert_eq!(guess(ours, PATIENCE).await.unwrap().0, Guess::Bytes);
        let (caller, ours) = tokio::io::duplex(64);
        drop(caller);
        assert_eq!(guess(ours, PATIENCE).await.unwrap().0, Guess::Bytes);
    }
}

//! `equerry-proxy wait`: ask the sidecar until it is ready, and say what was missing when it is not in time.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::config::WaitFor;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// One question takes at most this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Polls until ready (exit code 0) or until the time is up (1).
pub(crate) fn run(asked: &WaitFor) -> ExitCode {
    let until = Instant::now() + asked.timeout;
    loop {
        let missing = match ask(asked.telemetry) {
            Ok((200, _)) => return ExitCode::SUCCESS,
            Ok((_, body)) => body,
            Err(error) => {
                format!("not ready: nothing answers at {} ({error}); is the sidecar running?\n", asked.telemetry)
            }
        };
        if Instant::now() >= until {
            let mut said = String::new();
            let _ = write!(said, "equerry-proxy: not ready after {:?}\n{missing}", asked.timeout);
            let _ = std::io::stderr().write_all(said.as_bytes());
            return ExitCode::FAILURE;
        }
        std::thread::sleep(PAUSE.min(until.saturating_duration_since(Instant::now())));
    }
}

/// One GET of `/healthz/ready`: status and body.
fn ask(address: SocketAddr) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream
        .write_all(format!("GET /healthz/ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(16 * 1024).read_to_string(&mut answer)?;
    let unlike = || std::io::Error::other("the answer is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(unlike)?;
    let status = head.split_ascii_whitespace().nth(1).and_then(|code| code.parse().ok()).ok_or_else(unlike)?;
    Ok((status, body.to_owned()))
}

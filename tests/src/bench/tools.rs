//! What this program is when it starts itself under another name: the relay that is the floor, and open-loop load.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

/// Whether `word` names one of these tools.
pub(crate) fn knows(word: &str) -> bool {
    matches!(word, "relay" | "paced" | "sink" | "idle")
}

/// Runs the tool that the arguments name.
pub(crate) fn run() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["relay", listen, to] => relay(listen, to),
        ["paced", to, rate, connections, seconds, headers @ ..] => paced(to, rate, connections, seconds, headers),
        ["sink", listen] => sink(listen),
        ["idle", to, connections, headers @ ..] => idle(to, connections, headers),
        other => Err(anyhow::anyhow!("these arguments mean nothing: {other:?}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Bytes both ways and nothing else, on one thread: what any proxy on this runtime must at least pay.
fn relay(listen: &str, to: &str) -> Result<()> {
    let to: std::net::SocketAddr = to.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        loop {
            let (mut caller, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                let mut upstream = tokio::net::TcpStream::connect(to).await?;
                caller.set_nodelay(true)?;
                upstream.set_nodelay(true)?;
                tokio::io::copy_bidirectional_with_sizes(&mut caller, &mut upstream, 16 * 1024, 16 * 1024).await
            });
        }
    })
}

/// A fixed rate, whatever the answers take: latency counts from when a request was due, so waiting is never left out.
/// Each connection is a thread that sleeps until its next request is due.
fn paced(to: &str, rate: &str, connections: &str, seconds: &str, headers: &[&str]) -> Result<()> {
    let (rate, connections, seconds): (f64, u32, f64) = (rate.parse()?, connections.parse()?, seconds.parse()?);
    let request = request("/", headers);
    let gap = Duration::from_secs_f64(f64::from(connections) / rate);
    let begin = Instant::now() + Duration::from_millis(200);
    let end = begin + Duration::from_secs_f64(seconds);
    let threads: Vec<_> = (0..connections)
        .map(|n| {
            let (to, request) = (to.to_owned(), request.clone());
            let first = begin + gap.mul_f64(f64::from(n) / f64::from(connections));
            std::thread::Builder::new().stack_size(128 * 1024).spawn(move || one_paced(&to, &request, first, gap, end))
        })
        .collect::<std::io::Result<_>>()?;
    let (mut micros, mut errors) = (Vec::new(), 0_usize);
    for thread in threads {
        match thread.join() {
            Ok(Ok(mut times)) => micros.append(&mut times),
            Ok(Err(_)) | Err(_) => errors += 1,
        }
    }
    micros.sort_by(f64::total_cmp);
    let said = json!({"requests": micros.len(), "micros": (seconds * 1e6) as u64, "errors": errors,
        "p50": at(&micros, 0.5), "p99": at(&micros, 0.99), "p999": at(&micros, 0.999)});
    writeln!(std::io::stdout(), "{said}")?;
    Ok(())
}

fn one_paced(to: &str, request: &[u8], first: Instant, gap: Duration, end: Instant) -> Result<Vec<f64>> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let mut times = Vec::new();
    let mut due = first;
    while due < end {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        reader.get_mut().write_all(request)?;
        let (status, _) = answer(&mut reader)?;
        if status != 200 {
            bail!("status {status}");
        }
        times.push(due.elapsed().as_secs_f64() * 1e6);
        due += gap;
    }
    Ok(times)
}

/// An application that reads whole bodies, whatever their framing, and answers with nothing.
fn sink(listen: &str) -> Result<()> {
    let listener = std::net::TcpListener::bind(listen)?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || -> Result<()> {
            stream.set_nodelay(true)?;
            let mut reader = BufReader::with_capacity(256 * 1024, stream);
            loop {
                message(&mut reader, &mut std::io::sink())?;
                reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
            }
        });
    }
    Ok(())
}

/// Opens connections, sends one request on each, and holds them until standard input ends.
fn idle(to: &str, connections: &str, headers: &[&str]) -> Result<()> {
    let request = request("/", headers);
    let mut held = Vec::new();
    for _ in 0..connections.parse()? {
        let mut reader = BufReader::new(TcpStream::connect(to)?);
        reader.get_mut().write_all(&request)?;
        let (status, said) = answer(&mut reader)?;
        if status != 200 {
            bail!("status {status}: {said}");
        }
        held.push(reader);
    }
    writeln!(std::io::stdout(), "open")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Asks a port of this machine once.
///
/// # Errors
/// When there is no answer.
pub(crate) fn get(port: u16, path: &str, headers: &[&str]) -> Result<(u16, String)> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    reader.get_mut().write_all(&request(path, headers))?;
    answer(&mut reader)
}

fn request(path: &str, headers: &[&str]) -> Vec<u8> {
    let host = if headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:")) {
        ""
    } else {
        "host: localhost\r\n"
    };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\n{host}{headers}\r\n").into_bytes()
}

fn answer(reader: &mut impl BufRead) -> Result<(u16, String)> {
    let mut body = Vec::new();
    let first = message(reader, &mut body)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// A message with `Content-Length` or chunks: its first line; its body goes to `to`.
fn message(reader: &mut impl BufRead, to: &mut impl Write) -> Result<String> {
    let first = line(reader)?;
    let (mut length, mut chunked) = (0_u64, false);
    loop {
        let header = line(reader)?.to_ascii_lowercase();
        match header.split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse()?,
            Some(("transfer-encoding", value)) => chunked = value.contains("chunked"),
            Some(_) => {}
            None => break,
        }
    }
    if !chunked {
        passed(reader, length, to)?;
        return Ok(first);
    }
    loop {
        let size = u64::from_str_radix(line(reader)?.split(';').next().unwrap_or_default().trim(), 16)?;
        passed(reader, size, to)?;
        line(reader)?;
        if size == 0 {
            return Ok(first);
        }
    }
}

fn passed(reader: &mut impl BufRead, bytes: u64, to: &mut impl Write) -> Result<()> {
    if std::io::copy(&mut reader.take(bytes), to)? < bytes {
        bail!("the connection ended within a body");
    }
    Ok(())
}

fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        bail!("the connection ended");
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}

/// The value below which `share` of the sorted values lie.
pub(crate) fn at(sorted: &[f64], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

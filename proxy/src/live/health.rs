//! Whether the application answers, asked on loopback. The verdict travels with the lease, so callers need not probe.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Between two probes of an application whose verdict stands.
const INTERVAL: Duration = Duration::from_secs(2);
/// Between two probes of one that has never been healthy, or whose verdict is in doubt.
const SOON: Duration = Duration::from_millis(250);
/// A probe that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many failures in a row make a healthy application unhealthy; one success makes it healthy.
const FAILURES: u32 = 2;

/// What the probes say of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it answers.
    pub healthy: bool,
    /// If not, why.
    pub detail: String,
}

impl Health {
    fn not_yet(detail: impl Into<String>) -> Self {
        Self { healthy: false, detail: detail.into() }
    }
}

/// Probes until nobody listens any more. Without an application port there is nothing to ask: it counts as healthy.
pub(crate) async fn probe(port: Option<u16>, path: Option<String>, verdict: watch::Sender<Health>) {
    let Some(port) = port else {
        verdict.send_replace(Health { healthy: true, detail: String::new() });
        return;
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut failures = FAILURES;
    while !verdict.is_closed() {
        let result = match &path {
            Some(path) => get(address, path).await,
            None => connect(address).await.map(drop),
        };
        let rest = match result {
            Ok(()) => {
                failures = 0;
                verdict.send_if_modified(|now| change(now, Health { healthy: true, detail: String::new() }));
                INTERVAL
            }
            Err(why) => {
                failures = failures.saturating_add(1);
                if failures >= FAILURES {
                    verdict.send_if_modified(|now| change(now, Health::not_yet(why)));
                }
                SOON
            }
        };
        tokio::time::sleep(rest).await;
    }
}

/// The verdict before the first probe.
pub(crate) fn unknown() -> watch::Sender<Health> {
    watch::Sender::new(Health::not_yet("the application has not been probed yet"))
}

fn change(now: &mut Health, next: Health) -> bool {
    let changed = *now != next;
    *now = next;
    changed
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("application port {}: {error}", address.port())),
        Err(_) => Err(format!("application port {}: no connection within {PATIENCE:?}", address.port())),
    }
}

/// Asks for `path` and reads no more than the status line.
async fn get(address: SocketAddr, path: &str) -> Result<(), String> {
    let mut stream = connect(address).await?;
    let asked = async {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost:{}\r\nuser-agent: equerry-health\r\nconnection: close\r\n\r\n",
            address.port()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::with_capacity(64);
        while !head.contains(&b'\n') && head.len() < 256 {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(head)
    };
    let head = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(head)) => head,
        Ok(Err(error)) => return Err(format!("GET {path}: {error}")),
        Err(_) => return Err(format!("GET {path}: no answer within {PATIENCE:?}")),
    };
    let line = String::from_utf8_lossy(&head);
    match line.split_ascii_whitespace().nth(1).and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=299) if line.starts_with("HTTP/1.") => Ok(()),
        Some(code) => Err(format!("GET {path}: status {code}")),
        None => Err(format!("GET {path}: no HTTP answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_2xx_is_healthy_and_anything_else_says_what_it_was() {
        assert_eq!(get(answering("HTTP/1.1 204 No Content\r\n\r\n").await, "/healthz").await, Ok(()));
        let sick = get(answering("HTTP/1.1 503 Oh\r\n\r\n").await, "/healthz").await.unwrap_err();
        assert!(sick.contains("status 503"), "{sick}");
        let strange = get(answering("SSH-2.0-x\r\n").await, "/healthz").await.unwrap_err();
        assert!(strange.contains("no HTTP answer"), "{strange}");
    }

    #[tokio::test]
    async fn without_a_path_accepting_a_connection_is_enough_and_a_closed_port_is_named() {
        let address = answering("").await;
        let verdict = unknown();
        let mut seen = verdict.subscribe();
        let probing = tokio::spawn(probe(Some(address.port()), None, verdict));
        seen.wait_for(|health| health.healthy).await.unwrap();
        probing.abort();

        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let verdict = unknown();
        let mut seen = verdict.subscribe();
        let probing = tokio::spawn(probe(Some(closed.port()), None, verdict));
        let health = seen.wait_for(|health| health.detail.contains(&closed.port().to_string())).await.unwrap().clone();
        assert!(!health.healthy);
        probing.abort();
    }
}

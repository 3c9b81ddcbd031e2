//! Ports for children, chosen once and remembered, so that a restarted child finds its old place free.
//!
//! A port is held (bound) from its choice until the child that will listen there is about to start. Ports are taken
//! from below the kernel's ephemeral range: there no outgoing connection can sit on one while a child restarts.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// A port on loopback that nobody else can choose until it is released.
#[derive(Debug)]
pub struct HeldPort {
    port: u16,
    held: Mutex<Option<TcpListener>>,
}

impl HeldPort {
    /// Takes a free port.
    ///
    /// # Errors
    /// When none of many tries was free.
    pub fn take() -> io::Result<Self> {
        let end = ephemeral_start().unwrap_or(32_768);
        let mut last = io::Error::other("no port was tried");
        for _ in 0..200 {
            let port = fastrand::u16(10_000..end.max(10_001));
            match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
                Ok(listener) => return Ok(Self { port, held: Mutex::new(Some(listener)) }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Lets go of it, for the child that listens there next.
    pub fn release(&self) {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}

/// Where Linux begins to hand out ports of its own choice.
fn ephemeral_start() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_port_is_nobody_elses_until_it_is_released() {
        let port = HeldPort::take().unwrap();
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).is_err());
        port.release();
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).is_ok());
    }
}

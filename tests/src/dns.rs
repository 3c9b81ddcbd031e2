//! A name server of a test, which says what it was told to (RFC 1035, UDP alone, A records): what a real resolver makes of
//! it is what is tested.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// How long its answers hold, in seconds: sidecars ask again soon.
const TTL: u32 = 1;
const HEADER: usize = 12;
const A: u16 = 1;
/// This is an answer, recursion was wanted and is available.
const ANSWER: u16 = 0x8180;
const NXDOMAIN: u16 = 3;

/// The name server; it ends when this is dropped.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    known: Arc<Mutex<Known>>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: HashMap<String, Ipv4Addr>,
    asked: HashSet<String>,
    silent: bool,
}

impl NameServer {
    /// Starts one that knows nobody.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.context("binding the name server")?;
        let address = socket.local_addr()?;
        let known = Arc::<Mutex<Known>>::default();
        let serving = tokio::spawn(serve(socket, Arc::clone(&known)));
        Ok(Self { address, known, serving })
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `name` is at `address`.
    pub fn say(&self, name: &str, address: Ipv4Addr) {
        self.known().addresses.insert(name.to_owned(), address);
    }

    /// From now on nothing is answered at all, or everything again.
    pub fn be_silent(&self, silent: bool) {
        self.known().silent = silent;
    }

    /// Whether anybody asked for `name`.
    pub fn was_asked(&self, name: &str) -> bool {
        self.known().asked.contains(name)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(socket: UdpSocket, known: Arc<Mutex<Known>>) {
    let mut question = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut question).await {
        let answer = answer(&question[..length], &mut known.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(answer) = answer {
            // Whoever asked may be gone.
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// The answer to one question; `None`: it is none, or nothing is answered.
fn answer(question: &[u8], known: &mut Known) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]);
    let name = labels.join(".");
    known.asked.insert(name.clone());
    if known.silent {
        return None;
    }
    let address = known.addresses.get(&name);
    let found = address.filter(|_| kind == A);
    let mut answer = question[..2].to_vec();
    let flags = if address.is_some() { ANSWER } else { ANSWER | NXDOMAIN };
    // One question, the answers, no authorities and nothing more.
    for word in [flags, 1, u16::from(found.is_some()), 0, 0] {
        answer.extend(word.to_be_bytes());
    }
    answer.extend(&question[HEADER..at + 4]);
    if let Some(address) = found {
        // The name is that of the question, twelve bytes from the start; then type, class, time to live, length, address.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1]);
        answer.extend(TTL.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

//! How many connections one process holds: as many as the operator says, or as its file descriptors can carry.
//!
//! Each connection may need a second one, to where its requests go. Neither side may take all of the room: strangers who
//! fill the inbound side leave the application its way out, and no one of them may take more than half of it: of 16,384 places the
//! inbound side may take 14,336 (7/8), one peer 7,168 (7/16).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::observe::Direction;

/// Connections at once where nobody says how many: some hundred MiB when all are idle.
const USUAL: usize = 16_384;
/// File descriptors for everything else: listeners, files, the control plane, telemetry.
const RESERVED: u64 = 128;
/// Connections that are told at once that there is no room; the others are closed without a word.
pub(super) const TURNED_AWAY_AT_ONCE: usize = 64;

/// Room for connections.
#[derive(Debug)]
pub struct Room {
    most: usize,
    inbound: Arc<AtomicUsize>,
    outbound: Arc<AtomicUsize>,
    turned_away: Arc<AtomicUsize>,
    peers: Arc<Peers>,
}

/// How many inbound connections each peer has.
#[derive(Debug, Default)]
struct Peers(Mutex<HashMap<IpAddr, usize>>);

impl Peers {
    /// Another connection of `peer`, unless it has `most`.
    fn admit(&self, peer: IpAddr, most: usize) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        let admitted = *count < most;
        *count += usize::from(admitted);
        admitted
    }

    fn left(&self, peer: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&peer);
            }
        }
    }
}

/// Whoever has an address: of IPv6 each has a network of 2^64.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// Why there is no place for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The process, or this side of it, holds as many as it may.
    Process,
    /// Whoever opens it holds as many as one peer may, and others are served.
    Peer,
}

impl Full {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process_full",
            Self::Peer => "peer_share",
        }
    }
}

/// A place of one connection; given back when dropped.
#[derive(Debug)]
pub struct Place {
    count: Arc<AtomicUsize>,
    peer: Option<(Arc<Peers>, IpAddr)>,
}

impl Place {
    fn of(count: &Arc<AtomicUsize>, peer: Option<(Arc<Peers>, IpAddr)>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count: Arc::clone(count), peer }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Some((peers, peer)) = &self.peer {
            peers.left(*peer);
        }
    }
}

impl Room {
    /// Room for `most` connections.
    pub fn new(most: usize) -> Self {
        let (inbound, outbound, turned_away, peers) = Default::default();
        Self { most, inbound, outbound, turned_away, peers }
    }

    /// A place for a connection of `peer` that comes in on this side. Only the acceptor takes places.
    ///
    /// # Errors
    /// When there is none; [`Self::turn_away`] then says whether it can be told so.
    pub fn take(&self, direction: Direction, peer: IpAddr) -> Result<Place, Full> {
        let count = |side: &AtomicUsize| side.load(Ordering::Relaxed);
        let (mine, other) = match direction {
            Direction::Inbound => (&self.inbound, &self.outbound),
            Direction::Outbound => (&self.outbound, &self.inbound),
        };
        let most = self.most - self.most / 8;
        if count(mine) + count(other) >= self.most || count(mine) >= most {
            return Err(Full::Process);
        }
        // What calls here on the outbound side is all one: the application.
        let peer = (direction == Direction::Inbound).then(|| peer_of(peer));
        if peer.is_some_and(|peer| !self.peers.admit(peer, most.div_ceil(2))) {
            return Err(Full::Peer);
        }
        Ok(Place::of(mine, peer.map(|peer| (Arc::clone(&self.peers), peer))))
    }

    /// A place in which a connection is told that there is none for it; `None`: not even that.
    pub fn turn_away(&self) -> Option<Place> {
        let told = self.turned_away.load(Ordering::Relaxed) < TURNED_AWAY_AT_ONCE;
        told.then(|| Place::of(&self.turned_away, None))
    }
}

/// How many connections there is room for: as many as were `asked` for, else the usual number, if there are file descriptors
/// for them. Takes as many of those as the system allows.
pub(crate) fn connections(asked: Option<usize>) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // A process may always raise its own limit to the hard one.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let descriptors = if raised.is_ok() { limit.maximum } else { limit.current };
    let carried = carried_by(descriptors);
    match asked {
        Some(asked) => {
            if asked > carried {
                tracing::warn!(
                    asked,
                    descriptors,
                    "--max-connections is more than half of the file descriptors of this process: each may need two"
                );
            }
            asked
        }
        None => carried.min(USUAL),
    }
}

/// How many connections so many file descriptors carry; `None`: any number of them.
fn carried_by(descriptors: Option<u64>) -> usize {
    let carried = descriptors.map_or(u64::MAX, |descriptors| descriptors.saturating_sub(RESERVED) / 2);
    usize::try_from(carried).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_may_need_two_file_descriptors_and_the_process_needs_some_of_its_own() {
        assert_eq!((carried_by(Some(1024)), carried_by(Some(100)), carried_by(None)), (448, 1, usize::MAX));
        assert!((1..=USUAL).contains(&connections(None)));
        assert_eq!(connections(Some(7)), 7);
    }

    #[test]
    fn strangers_who_fill_one_side_leave_room_on_the_other() {
        let room = Room::new(16);
        let served = |direction, peer: u8| room.take(direction, [192, 0, 2, peer].into()).ok();
        let inbound: Vec<_> = (0..20).filter_map(|peer| served(Direction::Inbound, peer)).collect();
        assert_eq!(inbound.len(), 14);
        let outbound: Vec<_> = std::iter::from_fn(|| served(Direction::Outbound, 1)).collect();
        assert_eq!(outbound.len(), 2);
        assert_eq!(room.take(Direction::Outbound, [127, 0, 0, 1].into()).unwrap_err(), Full::Process);
        assert!(room.turn_away().is_some());
        drop(inbound);
        assert!(served(Direction::Outbound, 1).is_some());
    }

    #[test]
    fn one_peer_takes_half_of_the_inbound_side_and_no_more() {
        let room = Room::new(16);
        let served = |peer: &str| room.take(Direction::Inbound, peer.parse().unwrap()).ok();
        let greedy: Vec<_> = std::iter::from_fn(|| served("192.0.2.1")).collect();
        assert_eq!(greedy.len(), 7);
        assert!(served("::ffff:192.0.2.1").is_none(), "the same address in another form");
        assert_eq!(room.take(Direction::Inbound, [192, 0, 2, 1].into()).unwrap_err(), Full::Peer);
        let modest = served("192.0.2.2");
        assert!(modest.is_some(), "another is served");
        drop(greedy);
        assert!(served("192.0.2.1").is_some(), "places are given back");
        drop(modest);
        let neighbours: Vec<_> = (0..20).filter_map(|host| served(&format!("2001:db8::{host}"))).collect();
        assert_eq!(neighbours.len(), 7, "a network of IPv6 is one peer");
        assert!(served("2001:db8:0:1::1").is_some());
        drop(neighbours);
        assert!(room.peers.0.lock().unwrap().is_empty(), "nobody is remembered who has gone");
    }
}

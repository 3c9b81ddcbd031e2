//! How many connections one process holds: as many as the operator says, or as its file descriptors can carry.
//!
//! Each connection may need a second one, to where its requests go. Neither side may take all of the room: strangers who
//! fill the inbound side leave the application its way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Welcome;
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
}

/// A place of one connection; given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Place {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Room {
    /// Room for `most` connections.
    pub fn new(most: usize) -> Self {
        Self { most, inbound: Arc::default(), outbound: Arc::default(), turned_away: Arc::default() }
    }

    /// A place for a connection that comes in on this side, or one in which it is told that there is none; `None`: not even
    /// that. Only the acceptor takes places.
    pub fn take(&self, direction: Direction) -> Option<(Welcome, Place)> {
        let count = |side: &AtomicUsize| side.load(Ordering::Relaxed);
        let (mine, other) = match direction {
            Direction::Inbound => (&self.inbound, &self.outbound),
            Direction::Outbound => (&self.outbound, &self.inbound),
        };
        if count(mine) + count(other) < self.most && count(mine) < self.most - self.most / 8 {
            return Some((Welcome::Served, Place::of(mine)));
        }
        (count(&self.turned_away) < TURNED_AWAY_AT_ONCE).then(|| (Welcome::TurnedAway, Place::of(&self.turned_away)))
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
        let served = |direction| room.take(direction).filter(|(welcome, _)| *welcome == Welcome::Served);
        let inbound: Vec<_> = std::iter::from_fn(|| served(Direction::Inbound)).collect();
        assert_eq!(inbound.len(), 14);
        let outbound: Vec<_> = std::iter::from_fn(|| served(Direction::Outbound)).collect();
        assert_eq!(outbound.len(), 2);
        assert_eq!(room.take(Direction::Outbound).unwrap().0, Welcome::TurnedAway);
        drop(inbound);
        assert!(served(Direction::Outbound).is_some());
    }
}

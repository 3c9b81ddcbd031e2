//! The exchanges of one connection, polled by the connection's own task: what a task for each would allocate, move and count
//! is kept for the next.
//!
//! An exchange that is woken is polled when its connection is, and no other is. None uses up the turns of others: what each may
//! say before it waits is bounded where it says it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::coop::{Unconstrained, unconstrained};

/// Places that keep their memory while nobody works there.
const KEPT: usize = 32;

/// Pieces of work of one kind.
pub(super) struct Crew<F> {
    places: Vec<Place<F>>,
    free: Vec<usize>,
    bell: Arc<Mutex<Bell>>,
    /// Those who are polled in this turn.
    turn: Vec<usize>,
}

struct Place<F> {
    work: Option<Pin<Box<Option<Unconstrained<F>>>>>,
    call: Arc<Call>,
    waker: Waker,
}

/// Who was woken, and who is to be told of it.
#[derive(Default)]
struct Bell {
    woken: Vec<usize>,
    keeper: Option<Waker>,
}

/// Wakes one place.
struct Call {
    place: usize,
    called: AtomicBool,
    bell: Arc<Mutex<Bell>>,
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.called.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut bell = lock(&self.bell);
        bell.woken.push(self.place);
        let keeper = bell.keeper.take();
        drop(bell);
        if let Some(keeper) = keeper {
            keeper.wake();
        }
    }
}

/// What it guards is whole whenever somebody panics.
fn lock(bell: &Mutex<Bell>) -> MutexGuard<'_, Bell> {
    bell.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Future<Output = ()>> Crew<F> {
    /// Nobody, yet.
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), bell: Arc::default(), turn: Vec::new() }
    }

    /// Takes on a piece of work, which begins with the next [`Self::poll`]. It is made where it stays: it is several thousand bytes,
    /// of which few mean anything at its beginning.
    #[inline]
    pub(super) fn add(&mut self, work: impl FnOnce() -> F) {
        let at = self.free.pop().unwrap_or_else(|| {
            let place = self.places.len();
            let call = Arc::new(Call { place, called: AtomicBool::new(false), bell: Arc::clone(&self.bell) });
            self.places.push(Place { work: None, waker: Waker::from(Arc::clone(&call)), call });
            place
        });
        let place = &mut self.places[at];
        match &mut place.work {
            Some(kept) => kept.set(Some(unconstrained(work()))),
            none => *none = Some(Box::pin(Some(unconstrained(work())))),
        }
        // Who worked here before may have left somebody who wakes it.
        if !place.call.called.swap(true, Ordering::AcqRel) {
            self.turn.push(at);
        }
    }

    /// Has everybody polled in the next turn.
    pub(super) fn wake_all(&self) {
        for place in &self.places {
            place.call.wake_by_ref();
        }
    }

    /// Moves what was woken; `cx` is woken when more is.
    pub(super) fn poll(&mut self, cx: &Context<'_>) {
        let mut bell = lock(&self.bell);
        self.turn.append(&mut bell.woken);
        if !bell.keeper.as_ref().is_some_and(|keeper| keeper.will_wake(cx.waker())) {
            bell.keeper = Some(cx.waker().clone());
        }
        drop(bell);
        for at in self.turn.drain(..) {
            // Somebody who wakes a place may remember it for longer than it lasts.
            let Some(place) = self.places.get_mut(at) else { continue };
            place.call.called.store(false, Ordering::Release);
            let Some(work) = &mut place.work else { continue };
            let Some(future) = work.as_mut().as_pin_mut() else { continue };
            if future.poll(&mut Context::from_waker(&place.waker)) == Poll::Pending {
                continue;
            }
            work.set(None);
            if self.free.len() >= KEPT {
                place.work = None;
            }
            self.free.push(at);
        }
        if self.free.len() == self.places.len() && self.places.len() > KEPT {
            // A crowd has left.
            (self.places, self.free) = (Vec::new(), Vec::new());
        }
    }
}

#[cfg(test)]
#[path = "crew_tests.rs"]
mod tests;

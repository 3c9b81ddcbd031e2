//! When what this workload enforces has changed, all that is under way is judged again: a round, counted for each worker.
//!
//! An exchange compares a number whenever it is polled, and nothing more. Whoever waits is woken with the connection it came
//! over; changes that concern no rule of the workload, such as other endpoints, wake nobody.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Waker};

use equerry_policies::compile::CompiledWorkload;

use crate::live::LiveHandle;

/// The rounds of one worker, and the connections that are told of them.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    now: Cell<u64>,
    /// Connections that have listened since the last round, by their numbers.
    listening: RefCell<HashMap<u64, Waker>>,
    connections: Cell<u64>,
}

impl Rounds {
    /// Counts the changes of what `live` enforces. Needs a `LocalSet`.
    pub(crate) fn of(live: &LiveHandle) -> Rc<Self> {
        let rounds = Rc::new(Self::default());
        let (counted, live, mut changes) = (Rc::downgrade(&rounds), live.clone(), live.publications());
        // A `Weak` keeps the address taken, so another policy can never look like this one.
        let enforced = |live: &LiveHandle| live.load().workload.as_ref().map(Arc::downgrade);
        let mut before: Option<std::sync::Weak<CompiledWorkload>> = enforced(&live);
        tokio::task::spawn_local(async move {
            while changes.changed().await.is_ok() {
                let Some(rounds) = Weak::upgrade(&counted) else { return };
                let now = enforced(&live);
                let same = match (&before, &now) {
                    (Some(before), Some(now)) => before.ptr_eq(now),
                    (None, None) => true,
                    _ => false,
                };
                if !same {
                    before = now;
                    rounds.begin();
                }
            }
        });
        rounds
    }

    /// The round that is now. Read it before what is judged by: a change between the two is then judged again.
    pub(crate) fn now(&self) -> u64 {
        self.now.get()
    }

    /// All that is under way is judged again.
    pub(crate) fn begin(&self) {
        self.now.set(self.now.get() + 1);
        for waker in self.listening.take().into_values() {
            waker.wake();
        }
    }

    /// For a connection that is to be woken with each round.
    pub(crate) fn listening(self: &Rc<Self>) -> Listening {
        let number = self.connections.get();
        self.connections.set(number + 1);
        Listening { rounds: Rc::clone(self), number, heard: None }
    }
}

/// A connection that listens, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    rounds: Rc<Rounds>,
    number: u64,
    /// The round in which it has said where it is found.
    heard: Option<u64>,
}

impl Listening {
    /// Wakes this task with the next round. It is always the same one.
    pub(crate) fn listen(&mut self, cx: &Context<'_>) {
        let now = self.rounds.now();
        if self.heard != Some(now) {
            self.heard = Some(now);
            self.rounds.listening.borrow_mut().insert(self.number, cx.waker().clone());
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.rounds.listening.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use equerry_policies::names::{AccountName, SpiffeId};
    use equerry_policies::{compile, document, interpret, view};

    use super::*;
    use crate::live::Live;

    fn workload() -> Arc<CompiledWorkload> {
        let meaning = interpret::interpret(&document::read("test.yaml", "").unwrap()).unwrap();
        let facts = view::WorkloadFacts {
            account: AccountName::parse("shop/orders").unwrap(),
            labels: Default::default(),
            ports: vec![8080],
        };
        Arc::new(compile::workload(&view::workload(&meaning, &facts)).unwrap())
    }

    #[tokio::test]
    async fn only_a_change_of_what_is_enforced_begins_a_round_and_wakes_those_who_listen() {
        let own = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
        let live = |workload: &Arc<CompiledWorkload>| Live {
            workload: Some(Arc::clone(workload)),
            ..Live::nothing(own.clone())
        };
        let (one, other) = (workload(), workload());
        let (handle, _wants) = LiveHandle::new(live(&one));
        tokio::task::LocalSet::new()
            .run_until(async {
                let rounds = Rounds::of(&handle);
                let mut listening = rounds.listening();
                let woken = Rc::new(Cell::new(0));
                let (counts, theirs) = (Rc::clone(&woken), Rc::clone(&rounds));
                let waits = tokio::task::spawn_local(std::future::poll_fn(move |cx| {
                    counts.set(counts.get() + 1);
                    listening.listen(cx);
                    if theirs.now() == 2 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
                }));
                let settle = || async {
                    for _ in 0..10 {
                        tokio::task::yield_now().await;
                    }
                };
                settle().await;
                handle.publish(live(&one));
                settle().await;
                assert_eq!((rounds.now(), woken.get()), (0, 1), "endpoints may have changed, and nobody is woken");
                handle.publish(live(&other));
                settle().await;
                assert_eq!((rounds.now(), woken.get()), (1, 2));
                handle.publish(Live::nothing(own.clone()));
                waits.await.unwrap();
                assert_eq!(woken.get(), 3);
                assert!(rounds.listening.borrow().is_empty(), "who has left is not remembered");
            })
            .await;
    }
}

//! How long what a token let in may go on: until the token ends, or its key is withdrawn, where its rule says so
//! (`endStreamsWithToken`).
//!
//! Made for such exchanges alone; it is asked whenever something of the response could pass, and wakes whoever waits.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use equerry_traffic::Refusal;
use equerry_traffic::token::Caller;

use crate::live::LiveHandle;

/// An hour at most until the clock is looked at again: it may be set, and timers have an end.
const LONGEST: Duration = Duration::from_secs(3600);

/// Ends when the token does, with the reason.
pub(crate) struct Standing(Pin<Box<dyn Future<Output = Refusal>>>);

impl Standing {
    /// Of a request to the application port `port`; `None`: it lasts for as long as it likes.
    pub(crate) fn of(caller: &Caller, live: &LiveHandle, port: u16) -> Option<Self> {
        if !caller.ends_with_token() {
            return None;
        }
        Some(Self(Box::pin(ended(caller.clone(), live.clone(), port))))
    }

    /// Why it may not go on, if so.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        self.0.as_mut().poll(cx)
    }

    /// Waits until it may not go on.
    pub(crate) async fn ended(&mut self) -> Refusal {
        self.0.as_mut().await
    }
}

async fn ended(caller: Caller, live: LiveHandle, port: u16) -> Refusal {
    // Listening begins before the first judgement: no change falls between the two.
    let mut changes = live.publications();
    loop {
        let now = SystemTime::now();
        let ends = {
            let live = live.load();
            let Some(workload) = &live.workload else { return Refusal::PolicyUnavailable };
            if let Err(refusal) = caller.still_believed(workload, port, now) {
                return refusal;
            }
            caller.ends_at(workload, port)
        };
        let left = ends.map_or(LONGEST, |ends| ends.duration_since(now).unwrap_or_default().min(LONGEST));
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            changed = changes.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
    }
}

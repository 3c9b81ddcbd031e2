//! Lists that are watched: as server-sent events, what is there and then each change of it, until the client goes, its token is
//! revoked, or the control plane stops.
//!
//! Whoever cannot keep up costs nothing: what to tell is found out when there is room to tell it, as the difference between what
//! is there and what was told.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;

use super::shapes::Problem;
use crate::access::Actor;
use crate::control::{ControlPlane, STREAMS};
use crate::serve::until_true;

/// The media type.
pub(super) const EVENTS: &str = "text/event-stream";
/// How often is looked for what nobody announces: leases beat, proxies acknowledge.
const LOOK: Duration = Duration::from_secs(1);
/// Changes that come together are told together.
const GATHER: Duration = Duration::from_millis(100);
/// A line that says nothing, so that both ends notice when the other is gone.
const ALIVE: Duration = Duration::from_secs(10);
/// Events that may wait for the client.
const WAITING: usize = 64;

/// What was told of each item.
pub(super) type Told = HashMap<String, u64>;
/// A version that no item has.
pub(super) const OTHER: u64 = 0;

/// One item of a watched list.
pub(super) struct Item {
    /// What names it.
    pub(super) key: String,
    /// Differs when the item does; never [`OTHER`].
    pub(super) version: u64,
    /// What is told of it.
    pub(super) object: Value,
}

/// What a watch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// The next epoch.
    Documents,
    /// Any change of what the control plane knows, also one that is not announced.
    State,
}

/// The epoch that a client says it was told last.
pub(super) fn last_event(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok()
}

/// A number that differs when `value` does.
pub(super) fn version_of(value: &impl Serialize) -> u64 {
    struct Hashed(DefaultHasher);
    impl io::Write for Hashed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut hashed = Hashed(DefaultHasher::new());
    // Hashing does not fail; what cannot be written as JSON would not have been told either.
    let _ = serde_json::to_writer(&mut hashed, value);
    hashed.0.finish().max(OTHER + 1)
}

/// One server-sent event.
pub(super) fn event(name: &str, data: &Value, id: Option<u64>) -> Bytes {
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    format!("event: {name}\n{id}data: {data}\n\n").into()
}

/// Tells `look`'s items and every change of them to whoever was told `told` already.
pub(super) fn stream(
    control: &ControlPlane,
    actor: Actor,
    told: Told,
    when: When,
    look: impl Fn(&ControlPlane) -> Vec<Item> + Send + 'static,
) -> Result<Response, Problem> {
    let watcher = Watcher { control: control.clone(), actor, told, when };
    answered(control, |events| watcher.run(look, events))
}

/// A response of server-sent events, which `tell` sends until it ends.
pub(super) fn answered<F>(
    control: &ControlPlane,
    tell: impl FnOnce(mpsc::Sender<Bytes>) -> F,
) -> Result<Response, Problem>
where
    F: Future<Output = ()> + Send + 'static,
{
    let place = control.streams().try_acquire_owned().map_err(|_| {
        control.metrics().admin_refused("overload");
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overload",
            format_args!("{STREAMS} streams of events are open already; close one, or try again in a moment"),
        )
    })?;
    let (events, waiting) = mpsc::channel(WAITING);
    let telling = tell(events);
    tokio::spawn(async move {
        telling.await;
        drop(place);
    });
    let body = Body::from_stream(futures_util::StreamExt::map(ReceiverStream::new(waiting), Ok::<_, io::Error>));
    Ok(([(header::CONTENT_TYPE, EVENTS), (header::CACHE_CONTROL, "no-store")], body).into_response())
}

struct Watcher {
    control: ControlPlane,
    actor: Actor,
    told: Told,
    when: When,
}

/// The client is gone.
struct Gone;

impl Watcher {
    async fn run(mut self, look: impl Fn(&ControlPlane) -> Vec<Item>, events: mpsc::Sender<Bytes>) {
        let mut stopping = self.control.stopping();
        tokio::select! {
            ended = self.tell(look, &events) => drop(ended),
            () = until_true(&mut stopping) => {}
            () = events.closed() => {}
        }
    }

    async fn tell(
        &mut self,
        look: impl Fn(&ControlPlane) -> Vec<Item>,
        events: &mpsc::Sender<Bytes>,
    ) -> Result<(), Gone> {
        let mut changes = self.control.changes();
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_word = Instant::now();
        let mut epoch = None;
        loop {
            if !self.control.knows(&self.actor) {
                let revoked = Problem::new(StatusCode::UNAUTHORIZED, "token_invalid", "this admin token was revoked");
                return send(events, event("error", &json!(revoked), None)).await;
            }
            changes.borrow_and_update();
            let now = self.control.epoch();
            if self.when == When::State || epoch != Some(now) {
                // The epoch before the look: what the look shows beyond it is told again, never left out.
                let told = self.tell_difference(look(&self.control), events).await?;
                if told || epoch != Some(now) {
                    send(events, event("synced", &json!({"epoch": now}), Some(now))).await?;
                    last_word = Instant::now();
                }
                epoch = Some(now);
            }
            if last_word.elapsed() >= ALIVE {
                send(events, Bytes::from_static(b": alive\n\n")).await?;
                last_word = Instant::now();
            }
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = changes.changed() => tokio::time::sleep(GATHER).await,
            }
        }
    }

    /// Tells what differs from what was told; whether anything does.
    async fn tell_difference(&mut self, items: Vec<Item>, events: &mpsc::Sender<Bytes>) -> Result<bool, Gone> {
        let mut any = false;
        let there: HashSet<&str> = items.iter().map(|item| item.key.as_str()).collect();
        let mut gone: Vec<String> = self.told.keys().filter(|key| !there.contains(key.as_str())).cloned().collect();
        gone.sort();
        for key in gone {
            self.told.remove(&key);
            send(events, event("deleted", &json!({"key": key}), None)).await?;
            any = true;
        }
        for item in items {
            let word = match self.told.insert(item.key.clone(), item.version) {
                Some(version) if version == item.version => continue,
                Some(_) => "changed",
                None => "added",
            };
            send(events, event(word, &json!({"key": item.key, "object": item.object}), None)).await?;
            any = true;
        }
        Ok(any)
    }
}

async fn send(events: &mpsc::Sender<Bytes>, event: Bytes) -> Result<(), Gone> {
    events.send(event).await.map_err(|_| Gone)
}

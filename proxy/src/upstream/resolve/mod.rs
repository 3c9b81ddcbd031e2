//! What the DNS says of names outside the mesh: looked up off the request path, remembered once for the whole process, kept
//! true ahead of time while somebody uses it.
//!
//! Each name has one task, so nobody looks the same name up twice at once. Names that Services stand for are
//! [followed](Resolver::follow); names that callers choose are bounded in number, so that a caller cannot make this process
//! grow. Where nothing is ever sent is decided by `equerry_traffic::outside`, after each lookup.

mod ask;
mod memory;

#[cfg(test)]
pub(crate) mod server;

pub(crate) use ask::Asker;
pub(crate) use memory::{Answer, Bounds};

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use equerry_policies::names::HostName;
use equerry_traffic::outside::{self, ChosenBy};
use tokio::sync::{Notify, Semaphore, watch};

use crate::observe::Census;
pub(crate) use memory::Outcome;
use memory::{Learned, Memory};

/// The addresses of names that Services stand for, as far as they were answered; a name that has none, or none that may be
/// called, has an empty list.
pub(crate) type Followed = HashMap<HostName, Arc<[IpAddr]>>;

/// Why a name that a caller chose has no addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// The DNS says that there is nobody.
    Nobody,
    /// Nobody could say, and why.
    Failed(Arc<str>),
    /// As many names are remembered as may be, all of them in use.
    TooMany,
}

type Asking = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Looks names up and remembers them. Clones share everything; any thread may use it.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<Inner>);

struct Inner {
    ask: Box<dyn Fn(HostName) -> Asking + Send + Sync>,
    bounds: Bounds,
    names: RwLock<HashMap<HostName, Arc<Entry>>>,
    at_once: Semaphore,
    /// Told when the answer of a followed name changed.
    changed: watch::Sender<()>,
    counts: Counts,
    /// Where lookups run, whoever wants them: the control thread.
    runtime: tokio::runtime::Handle,
    start: Instant,
}

#[derive(Default)]
struct Counts {
    found: AtomicU64,
    nobody: AtomicU64,
    failed: AtomicU64,
}

/// One name.
struct Entry {
    memory: Mutex<Memory>,
    /// A Service stands for it.
    followed: AtomicBool,
    /// It was pushed out: its task ends.
    gone: AtomicBool,
    /// A lookup is under way, or waits for its turn.
    asking: AtomicBool,
    /// Somebody wanted it since the last lookup.
    used: AtomicBool,
    /// When somebody last did, in milliseconds from the start.
    used_at: AtomicU64,
    /// Wakes its task.
    wake: Notify,
    /// Told after each lookup.
    learned: watch::Sender<()>,
}

impl Entry {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is known may be used at once. Its task is woken when it is time to ask again, so that a name which is
    /// in use again is looked up ahead of time again.
    fn is_ready(&self) -> bool {
        let (memory, now) = (self.memory(), now());
        if memory.ask_at().is_some_and(|ask_at| ask_at <= now) {
            self.wake.notify_one();
        }
        memory.is_ready(now)
    }

    /// Whether the name is looked up ahead of time.
    fn is_wanted(&self) -> bool {
        self.followed.load(Relaxed) || self.used.load(Relaxed)
    }
}

impl Resolver {
    /// A resolver whose lookups run on the current runtime.
    pub(crate) fn new(servers: Vec<SocketAddr>, bounds: Bounds) -> Self {
        let asker = Arc::new(Asker::new(servers));
        Self::asking(bounds, move |name| {
            let asker = Arc::clone(&asker);
            Box::pin(async move { asker.ask(&name).await })
        })
    }

    /// The same with another way to look a name up.
    fn asking(bounds: Bounds, ask: impl Fn(HostName) -> Asking + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            ask: Box::new(ask),
            at_once: Semaphore::new(bounds.at_once),
            bounds,
            names: RwLock::default(),
            changed: watch::channel(()).0,
            counts: Counts::default(),
            runtime: tokio::runtime::Handle::current(),
            start: now(),
        }))
    }

    /// The addresses of a name that a caller chose: at once when they are known, else after a lookup, for which it waits at
    /// most [`Bounds::patience`]. They were not judged: [`outside::forbidden`] is asked by whoever connects.
    ///
    /// # Errors
    /// [`Unresolved`].
    pub(crate) async fn addresses(&self, name: &HostName) -> Result<Arc<[IpAddr]>, Unresolved> {
        let entry = self.0.entry(name, false).ok_or(Unresolved::TooMany)?;
        if !entry.is_ready() {
            let mut learned = entry.learned.subscribe();
            let ready = async { while !entry.is_ready() && learned.changed().await.is_ok() {} };
            // In vain: then what is known must do.
            let _ = tokio::time::timeout(self.0.bounds.patience, ready).await;
        }
        let answer = entry.memory().answer(now());
        match answer {
            Some(Answer::Addresses(addresses)) => Ok(addresses),
            Some(Answer::Nobody) => Err(Unresolved::Nobody),
            Some(Answer::Failed(why)) => Err(Unresolved::Failed(why)),
            None => Err(Unresolved::Failed(format!("no answer within {:?}", self.0.bounds.patience).into())),
        }
    }

    /// Keeps the names of `wanted` true, and tells what is known of them to `found` whenever that changes; ends when either
    /// is closed. Addresses to which nothing is ever sent are left out.
    pub(crate) async fn follow(self, mut wanted: watch::Receiver<BTreeSet<HostName>>, found: watch::Sender<Followed>) {
        let mut changed = self.0.changed.subscribe();
        loop {
            let names = wanted.borrow_and_update().clone();
            changed.borrow_and_update();
            let now = self.0.followed(&names);
            found.send_if_modified(|before| {
                let news = *before != now;
                *before = now;
                news
            });
            tokio::select! {
                more = wanted.changed() => if more.is_err() { return },
                _ = changed.changed() => {}
                () = found.closed() => return,
            }
        }
    }

    /// How much is remembered.
    pub(crate) fn census(&self) -> Census {
        let names = self.0.names.read().unwrap_or_else(PoisonError::into_inner);
        let (counts, now) = (&self.0.counts, now());
        Census {
            names: names.len(),
            stale: names.values().filter(|entry| entry.memory().is_stale(now)).count(),
            found: counts.found.load(Relaxed),
            nobody: counts.nobody.load(Relaxed),
            failed: counts.failed.load(Relaxed),
        }
    }
}

/// Of tokio's clock, which tests stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Inner {
    /// The entry of a name, made and looked up when it is new; `None`: there is no place for it.
    fn entry(self: &Arc<Self>, name: &HostName, follow: bool) -> Option<Arc<Entry>> {
        if let Some(known) = self.names.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            self.touch(known, follow);
            return Some(Arc::clone(known));
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            self.touch(known, follow);
            return Some(Arc::clone(known));
        }
        if !follow && names.len() >= self.bounds.names && !make_room(&mut names) {
            return None;
        }
        let entry = Arc::new(Entry {
            memory: Mutex::default(),
            followed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            asking: AtomicBool::new(true),
            used: AtomicBool::new(false),
            used_at: AtomicU64::new(0),
            wake: Notify::new(),
            learned: watch::channel(()).0,
        });
        self.touch(&entry, follow);
        names.insert(name.clone(), Arc::clone(&entry));
        self.runtime.spawn(Arc::clone(self).keep(name.clone(), Arc::clone(&entry)));
        Some(entry)
    }

    /// Called while the table is locked, so that an entry just found is not let go.
    fn touch(&self, entry: &Entry, follow: bool) {
        if follow {
            entry.followed.store(true, Relaxed);
        }
        entry.used.store(true, Relaxed);
        entry.used_at.store(self.milliseconds(now()), Relaxed);
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    /// What is known of the names that are followed from now on; others are no longer.
    fn followed(self: &Arc<Self>, wanted: &BTreeSet<HostName>) -> Followed {
        let (now, mut found) = (now(), Followed::new());
        for name in wanted {
            let Some(entry) = self.entry(name, true) else { continue };
            if let Some(answer) = entry.memory().answer(now) {
                found.insert(name.clone(), callable(&answer));
            }
        }
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        for (name, entry) in names.iter() {
            if entry.followed.load(Relaxed) && !wanted.contains(name) {
                entry.followed.store(false, Relaxed);
                entry.wake.notify_one();
            }
        }
        found
    }

    /// The task of one name: looks it up, remembers, rests; until nobody has used it for long.
    async fn keep(self: Arc<Self>, name: HostName, entry: Arc<Entry>) {
        loop {
            entry.asking.store(true, Relaxed);
            entry.used.store(false, Relaxed);
            self.look_up(&name, &entry).await;
            entry.asking.store(false, Relaxed);
            if !self.rest(&name, &entry).await {
                return;
            }
        }
    }

    async fn look_up(&self, name: &HostName, entry: &Entry) {
        let Ok(_place) = self.at_once.acquire().await else { return };
        let outcome = (self.ask)(name.clone()).await;
        let (count, why) = match &outcome {
            Outcome::Found { .. } => (&self.counts.found, String::new()),
            Outcome::Nobody { .. } => (&self.counts.nobody, String::new()),
            Outcome::Failed(why) => (&self.counts.failed, why.clone()),
        };
        count.fetch_add(1, Relaxed);
        let learned = entry.memory().learn(outcome, now(), &self.bounds, fastrand::f64());
        entry.learned.send_replace(());
        if entry.followed.load(Relaxed) {
            tell(name, learned, &why);
            if learned != Learned::Same {
                self.changed.send_replace(());
            }
        }
    }

    /// Rests until the name is to be looked up again: ahead of time when it was used since the last lookup, else as soon as
    /// it is used. `false`: nobody has used it for long, and it is let go.
    async fn rest(&self, name: &HostName, entry: &Arc<Entry>) -> bool {
        loop {
            let woken = entry.wake.notified();
            if entry.gone.load(Relaxed) {
                return false;
            }
            let early = entry.memory().ask_at().map_or(Duration::ZERO, |at| at.saturating_duration_since(now()));
            let rest = if !early.is_zero() {
                early
            } else if entry.is_wanted() {
                return true;
            } else {
                self.unused_for(entry)
            };
            if rest.is_zero() && self.let_go(name, entry) {
                return false;
            }
            let _ = tokio::time::timeout(rest, woken).await;
        }
    }

    /// How long until the name has been unused for long.
    fn unused_for(&self, entry: &Entry) -> Duration {
        let used_at = self.start + Duration::from_millis(entry.used_at.load(Relaxed));
        (used_at + self.bounds.unused).saturating_duration_since(now())
    }

    fn let_go(&self, name: &HostName, entry: &Arc<Entry>) -> bool {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if entry.is_wanted() {
            return false;
        }
        if names.get(name).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            names.remove(name);
        }
        true
    }
}

/// Pushes out a name that callers chose: one without addresses before one that has some, then the one that nobody has used
/// for longest. A name that is being looked up stays, so that no more lookups wait than there are names.
fn make_room(names: &mut HashMap<HostName, Arc<Entry>>) -> bool {
    let at_rest = |entry: &Entry| !entry.followed.load(Relaxed) && !entry.asking.load(Relaxed);
    let worth = |entry: &Entry| {
        let has_some = matches!(entry.memory().answer(now()), Some(Answer::Addresses(_)));
        (has_some, entry.used_at.load(Relaxed))
    };
    let least = names.iter().filter(|(_, entry)| at_rest(entry)).min_by_key(|(_, entry)| worth(entry));
    let Some(name) = least.map(|(name, _)| name.clone()) else { return false };
    if let Some(entry) = names.remove(&name) {
        entry.gone.store(true, Relaxed);
        entry.wake.notify_one();
    }
    true
}

/// The addresses that a name chosen by policy may lead to.
fn callable(answer: &Answer) -> Arc<[IpAddr]> {
    let Answer::Addresses(all) = answer else { return Arc::from([]) };
    let may = |address: &IpAddr| outside::forbidden(*address, ChosenBy::Policy).is_none();
    if all.iter().all(may) { Arc::clone(all) } else { all.iter().copied().filter(may).collect() }
}

/// Says what operators must know of a name that a Service stands for.
fn tell(name: &HostName, learned: Learned, why: &str) {
    match learned {
        Learned::Same => {}
        Learned::Changed if why.is_empty() => tracing::debug!(%name, "the DNS says something else"),
        Learned::Changed => tracing::warn!(%name, error = why, "this name cannot be looked up; it is tried again"),
        Learned::Kept => {
            tracing::warn!(%name, error = why, "the DNS does not answer; what it said last stays in use for a while");
        }
        Learned::Lost => {
            tracing::error!(%name, error = why, "the DNS has not answered for long; what it said last is no longer used");
        }
        Learned::Recovered => tracing::info!(%name, "the DNS answers again"),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

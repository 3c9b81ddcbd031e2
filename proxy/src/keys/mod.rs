//! Keys that issuers publish, fetched off the way of requests and kept true ahead of time: one task for each issuer, so that
//! one that hangs delays no other.
//!
//! What is fetched becomes part of the configuration in force (`live::swap`), like what the DNS says: a request takes it
//! as it is. Only a token that names a key which is not known waits, for one question that all of its like share
//! ([`Keys::learn`]). The last good keys are kept on disk.

mod fetch;
mod memory;
mod shown;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use equerry_policies::compile::keys::{Key, read_published};
use equerry_policies::compile::{FetchedKeys, KeySource};
use equerry_traffic::Refusal;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::live::last_good::{LastGood, SavedKeys};
use crate::observe::Observer;

pub use fetch::Fetcher;
use memory::{Held, Memory, OLDEST};

/// How long a request waits for an answer about a key that is not known, whatever the issuer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests that wait for one issuer.
const MOST_WAITING: usize = 256;
/// When those who could not be answered may come back.
const COME_BACK: Duration = Duration::from_secs(1);
/// How long an issuer that only requests asked for is kept: by then its policy is in force, or was taken away.
const AHEAD: Duration = Duration::from_secs(60);

/// Every issuer whose keys are fetched. Clones share it; any thread may ask.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fetcher: Fetcher,
    entries: RwLock<HashMap<Arc<KeySource>, Arc<Entry>>>,
    /// What was fetched last, by this process or the one before, whether or not its issuer is wanted now: a rule that is
    /// edited, or taken away and brought back, begins with it.
    saved: Mutex<HashMap<String, SavedKeys>>,
    last_good: Option<Arc<Mutex<LastGood>>>,
    /// Told when some issuer's keys changed.
    changed: watch::Sender<()>,
    observe: Observer,
    /// Where fetching runs, whoever wants it: the control thread.
    runtime: tokio::runtime::Handle,
}

/// One issuer.
#[derive(Debug)]
struct Entry {
    from: Arc<KeySource>,
    memory: Mutex<Memory>,
    /// Its task runs.
    wanted: AtomicBool,
    /// A policy in force names it. Before that, a request may be ahead of us.
    named: AtomicBool,
    /// When a request asked for it last.
    used: Mutex<Instant>,
    /// A token names a key that is not known.
    asked: AtomicBool,
    waiting: AtomicUsize,
    wake: Notify,
    /// Tries begun and ended.
    tries: watch::Sender<Tries>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    begun: u64,
    ended: u64,
    /// The last one that ended brought keys.
    good: bool,
}

impl Entry {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys that may be believed now.
    fn keys(&self) -> Option<Arc<[Key]>> {
        self.memory().held(SystemTime::now()).map(|held| Arc::clone(&held.keys))
    }

    fn unavailable(&self, why: &str) -> Refusal {
        Refusal::KeysUnavailable { from: Arc::clone(&self.from), why: why.to_owned(), retry_after: Some(COME_BACK) }
    }
}

/// A request that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn place(waiting: &'a AtomicUsize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < MOST_WAITING).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Keys {
    /// Fetches on the current runtime, and starts with what was good last.
    pub fn new(fetcher: Fetcher, observe: Observer, last_good: Option<Arc<Mutex<LastGood>>>) -> Self {
        let saved = last_good.as_ref().map(|last_good| last_good.lock().unwrap_or_else(PoisonError::into_inner).keys());
        let saved = match saved {
            Some(Ok(saved)) => saved.unwrap_or_default(),
            Some(Err(error)) => {
                tracing::warn!(%error, "the last good keys of issuers are lost; they are fetched anew");
                Vec::new()
            }
            None => Vec::new(),
        };
        Self(Arc::new(Inner {
            fetcher,
            entries: RwLock::default(),
            saved: Mutex::new(saved.into_iter().map(|keys| (keys.source.clone(), keys)).collect()),
            last_good,
            changed: watch::channel(()).0,
            observe,
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    /// Keeps the keys of those that are `wanted`, and tells them, until nobody wants any more.
    pub async fn follow(self, mut wanted: watch::Receiver<BTreeSet<Arc<KeySource>>>, told: watch::Sender<FetchedKeys>) {
        let mut changed = self.0.changed.subscribe();
        let mut before = BTreeSet::new();
        loop {
            let sources = wanted.borrow_and_update().clone();
            changed.mark_unchanged();
            // A request may be ahead of us: what it asked for stays.
            for gone in before.difference(&sources) {
                self.0.let_go(gone);
            }
            before.clone_from(&sources);
            let named = sources.iter().map(|from| (from, self.0.named(from)));
            let keys: FetchedKeys = named.filter_map(|(from, entry)| Some((Arc::clone(from), entry.keys()?))).collect();
            told.send_if_modified(|before| {
                let news = *before != keys;
                if news {
                    *before = keys;
                }
                news
            });
            tokio::select! {
                kept = wanted.changed() => if kept.is_err() { return },
                _ = changed.changed() => {}
            }
        }
    }

    /// The keys of an issuer that came last, whether or not they are in force yet; `None`: nothing is known of it.
    pub(crate) fn newest(&self, from: &KeySource) -> Option<Arc<[Key]>> {
        let entry = self.0.entries.read().unwrap_or_else(PoisonError::into_inner).get(from).cloned();
        entry?.keys()
    }

    /// The keys of an issuer after a token that those known do not explain: waits for an answer to a question that was
    /// asked after this call; at once where the keys changed meanwhile. All who wait share one question.
    ///
    /// # Errors
    /// [`Refusal::KeysUnavailable`] when the issuer does not answer: nobody can say whether the token is good.
    pub async fn learn(&self, from: &Arc<KeySource>, known: Option<&[Key]>) -> Result<Arc<[Key]>, Refusal> {
        let entry = self.0.entry(from);
        let Some(_waiting) = Waiting::place(&entry.waiting) else {
            return Err(entry.unavailable("too many ask for them"));
        };
        let mut tries = entry.tries.subscribe();
        let before = *tries.borrow_and_update();
        // Where nothing is known, the first answer is waited for, and after it nobody waits.
        let enough = match entry.keys() {
            None => before.ended.max(1),
            Some(keys) if known != Some(&*keys) => return Ok(keys),
            Some(_) => {
                entry.asked.store(true, Ordering::Relaxed);
                entry.wake.notify_one();
                before.begun + 1
            }
        };
        let answered = async {
            loop {
                let now = *tries.borrow_and_update();
                match entry.keys() {
                    Some(keys) if known != Some(&*keys) || now.ended >= enough && now.good => return Ok(keys),
                    _ if now.ended >= enough => return Err(()),
                    _ => {}
                }
                if tries.changed().await.is_err() {
                    return Err(());
                }
            }
        };
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(keys)) => Ok(keys),
            Ok(Err(())) | Err(_) => {
                let problem = entry.memory().problem().cloned();
                Err(entry.unavailable(problem.as_deref().unwrap_or("their issuer does not answer")))
            }
        }
    }
}

impl Inner {
    fn let_go(&self, from: &Arc<KeySource>) {
        if let Some(entry) = self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(from) {
            entry.wanted.store(false, Ordering::Relaxed);
            entry.wake.notify_one();
        }
    }

    /// Lets an issuer go that only a request asked for, some time ago. Whoever asks meanwhile uses it under the same lock.
    fn let_go_unnamed(&self, entry: &Entry) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let used = *entry.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !entry.named.load(Ordering::Relaxed) && used.elapsed() >= AHEAD {
            entries.remove(&entry.from);
            entry.wanted.store(false, Ordering::Relaxed);
        }
    }

    /// The issuer, which a policy in force names.
    fn named(self: &Arc<Self>, from: &Arc<KeySource>) -> Arc<Entry> {
        let entry = self.entry(from);
        entry.named.store(true, Ordering::Relaxed);
        entry
    }

    /// The issuer, whose task begins when it was not known. It stays known for as long as anybody may wait for it.
    fn entry(self: &Arc<Self>, from: &Arc<KeySource>) -> Arc<Entry> {
        if let Some(entry) = self.entries.read().unwrap_or_else(PoisonError::into_inner).get(from) {
            *entry.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            return Arc::clone(entry);
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.entry(Arc::clone(from)).or_insert_with(|| {
            let saved =
                self.saved.lock().unwrap_or_else(PoisonError::into_inner).get(&identity(from)).and_then(restored);
            let entry = Arc::new(Entry {
                from: Arc::clone(from),
                memory: Mutex::new(Memory::new(saved, SystemTime::now())),
                wanted: AtomicBool::new(true),
                named: AtomicBool::new(false),
                used: Mutex::new(Instant::now()),
                asked: AtomicBool::new(false),
                waiting: AtomicUsize::new(0),
                wake: Notify::new(),
                tries: watch::channel(Tries::default()).0,
            });
            self.runtime.spawn(Arc::clone(self).keep(Arc::clone(&entry)));
            entry
        });
        Arc::clone(entry)
    }

    /// Keeps the keys of one issuer true until no policy names it.
    async fn keep(self: Arc<Self>, entry: Arc<Entry>) {
        while entry.wanted.load(Ordering::Relaxed) {
            let now = SystemTime::now();
            let asked = entry.asked.load(Ordering::Relaxed);
            let due = entry.memory().is_due(now);
            let turn = if asked && !due { entry.memory().ask(now) } else { Ok(()) };
            match turn {
                Ok(()) if asked || due => self.fetch(&entry).await,
                Ok(()) => {
                    let rest = entry.memory().rest(now);
                    tokio::select! {
                        () = tokio::time::sleep(rest) => {}
                        () = entry.wake.notified() => {}
                    }
                    // Keys may have become too old to be believed.
                    self.changed.send_replace(());
                }
                Err(wait) => tokio::time::sleep(wait).await,
            }
            if !entry.named.load(Ordering::Relaxed) {
                self.let_go_unnamed(&entry);
            }
        }
    }

    /// Asks an issuer once.
    async fn fetch(self: &Arc<Self>, entry: &Entry) {
        entry.asked.store(false, Ordering::Relaxed);
        entry.tries.send_modify(|tries| tries.begun += 1);
        let outcome = self.fetcher.fetch(&entry.from).await;
        let (now, chance) = (SystemTime::now(), fastrand::f64());
        let (word, good) = match outcome {
            Ok(fetched) => {
                for bad in &fetched.passed_over {
                    tracing::debug!(issuer = &*entry.from.issuer, key = %bad, "a key of an issuer cannot be used");
                }
                let held = Held { keys: fetched.keys.into(), text: fetched.text.into(), fetched_at: now };
                self.remember(&entry.from, &held, now);
                entry.memory().fetched(held, fetched.new_for, chance);
                ("ok", true)
            }
            Err(why) => {
                tracing::warn!(
                    issuer = &*entry.from.issuer,
                    url = entry.from.url.as_str(),
                    reason = why.word,
                    detail = why.detail,
                    "the keys of an issuer could not be fetched"
                );
                entry.memory().failed(why.word.into(), now, chance);
                (why.word, false)
            }
        };
        self.observe.keys_fetched(&entry.from.issuer, word);
        if good {
            self.save().await;
        }
        self.changed.send_replace(());
        entry.tries.send_modify(|tries| (tries.ended, tries.good) = (tries.begun, good));
    }

    /// Keeps what was fetched for whoever names the issuer next. What is too old to be believed is forgotten.
    fn remember(&self, from: &KeySource, held: &Held, now: SystemTime) {
        let (source, fetched_at) = (identity(from), crate::live::unix_ms(held.fetched_at));
        let oldest = crate::live::unix_ms(now.checked_sub(OLDEST).unwrap_or(SystemTime::UNIX_EPOCH));
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved.retain(|_, keys| keys.fetched_at > oldest);
        saved.insert(source.clone(), SavedKeys { source, text: held.text.to_string(), fetched_at });
    }

    /// Saves what is known, off this thread.
    async fn save(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let saving = tokio::task::spawn_blocking(move || this.save_now());
        if let Ok(Err(error)) = saving.await {
            tracing::error!(%error, "the keys of issuers cannot be saved: a restart while an issuer is away would know none");
        }
    }

    /// What is saved is gathered by whoever has the turn to write: nobody writes something older after it.
    fn save_now(&self) -> std::io::Result<()> {
        let Some(last_good) = &self.last_good else { return Ok(()) };
        let mut last_good = last_good.lock().unwrap_or_else(PoisonError::into_inner);
        let saved: Vec<_> = self.saved.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        last_good.save_keys(&saved)
    }
}

/// What was saved of an issuer, as far as this version can read it.
fn restored(saved: &SavedKeys) -> Option<Held> {
    let (keys, _) = read_published(&saved.text).ok()?;
    let fetched_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(saved.fetched_at))?;
    Some(Held { keys: keys.into(), text: saved.text.as_str().into(), fetched_at })
}

/// What keys are saved under: whose they are, where they came from, and by whose word.
fn identity(from: &KeySource) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    let ca = from.ca.iter().flatten().map(Vec::as_slice);
    for part in [from.issuer.as_bytes(), from.url.as_str().as_bytes()].into_iter().chain(ca) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod issuer;
#[cfg(test)]
mod tests;

//! What this process says of itself on standard error, and how much: by module, changed while it runs, and back by itself
//! after a time, so that nobody forgets a flood.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::log_filter;

/// A change goes back after this unless said otherwise ...
pub(crate) const USUAL_STAY: Duration = Duration::from_secs(10 * 60);
/// ... and after this in any case.
pub(crate) const LONGEST_STAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is logged now. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Levels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None`: another part of this process keeps the log.
    filter: Option<reload::Handle<Targets, Registry>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the operator set.
    usual: String,
    /// What holds instead, and until when.
    instead: Option<(String, Instant)>,
    /// Counts changes, so that an old one does not take a new one back.
    change: u64,
}

/// Why the log stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LogRefusal {
    #[error("{0}")]
    Filter(String),
    #[error("for: found {0:?}, expected 1s to 24h")]
    Stay(Duration),
    #[error("another part of this process keeps the log")]
    NotOurs,
}

impl Levels {
    /// Starts the log: text for a terminal, JSON for everybody else.
    pub(crate) fn start(filter: &str) -> Self {
        let (layer, handle) = reload::Layer::new(read(filter));
        let (logger, lines) = (tracing_subscriber::registry().with(layer), fmt::layer().with_writer(std::io::stderr));
        let started = if std::io::stderr().is_terminal() {
            logger.with(lines).try_init()
        } else {
            logger.with(lines.json()).try_init()
        };
        // When another part of this process has set one up already, that one is used.
        Self::new(filter, started.is_ok().then_some(handle))
    }

    fn new(usual: &str, filter: Option<reload::Handle<Targets, Registry>>) -> Self {
        let state = State { usual: usual.to_owned(), instead: None, change: 0 };
        Self(Arc::new(Inner { filter, state: Mutex::new(state) }))
    }

    /// Logs what `filter` says for a while (10 minutes unless said).
    ///
    /// # Errors
    /// When it is no filter, or the while too long.
    pub(crate) fn set(&self, filter: &str, stay: Option<Duration>) -> Result<(), LogRefusal> {
        let stay = stay.unwrap_or(USUAL_STAY);
        if stay < Duration::from_secs(1) || stay > LONGEST_STAY {
            return Err(LogRefusal::Stay(stay));
        }
        let filter = log_filter(Some(filter.to_owned())).map_err(|bad| LogRefusal::Filter(bad.to_string()))?;
        let change = {
            let mut state = self.state();
            self.put(&filter)?;
            state.change += 1;
            state.instead = Some((filter.clone(), Instant::now() + stay));
            state.change
        };
        tracing::warn!(filter, ?stay, "the log was changed for a while");
        let levels = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(stay).await;
            levels.back_if(|state| state.change == change);
        });
        Ok(())
    }

    /// Logs what the operator set, from now on.
    pub(crate) fn back(&self) {
        self.back_if(|_| true);
    }

    /// The operator set something else.
    ///
    /// # Errors
    /// When another part of this process keeps the log.
    pub(crate) fn set_usual(&self, filter: &str) -> Result<(), LogRefusal> {
        let mut state = self.state();
        if state.instead.is_none() {
            self.put(filter)?;
        }
        filter.clone_into(&mut state.usual);
        Ok(())
    }

    fn back_if(&self, wanted: impl FnOnce(&State) -> bool) {
        let mut state = self.state();
        if wanted(&state) && state.instead.take().is_some() {
            let usual = state.usual.clone();
            drop(state);
            let _ = self.put(&usual);
            tracing::warn!(filter = usual, "the log is as it was set again");
        }
    }

    /// What holds, and for how long yet.
    pub(crate) fn shown(&self) -> Value {
        let state = self.state();
        match &state.instead {
            Some((filter, until)) => {
                let left = until.saturating_duration_since(Instant::now()).as_secs();
                json!({"filter": filter, "secondsLeft": left, "afterwards": state.usual})
            }
            None => json!({"filter": state.usual}),
        }
    }

    fn put(&self, filter: &str) -> Result<(), LogRefusal> {
        let handle = self.0.filter.as_ref().ok_or(LogRefusal::NotOurs)?;
        handle.reload(read(filter)).map_err(|_| LogRefusal::NotOurs)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(filter: &str) -> Targets {
    filter.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A log that goes nowhere, and the layer that must live as long.
    pub(crate) fn levels(filter: &str) -> (Levels, reload::Layer<Targets, Registry>) {
        let (layer, handle) = reload::Layer::new(read(filter));
        (Levels::new(filter, Some(handle)), layer)
    }

    fn in_force(levels: &Levels) -> String {
        levels.0.filter.as_ref().unwrap().with_current(ToString::to_string).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_holds_for_a_while_and_goes_back_by_itself() {
        let (levels, _layer) = levels("info");
        levels.set("info,equerry_proxy::live=debug", Some(Duration::from_secs(60))).unwrap();
        assert!(in_force(&levels).contains("equerry_proxy::live=debug"));
        assert_eq!(
            levels.shown(),
            json!({"filter": "info,equerry_proxy::live=debug", "secondsLeft": 60, "afterwards": "info"})
        );
        tokio::time::sleep(Duration::from_secs(30)).await;
        levels.set("warn", Some(Duration::from_secs(60))).unwrap();
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(in_force(&levels), "warn", "the first change does not take the second back");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!((in_force(&levels), levels.shown()), ("info".to_owned(), json!({"filter": "info"})));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_operator_sets_meanwhile_holds_afterwards() {
        let (levels, _layer) = levels("info");
        levels.set("debug", None).unwrap();
        levels.set_usual("error").unwrap();
        assert_eq!(in_force(&levels), "debug");
        levels.back();
        assert_eq!(in_force(&levels), "error");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_filter_or_too_long_changes_nothing() {
        let (levels, _layer) = levels("info");
        let told = levels.set("equerry_proxy=louder", None).unwrap_err().to_string();
        assert!(told.contains("louder"), "{told}");
        assert!(levels.set("debug", Some(Duration::from_secs(25 * 3600))).is_err());
        assert!(levels.set("debug", Some(Duration::ZERO)).is_err());
        assert_eq!((in_force(&levels), levels.shown()), ("info".to_owned(), json!({"filter": "info"})));
    }
}

//! SIGHUP: what may change while the process runs is taken up, and what may not is named. No connection notices.
//!
//! The access log is opened again, and `log` is read again. Policy needs no reload, it comes from the control plane; every other
//! setting says where a socket or file is, and changes with a restart.

use std::sync::Arc;

use crate::config::{Command, Settings, read};
use crate::log::Levels;
use crate::observe::Observer;

/// What a reload needs.
pub(crate) struct Reload {
    pub(crate) settings: Arc<Settings>,
    pub(crate) levels: Levels,
    pub(crate) observe: Observer,
}

impl Reload {
    /// Reads settings again, from the same command line, variables and file.
    pub(crate) fn again(&self) {
        self.observe.reopen_access_log();
        let now = match self.read_again() {
            Ok(now) => now,
            Err(error) => {
                tracing::error!(error, "not reloaded: the settings cannot be read");
                return;
            }
        };
        if let Err(error) = self.levels.set_usual(&now.log) {
            tracing::warn!(%error, "the log's filter stays");
        }
        let changed = changed(&self.settings, &now);
        if changed.is_empty() {
            tracing::info!(log = now.log, "reloaded");
        } else {
            tracing::warn!(
                changed = changed.join(", "),
                log = now.log,
                "reloaded; these settings take effect after a restart"
            );
        }
    }

    fn read_again(&self) -> Result<Settings, String> {
        let line = read(self.settings.line.0.iter().cloned()).map_err(|error| error.to_string())?;
        match line.command {
            Command::Run(given) => given.complete_from(line.sources).map_err(|error| error.to_string()),
            Command::Wait(_) => Err("it was not started by `run`".to_owned()),
        }
    }
}

/// Settings that differ, but for those a reload takes up.
fn changed(before: &Settings, now: &Settings) -> Vec<&'static str> {
    let pairs = before.shown().into_iter().zip(now.shown());
    pairs.filter(|(before, now)| before.1 != now.1 && before.0 != "log").map(|(before, _)| before.0).collect()
}

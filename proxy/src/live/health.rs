//! The verdict on the application beside this sidecar, which travels with the lease. Who asks the application stands in
//! `probe`; here is only what is told.

use tokio::sync::watch;

/// What is known of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it answers.
    pub healthy: bool,
    /// If not, why.
    pub detail: String,
}

impl Health {
    /// It answers.
    pub(crate) fn well() -> Self {
        Self { healthy: true, detail: String::new() }
    }

    /// It does not, and why.
    pub(crate) fn not_yet(detail: impl Into<String>) -> Self {
        Self { healthy: false, detail: detail.into() }
    }
}

/// The verdict before the first question.
pub(crate) fn unknown() -> watch::Sender<Health> {
    watch::Sender::new(Health::not_yet("the application has not been probed yet"))
}

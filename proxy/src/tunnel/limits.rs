//! How long a connection may last, and stand still.

use std::sync::Arc;
use std::time::Duration;

use equerry_policies::compile::RouteRule;
use equerry_traffic::Refusal;
use equerry_traffic::deadline::{Authors, Rest};

use super::Flow;
use crate::exchange::watch::Watch;
use crate::live::Backend;

/// A connection on which nothing passes for so long is cut where no policy says otherwise (Envoy's TCP proxy).
const USUAL_IDLE: Duration = Duration::from_secs(3600);

/// When a connection is cut, and who says so.
pub(super) struct Limits {
    rest: Rest,
    rule: Option<Arc<RouteRule>>,
    backend: Option<Arc<Backend>>,
}

impl Limits {
    /// What is watched over, from here on.
    pub(super) fn after(watch: Watch) -> Self {
        let (mut rest, rule, backend) = watch.into_rest();
        let written = backend.as_ref().and_then(|backend| backend.traffic.stream_idle_timeout);
        if written.is_none() {
            rest.idle = Some(USUAL_IDLE);
        }
        Self { rest, rule, backend }
    }

    /// The same at the callee, where nobody's policy is known but how long its caller will wait.
    pub(super) fn after_at_callee(watch: Watch) -> Self {
        let (rest, rule, backend) = watch.into_rest();
        Self { rest, rule, backend }
    }

    /// Waits until one is reached.
    pub(super) async fn reached(&self, flow: &Flow) -> Refusal {
        let over = async {
            match self.rest.end.at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let still = async {
            match self.rest.idle {
                Some(idle) => flow.stands_still(idle).await,
                None => std::future::pending().await,
            }
        };
        let refusal = tokio::select! {
            () = over => self.rest.end.passed(),
            () = still => self.rest.stood_still(),
        };
        let policy = self.backend.as_ref().map(|backend| &backend.traffic);
        refusal.signed(&Authors { rule: self.rule.as_deref(), policy })
    }
}

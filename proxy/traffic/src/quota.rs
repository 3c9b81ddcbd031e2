//! One sidecar's slice of a tenant's quota: what the control plane granted it in this window, and what is spent of it.
//!
//! The request path only takes from the slice; it never asks. Reports and grants carry running totals of one window, so
//! that a lost or repeated message changes nothing. Time is the control plane's clock ([`ServerClock`]): it decides where
//! windows begin. While disconnected, the policy says what holds; see [`OnControlPlaneLoss`].

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use equerry_policies::names::TenantName;
use equerry_policies::policy::{OnControlPlaneLoss, Quota};

/// A sidecar's slice of one quota; shared by all workers, kept across changes of configuration.
#[derive(Debug)]
pub struct Slice {
    tenant: TenantName,
    quota: Quota,
    on_loss: OnControlPlaneLoss,
    window_ms: u64,
    state: Mutex<State>,
}

/// What this sidecar may still do in the window, as `RateLimit` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Requests that this sidecar was given for the window.
    pub limit: u64,
    /// How many of them are left.
    pub remaining: u64,
    /// Until the window ends.
    pub reset: Duration,
    /// The length of a window.
    pub window: Duration,
}

/// A request that was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// What is left.
    pub share: Share,
    /// The slice runs low: send [`Slice::report`] now rather than at the next beat. True once for each crossing.
    pub ask: bool,
}

/// A request beyond the slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverQuota {
    /// Whose quota.
    pub tenant: TenantName,
    /// The quota's id, `TENANT/INDEX`.
    pub quota: String,
    /// What this sidecar had.
    pub share: Share,
    /// Send [`Slice::report`] now: somebody was refused for want of a slice. True once for each crossing.
    pub ask: bool,
}

/// What a sidecar tells the control plane: running totals of one window (see `SliceReport` on the wire).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Number of the window: Unix seconds / window seconds.
    pub window: u64,
    /// What it was granted, as it knows.
    pub granted: u64,
    /// What it admitted, all in all.
    pub spent: u64,
    /// Half of what it holds is spent, or somebody was refused.
    pub wants_more: bool,
    /// What it gave back.
    pub returned: u64,
    /// The part of `spent` that no grant covers, admitted while disconnected: `spent - spent_offline` came out of `granted`.
    pub spent_offline: u64,
}

/// What the control plane grants: running totals of one window (see `SliceGrant` on the wire).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grant {
    /// Number of the window.
    pub window: u64,
    /// All that was granted to this sidecar in the window.
    pub granted: u64,
    /// All that it was asked to give back in the window.
    pub give_back: u64,
    /// Nothing is left to grant in this window.
    pub exhausted: bool,
}

#[derive(Debug)]
struct State {
    connected: bool,
    /// The window requests are counted in; never goes back to one in which anything was granted or spent.
    now: Window,
    /// The last window before `now` in which anything was.
    used: u64,
    /// The window after it, granted ahead.
    next: Window,
    /// What holds in each window under `lastShare`: what was granted in the last connected window.
    last_share: u64,
    /// The window that `last_share` is of: grants of later windows are not used while disconnected beyond it.
    last_connected: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Window {
    number: u64,
    granted: u64,
    returned: u64,
    /// Taken out of what was granted.
    spent: u64,
    /// Admitted without a grant while disconnected.
    offline: u64,
    exhausted: bool,
    refused: bool,
    asked: bool,
}

impl Window {
    fn at(number: u64) -> Self {
        Self { number, ..Self::default() }
    }

    /// What it holds, spent or not.
    fn held(&self) -> u64 {
        self.granted.saturating_sub(self.returned)
    }

    fn left(&self) -> u64 {
        self.held().saturating_sub(self.spent)
    }

    fn is_unused(&self) -> bool {
        self.granted == 0 && self.spent == 0 && self.offline == 0
    }

    fn wants_more(&self) -> bool {
        !self.exhausted && (self.refused || self.spent > 0 && self.spent * 2 >= self.held())
    }

    fn learn(&mut self, grant: &Grant) {
        if grant.granted > self.granted {
            self.granted = grant.granted;
            self.asked = false;
            self.refused = false;
        }
        self.exhausted = grant.exhausted;
        let asked_back = grant.give_back.saturating_sub(self.returned);
        self.returned += asked_back.min(self.left());
    }
}

impl Slice {
    /// An empty slice; it admits nothing before the first grant. `connected`: the control plane can be reached.
    pub fn new(tenant: TenantName, quota: Quota, on_loss: OnControlPlaneLoss, connected: bool) -> Self {
        let window_ms = u64::try_from(quota.window.as_millis()).unwrap_or(u64::MAX).max(1000);
        let state = State {
            connected,
            now: Window::default(),
            used: 0,
            next: Window::default(),
            last_share: 0,
            last_connected: 0,
        };
        Self { tenant, quota, on_loss, window_ms, state: Mutex::new(state) }
    }

    /// The quota it is a slice of.
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// What holds while the control plane cannot be reached.
    pub fn on_loss(&self) -> OnControlPlaneLoss {
        self.on_loss
    }

    /// The slice that takes this one's place when its quota changes. While windows stay as long, what was granted and
    /// spent stays counted; numbers of windows of another length mean other times.
    pub fn changed(&self, quota: Quota, on_loss: OnControlPlaneLoss) -> Self {
        let state = self.lock();
        let (same, connected, last_share) =
            (quota.window == self.quota.window, state.connected, state.last_share.min(quota.requests));
        let changed = Self::new(self.tenant.clone(), quota, on_loss, connected);
        {
            let mut next = changed.lock();
            if same {
                (next.now, next.next, next.last_connected) = (state.now, state.next, state.last_connected);
                next.used = state.used;
            }
            next.last_share = last_share;
        }
        changed
    }

    /// Counts a request, `now_ms` Unix milliseconds of the control plane's clock.
    ///
    /// # Errors
    /// When the slice is spent, or there is none.
    pub fn admit(&self, now_ms: u64) -> Result<Admitted, OverQuota> {
        let mut state = self.at(now_ms);
        let offline = !state.connected;
        let spare = state.spare(self.on_loss);
        if spare == 0 {
            let ask = !offline && !state.now.asked && !state.now.exhausted;
            state.now.asked |= ask;
            state.now.refused = true;
            let share = self.share(&state, now_ms);
            return Err(OverQuota { tenant: self.tenant.clone(), quota: self.quota.id.clone(), share, ask });
        }
        if state.now.left() > 0 {
            state.now.spent += 1;
        } else {
            state.now.offline += 1;
        }
        let ask = !offline && !state.now.asked && state.now.wants_more();
        state.now.asked |= ask;
        Ok(Admitted { share: self.share(&state, now_ms), ask })
    }

    /// What is left, without counting anything.
    pub fn look(&self, now_ms: u64) -> Share {
        let state = self.at(now_ms);
        self.share(&state, now_ms)
    }

    /// Takes a grant. Grants of windows that are over are ignored; the window after this one may be granted ahead.
    pub fn on_grant(&self, grant: &Grant, now_ms: u64) {
        let mut state = self.at(now_ms);
        if grant.window == state.now.number {
            state.now.learn(grant);
            state.remember();
        } else if grant.window > state.now.number {
            if state.next.number != grant.window {
                state.next = Window::at(grant.window);
            }
            state.next.learn(grant);
        }
    }

    /// What to tell the control plane about the window of `now_ms`.
    pub fn report(&self, now_ms: u64) -> Report {
        let state = self.at(now_ms);
        let Window { number, granted, returned, spent, offline, .. } = state.now;
        Report {
            window: number,
            granted,
            spent: spent + offline,
            wants_more: state.now.wants_more(),
            returned,
            spent_offline: offline,
        }
    }

    /// Tells whether the control plane can be reached from now on.
    pub fn set_connected(&self, connected: bool, now_ms: u64) {
        let mut state = self.at(now_ms);
        state.remember();
        state.connected = connected;
        state.now.asked = false;
    }

    /// What it was granted in its last connected window, to be kept in last good.
    pub fn last_share(&self) -> u64 {
        self.lock().last_share
    }

    /// Puts back what [`Slice::last_share`] gave before a restart.
    pub fn restore_last_share(&self, share: u64) {
        let mut state = self.lock();
        state.last_share = share.min(self.quota.requests);
    }

    /// The state, with its window moved on to the one of `now_ms`.
    fn at(&self, now_ms: u64) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let number = now_ms / self.window_ms;
        // A clock that was ahead before the control plane's was first heard is followed back, over windows not used yet.
        let back = number < state.now.number && number > state.used && state.now.is_unused();
        if number > state.now.number || back {
            if !state.now.is_unused() {
                state.used = state.now.number;
            }
            state.now = if state.next.number == number { state.next } else { Window::at(number) };
            state.remember();
        }
        state
    }

    fn share(&self, state: &State, now_ms: u64) -> Share {
        let end = (state.now.number + 1).saturating_mul(self.window_ms);
        let spent = state.now.spent + state.now.offline;
        let remaining = state.spare(self.on_loss).min(self.quota.requests.saturating_sub(spent));
        Share {
            limit: (spent + remaining).max(state.now.held()).min(self.quota.requests),
            remaining,
            reset: Duration::from_millis(end.saturating_sub(now_ms)),
            window: self.quota.window,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many more requests may be admitted in this window.
    fn spare(&self, on_loss: OnControlPlaneLoss) -> u64 {
        if self.connected {
            return self.now.left();
        }
        match on_loss {
            OnControlPlaneLoss::Deny => 0,
            OnControlPlaneLoss::Allow => u64::MAX,
            // What was granted before the loss is still good in its window.
            OnControlPlaneLoss::LastShare if self.now.number == self.last_connected => self.now.left(),
            OnControlPlaneLoss::LastShare => self.last_share.saturating_sub(self.now.spent + self.now.offline),
        }
    }

    /// Keeps what this window was granted as what holds in later ones, while connected. A window without any grant says
    /// nothing: it may be that the loss was not noticed yet.
    fn remember(&mut self) {
        if self.connected && self.now.held() > 0 {
            self.last_connected = self.now.number;
            self.last_share = self.now.held();
        }
    }
}

/// The control plane's clock, as this sidecar estimates it from what it is told.
#[derive(Debug, Default)]
pub struct ServerClock {
    /// Milliseconds to add to the local clock.
    ahead: AtomicI64,
}

impl ServerClock {
    /// Takes a moment told by the control plane (`server_unix_ms`), heard at `local_ms`.
    pub fn observe(&self, server_ms: u64, local_ms: u64) {
        let ahead = i128::from(server_ms) - i128::from(local_ms);
        self.ahead.store(i64::try_from(ahead).unwrap_or_default(), Ordering::Relaxed);
    }

    /// The control plane's Unix milliseconds when the local clock says `local_ms`.
    pub fn at(&self, local_ms: u64) -> u64 {
        local_ms.saturating_add_signed(self.ahead.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;

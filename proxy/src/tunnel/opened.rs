//! Connections that were opened by an exchange and go on without HTTP: after 101, or after 2xx to CONNECT.
//!
//! What held for the exchange holds on: its place in flight, its limits, its line in the log, which is written at the end. The
//! callee judges it again with every change of configuration, and ends it with the caller's certificate, or with the caller's token where
//! its rule says so.

use std::future::Future;
use std::time::{Duration, SystemTime};

use equerry_traffic::Refusal;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use super::inbound::over;
use super::limits::Limits;
use super::{Cut, Flow, ask_for_life, carry, ended, reset};
use crate::codec::Link;
use crate::exchange::body::{Answer, Opened};
use crate::exchange::upgrade::Asked;
use crate::inbound::{Inbound, Via};

/// The clock is looked at so often at least: it may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Goes on with a connection of the application.
pub(crate) async fn opened_outbound(near: Link, answer: Answer) {
    let Some(mut opened) = answer.into_opened() else { return };
    let limits = opened.watch.take().map(Limits::after);
    go_on(near, opened, limits, std::future::pending()).await;
}

/// Goes on with a connection from the mesh.
pub(crate) async fn upgraded_inbound(at: &Inbound, via: &Via, near: Link, answer: Answer) {
    // Listening begins before the first judgement of it as a tunnel: no change falls between the two.
    let changes = at.shared.live.publications();
    let Some(mut opened) = answer.into_opened() else { return };
    let asked = opened.asked.take();
    let limits = opened.watch.take().map(Limits::after_at_callee);
    let cut = async {
        tokio::select! {
            refusal = no_longer_allowed(at, via, asked.as_deref(), changes) => refusal.into(),
            cut = over(via) => cut,
        }
    };
    go_on(near, opened, limits, cut).await;
}

async fn go_on(mut near: Link, opened: Opened, limits: Option<Limits>, cut: impl Future<Output = Cut>) {
    let Opened { mut far, held, mut record, .. } = opened;
    for socket in [near.socket(), far.link.socket()].into_iter().flatten() {
        ask_for_life(socket);
    }
    let flow = Flow::new();
    let late = async {
        match &limits {
            Some(limits) => limits.reached(&flow).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        carried = async {
            // The head that opened it.
            near.flush().await.map_err(|error| Cut::by_the_caller(&error))?;
            carry(&mut near, &mut far.link, &[], &flow).await
        } => carried,
        refusal = late => Err(refusal.into()),
        cut = cut => Err(cut),
    };
    if end.is_err() {
        for socket in [near.socket(), far.link.socket()].into_iter().flatten() {
            reset(socket);
        }
    }
    ended(&mut record, &flow, end);
    drop(held);
}

/// Judges it now, and again with every change of configuration, until it is refused.
async fn no_longer_allowed(
    at: &Inbound,
    via: &Via,
    asked: Option<&Asked>,
    mut changes: watch::Receiver<()>,
) -> Refusal {
    let Some(asked) = asked else { return std::future::pending().await };
    loop {
        if let Err(refusal) = asked.judged_again(at, via) {
            return refusal;
        }
        let ends = asked.ends_at(at, via).map(|ends| ends.duration_since(SystemTime::now()).unwrap_or_default());
        tokio::select! {
            () = tokio::time::sleep(ends.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN)) => {}
            changed = changes.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
    }
}

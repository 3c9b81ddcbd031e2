//! Connections that were opened by an exchange and go on without HTTP: after 101, or after 2xx to CONNECT.
//!
//! What held for the exchange holds on: its place in flight, its limits, its line in the log, which is written at the end. The
//! callee judges it again whenever what it enforces has changed, and ends it with the caller's certificate, or with the caller's token
//! where its rule says so. Either ends it when the other is believed no more.

use std::future::Future;

use tokio::io::AsyncWriteExt;

use super::inbound::{distrusted, over};
use super::limits::Limits;
use super::{Cut, Flow, ask_for_life, carry, ended, reset};
use crate::codec::Link;
use crate::exchange::body::{Answer, Opened};
use crate::exchange::watch::Watch;
use crate::inbound::Via;

/// Goes on with a connection of the application.
pub(crate) async fn opened_outbound(near: Link, answer: Answer) {
    let Some(mut opened) = answer.into_opened() else { return };
    let limits = opened.watch.take().map(Limits::after);
    let cut = distrusted(opened.far.vouched.clone());
    go_on(near, opened, limits, cut).await;
}

/// Goes on with a connection from the mesh.
pub(crate) async fn upgraded_inbound(via: &Via, near: Link, answer: Answer) {
    let Some(mut opened) = answer.into_opened() else { return };
    let standing = opened.watch.as_mut().and_then(Watch::take_standing);
    let limits = opened.watch.take().map(Limits::after_at_callee);
    let refused = async {
        match standing {
            Some(mut standing) => standing.refused().await,
            None => std::future::pending().await,
        }
    };
    let cut = async {
        tokio::select! {
            refusal = refused => refusal.into(),
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
        // Why it is cut is told, not that it broke.
        biased;
        cut = cut => Err(cut),
        carried = async {
            // The head that opened it.
            near.flush().await.map_err(|error| Cut::by_the_caller(&error))?;
            carry(&mut near, &mut far.link, &[], &flow).await
        } => carried,
        refusal = late => Err(refusal.into()),
    };
    if end.is_err() {
        for socket in [near.socket(), far.link.socket()].into_iter().flatten() {
            reset(socket);
        }
    }
    ended(&mut record, &flow, end);
    drop(held);
}

//! Copies of requests, which a rule sends to other Services so that they can be tried with what really happens.
//!
//! A copy goes its own way: it never delays its exchange nor changes how it ends, and nobody sees the answer. Few are under
//! way at once; a request beyond that, or one whose body is not held, is not copied, and counted.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use equerry_policies::compile::Mirror;
use equerry_policies::names::SpiffeId;
use equerry_policies::policy::AppProtocol;
use equerry_traffic::Refusal;
use equerry_traffic::balance::Source;
use equerry_traffic::deadline::{Deadline, Kind};
use equerry_traffic::normalize::Normal;
use equerry_traffic::trace_state::Carried;
use http::Request;
use http::request::Parts;

use super::attempt::{self, Outgoing};
use super::body::ToSend;
use super::facts::Record;
use super::tries::{self, Errand};
use super::{door, meant, now};
use crate::app::Shared;
use crate::codec::Early;
use crate::live::{Destination, Live};
use crate::observe::Copied;
use crate::outbound::Outbound;
use crate::upstream::{Pool, Protocol};

/// Copies under way at once on one worker: with the longest body that is held, a few megabytes.
const MOST: usize = 64;
/// How long a copy may take until its answer begins.
const PATIENCE: Duration = Duration::from_secs(10);

/// The copies that one worker has under way.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Rc<Cell<usize>>);

/// One of them; over when dropped.
struct Place(Rc<Cell<usize>>);

impl UnderWay {
    fn one_more(&self) -> Option<Place> {
        let present = self.0.get();
        (present < MOST).then(|| {
            self.0.set(present + 1);
            Place(Rc::clone(&self.0))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// A request that is about to be sent, as its filters made it.
pub(crate) struct Original<'a> {
    /// Its head.
    pub(crate) head: &'a Parts,
    /// Its normal form.
    pub(crate) normal: &'a Normal,
    /// Its body.
    pub(crate) body: &'a ToSend,
    /// What its caller speaks.
    pub(crate) protocol: Protocol,
    /// What kind of exchange it begins.
    pub(crate) kind: Kind,
    /// What came with it from the hops before.
    pub(crate) carried: Option<Carried>,
    /// Its caller's address.
    pub(crate) from: IpAddr,
}

/// Sends copies of a request `to` all of these, and returns at once.
pub(crate) fn send(at: &Outbound, live: &Live, to: &[&Mirror], original: &Original<'_>) {
    for mirror in to {
        if let Err(skipped) = begin(at, live, mirror, original) {
            at.shared.observe.mirrored(skipped);
        }
    }
}

fn begin(at: &Outbound, live: &Live, to: &Mirror, original: &Original<'_>) -> Result<(), Copied> {
    let ToSend::Held(body) = original.body else { return Err(Copied::SkippedBody) };
    let place = at.mirrors.one_more().ok_or(Copied::SkippedBusy)?;
    let destination = live.destinations.get(&to.service).ok_or(Copied::Failed)?;
    let mut head = Request::new(()).into_parts().0;
    head.method = original.head.method.clone();
    head.uri = original.head.uri.clone();
    head.version = original.head.version;
    head.headers = original.head.headers.clone();
    let copy = Copy {
        head,
        normal: original.normal.clone(),
        body: body.clone(),
        destination: Arc::clone(destination),
        port: to.port,
        protocol: original.protocol,
        kind: original.kind,
        carried: original.carried,
        from: original.from,
        own: live.own.clone(),
    };
    let (shared, pool) = (at.shared.clone(), Rc::clone(&at.pool));
    tokio::task::spawn_local(async move {
        let service = copy.destination.backend.name.clone();
        let became = match copy.send(&shared, &pool).await {
            Ok(()) => Copied::Answered,
            Err(refusal) => {
                tracing::debug!(%service, %refusal, "a copy of a request got no answer");
                Copied::Failed
            }
        };
        drop(place);
        shared.observe.mirrored(became);
    });
    Ok(())
}

/// Everything that a copy needs to go its own way.
struct Copy {
    head: Parts,
    normal: Normal,
    body: Bytes,
    destination: Arc<Destination>,
    port: Option<u16>,
    protocol: Protocol,
    kind: Kind,
    carried: Option<Carried>,
    from: IpAddr,
    own: SpiffeId,
}

impl Copy {
    /// Sends it once.
    async fn send(mut self, shared: &Shared, pool: &Rc<Pool>) -> Result<(), Refusal> {
        let backend = &self.destination.backend;
        let port = meant::service_port(backend, self.port)?;
        if port.app_protocol == AppProtocol::Tcp {
            return Err(door::not_http(port.port));
        }
        if let Some(limit) = backend.traffic.limits.request_bytes
            && self.body.len() as u64 > limit
        {
            let policy = backend.traffic.name.as_ref().map(ToString::to_string).unwrap_or_default();
            return Err(Refusal::BodyTooLarge { limit, policy: policy.into() });
        }
        let _held = meant::take_place(backend)?;
        let source = Source { address: self.from, instance: shared.settings.instance.as_str(), identity: &self.own };
        let key = backend.balancer.key(&self.head, &source);
        let began = now();
        let errand = Errand {
            destination: &self.destination,
            backend,
            rule: None,
            port,
            key,
            protocol: self.protocol,
            identities: &shared.identity,
            hops: None,
            kind: self.kind,
            began,
            deadline: Deadline::after(began, Some(PATIENCE)),
            carried: self.carried,
            try_timeout: None,
            retry: None,
            method_named: false,
            unjudged: Cell::new(None),
        };
        let early = Early::deaf();
        let mut outgoing = Outgoing::new(&mut self.head, self.normal, ToSend::Held(self.body), &early);
        let mut record = Record::untold(&shared.observe);
        let answered = tries::until_answered(&errand, pool, &mut outgoing, &mut record).await?;
        attempt::discard(answered);
        Ok(())
    }
}

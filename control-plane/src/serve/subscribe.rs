//! `Config`: one stream for each proxy, on which it says what it uses and hears what of it changed.
//!
//! A stream that cannot keep up gets the present state, not a queue of old ones: what to send is computed when there is room
//! to send it. Every epoch reaches every proxy, as an empty message where it changes nothing for it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use equerry_policies::names::{ServiceName, SpiffeId};
use equerry_wire::limits::MAX_ITEMS;
use equerry_wire::proto::config_server::{Config, ConfigServer};
use equerry_wire::proto::from_proxy::Message;
use equerry_wire::{MAX_MESSAGE, ResourceKey, proto};
use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::lease::instance_id;
use super::{Peer, until_true, workload_of};
use crate::authority::trust::Trust;
use crate::control::{ConnectionId, ControlPlane, Standing, UNANSWERED};
use crate::registry::InstanceKey;
use crate::snapshot::{Difference, Reader, Sources, difference, snapshot};
use crate::store::trust::LeafRow;

/// How long a proxy may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);
/// How long a proxy may take to say what it uses before it is told the epoch alone.
const FIRST_INTEREST: Duration = Duration::from_secs(1);
/// Bodies in one message, in bytes; one larger resource travels alone.
const FULL_MESSAGE: usize = 4 << 20;
/// Names one proxy may be interested in.
const MAX_INTERESTS: usize = MAX_ITEMS;

/// The service.
pub(super) struct Subscriptions {
    control: ControlPlane,
}

/// The service, ready to be routed to.
pub(super) fn service(control: ControlPlane) -> ConfigServer<Subscriptions> {
    ConfigServer::new(Subscriptions { control })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

type Answers = mpsc::Sender<Result<proto::ToProxy, Status>>;

#[tonic::async_trait]
impl Config for Subscriptions {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<proto::ToProxy, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<proto::FromProxy>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let id = workload_of(&self.control, request.extensions())?;
        let peer = request.extensions().get::<Peer>().cloned();
        let (answers, stream) = mpsc::channel(1);
        let (control, messages) = (self.control.clone(), request.into_inner());
        tokio::spawn(async move {
            if let Err(status) = attend(control, id, peer, messages, &answers).await {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// One proxy's stream, from its first message to its last.
async fn attend(
    control: ControlPlane,
    id: SpiffeId,
    peer: Option<Peer>,
    mut messages: Streaming<proto::FromProxy>,
    answers: &Answers,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO, messages.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("found no Hello within 10 s"))??;
    let Some(proto::FromProxy { message: Some(Message::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("found no Hello, expected it first on the stream"));
    };
    let mut session = Session::open(control, id, hello)?;
    session.proved = peer.as_ref().and_then(|peer| peer.serial.clone()).unwrap_or_default();
    if let Some(not_after) = peer.and_then(|peer| peer.not_after) {
        session.control.listeners().certified(&session.key, session.connection, not_after);
    }
    tracing::info!(proxy = %session.key, version = session.version, "proxy connected");
    let ended = session.run(&mut messages, answers).await;
    session.control.listeners().disconnected(&session.key, session.connection);
    tracing::info!(proxy = %session.key, "proxy disconnected");
    ended
}

struct Session {
    control: ControlPlane,
    id: SpiffeId,
    key: InstanceKey,
    /// The serial number of the certificate that the connection was made with.
    proved: String,
    version: String,
    connection: ConnectionId,
    interests: BTreeSet<ResourceKey>,
    /// What the proxy holds, by what it said and what it was sent since.
    held: BTreeMap<ResourceKey, String>,
    /// Names it was told do not exist, and the nearest it was told.
    unknown: BTreeMap<ResourceKey, Option<ServiceName>>,
    nonce: u64,
    /// The epoch of the last message; `None` before the first.
    epoch: Option<u64>,
    /// The generation of trust that it was told last.
    trust: Option<u64>,
}

impl Session {
    fn open(control: ControlPlane, id: SpiffeId, hello: proto::Hello) -> Result<Self, Status> {
        let key = InstanceKey { namespace: id.namespace.clone(), id: instance_id(&hello.instance_id)? };
        if control.instance(&key).is_some_and(|known| known.account != id.account_name()) {
            return Err(Status::permission_denied(format!(
                "instance {key} is held by another account than {}",
                id.account_name()
            )));
        }
        if hello.held.len() > MAX_INTERESTS {
            return Err(Status::invalid_argument(format!(
                "held: found {} resources, expected at most {MAX_INTERESTS}",
                hello.held.len()
            )));
        }
        // What a newer proxy holds of a type this version does not know is none of our business.
        let known = |held: proto::Held| Some((ResourceKey::parse(&held.r#type, &held.name).ok()?, held.version));
        let held = hello.held.into_iter().filter_map(known).collect();
        let version: String = hello.version.chars().take(64).collect();
        let connection = control.listeners().connected(key.clone(), id.clone(), version.clone(), SystemTime::now());
        let (interests, unknown) = (BTreeSet::new(), BTreeMap::new());
        let proved = String::new();
        Ok(Self {
            control,
            id,
            key,
            proved,
            version,
            connection,
            interests,
            held,
            unknown,
            nonce: 0,
            epoch: None,
            trust: None,
        })
    }

    async fn run(&mut self, messages: &mut Streaming<proto::FromProxy>, answers: &Answers) -> Result<(), Status> {
        let mut changes = self.control.changes();
        let mut stopping = self.control.stopping();
        let mut due = false;
        let mut first_interest = std::pin::pin!(tokio::time::sleep(FIRST_INTEREST));
        loop {
            tokio::select! {
                message = messages.message() => match message? {
                    Some(message) => due |= self.take(message)?,
                    None => return Ok(()),
                },
                room = answers.reserve(), if due => {
                    let room = room.map_err(|_| Status::cancelled("the proxy is gone"))?;
                    due = self.send_next(room, &mut changes)?;
                }
                changed = changes.changed(), if !due && self.epoch.is_some() => {
                    changed.map_err(|_| Status::unavailable("the control plane is stopping"))?;
                    self.check_present()?;
                    due = true;
                }
                () = &mut first_interest, if self.epoch.is_none() && !due => due = true,
                () = until_true(&mut stopping) => return Err(Status::unavailable("the control plane is stopping")),
            }
        }
    }

    fn check_present(&self) -> Result<(), Status> {
        if self.control.listeners().is_present(&self.key, self.connection) {
            return Ok(());
        }
        Err(Status::aborted(format!("instance {} opened a newer stream", self.key)))
    }

    /// Takes what the proxy says; whether there may be something to answer.
    fn take(&mut self, message: proto::FromProxy) -> Result<bool, Status> {
        match message.message {
            Some(Message::Hello(_)) => Err(Status::invalid_argument("found a second Hello on one stream")),
            Some(Message::Interest(interest)) => self.take_interest(&interest).map(|()| true),
            Some(Message::Ack(proto::Ack { nonce })) => {
                let acked = self.control.listeners().acked(&self.key, self.connection, nonce);
                self.answered(acked).map(|()| false)
            }
            Some(Message::Nack(nack)) => {
                let complaints: Vec<String> =
                    nack.complaints.iter().map(|c| format!("{} {}: {}", c.r#type, c.name, c.message)).collect();
                tracing::error!(proxy = %self.key, ?complaints, "proxy refused a part of its configuration: its version may differ from this one");
                self.control.metrics().nack();
                let nacked = self.control.listeners().nacked(&self.key, self.connection, nack.nonce, complaints);
                self.answered(nacked).map(|()| false)
            }
            Some(Message::Standing(standing)) => {
                self.take_standing(standing);
                Ok(false)
            }
            // A newer proxy may say more than this version understands.
            None => Ok(false),
        }
    }

    /// Notes what the proxy believes and shows, as far as that agrees with what was issued to it. A root that it was not told, by
    /// an older control plane, is looked up.
    fn take_standing(&self, standing: proto::Standing) {
        let cut = |text: String| text.chars().take(128).collect::<String>();
        let (serial, told) = (cut(standing.leaf_serial), cut(standing.root));
        let root = if told.is_empty() { self.control.root_of(&serial).unwrap_or_default() } else { told };
        let until = Duration::from_secs(u64::try_from(standing.leaf_not_after_unix).unwrap_or(0));
        let until = SystemTime::UNIX_EPOCH.checked_add(until).unwrap_or(SystemTime::UNIX_EPOCH);
        let row = LeafRow { serial: serial.clone(), id: self.id.clone(), root: root.clone(), until };
        let doubt = self.control.note_shown(row, &self.proved);
        if let Some(doubt) = &doubt {
            tracing::warn!(proxy = %self.key, spiffe_id = %self.id, doubt, "what a proxy says of its certificate is not believed");
        }
        let standing = Standing { generation: standing.trust_generation, serial, root, until, doubt };
        self.control.listeners().stands(&self.key, self.connection, standing);
    }

    fn answered(&self, outcome: Result<(), crate::control::UnknownNonce>) -> Result<(), Status> {
        outcome.or_else(|unknown| {
            self.check_present()?;
            Err(Status::invalid_argument(unknown.to_string()))
        })
    }

    fn take_interest(&mut self, interest: &proto::Interest) -> Result<(), Status> {
        for name in &interest.subscribe {
            let key = ResourceKey::try_from(name).map_err(|error| Status::invalid_argument(error.to_string()))?;
            // Asked again: answered again.
            self.unknown.remove(&key);
            self.interests.insert(key);
        }
        for name in &interest.unsubscribe {
            let key = ResourceKey::try_from(name).map_err(|error| Status::invalid_argument(error.to_string()))?;
            self.interests.remove(&key);
            self.unknown.remove(&key);
            self.held.remove(&key);
        }
        if self.interests.len() > MAX_INTERESTS {
            return Err(Status::resource_exhausted(format!(
                "found interest in {} names, expected at most {MAX_INTERESTS}",
                self.interests.len()
            )));
        }
        Ok(())
    }

    /// Sends the next message that is due, if any; whether more is due at once.
    fn send_next(
        &mut self,
        room: mpsc::Permit<'_, Result<proto::ToProxy, Status>>,
        changes: &mut watch::Receiver<u64>,
    ) -> Result<bool, Status> {
        changes.borrow_and_update();
        let (epoch, difference, unknown) = self.look();
        let trust = self.control.authority().trust();
        let known = self.epoch == Some(epoch) && self.trust == Some(trust.generation);
        let nothing_new = difference.is_empty() && unknown.is_empty() && known;
        if nothing_new {
            return Ok(false);
        }
        let (mut message, more) = self.message(epoch, difference, unknown);
        if self.trust.replace(trust.generation) != Some(trust.generation) {
            message.trust = Some(trust_to_proto(&trust, self.control.renew_within_ms()));
        }
        let (nonce, to) = (message.nonce, message.to_epoch);
        let from = self.epoch.map_or(to, |last| (last + 1).min(to));
        // Noted before it is sent: the answer may come at once.
        if self.control.listeners().sent(&self.key, self.connection, nonce, from, to) > UNANSWERED {
            return Err(Status::resource_exhausted(format!("the proxy left {UNANSWERED} messages unanswered")));
        }
        self.epoch = Some(to);
        room.send(Ok(message));
        Ok(more)
    }

    /// What the proxy lacks now, and the names it asked for that do not exist and that it was not told.
    fn look(&mut self) -> (u64, Difference, BTreeMap<ResourceKey, Option<ServiceName>>) {
        let truth = self.control.truth();
        let registry = self.control.registry();
        let instance =
            registry.get(&self.key).filter(|instance| instance.registration.account == self.id.account_name());
        let workload = instance.map(|instance| instance.registration.workload());
        let sources = Sources { epoch: truth.epoch, meaning: &truth.meaning, registry: &registry };
        let reader = Reader { namespace: &self.id.namespace, workload: workload.as_ref() };
        let snapshot = snapshot(&sources, &reader, &self.interests, &mut self.control.cache());
        drop(registry);
        // What came unasked and is used no longer may be forgotten there at any time: should it be used again, it is sent again.
        self.held.retain(|key, _| self.interests.contains(key) || snapshot.resources.contains_key(key));
        let untold = |(key, nearest): &(&ResourceKey, &Option<ServiceName>)| {
            self.interests.contains(*key) && self.unknown.get(*key) != Some(*nearest)
        };
        let unknown =
            snapshot.unknown.iter().filter(untold).map(|(key, nearest)| (key.clone(), nearest.clone())).collect();
        (truth.epoch, difference(&self.held, &snapshot), unknown)
    }

    /// Puts together as much as one message holds, and notes it as held; whether something is left for another.
    fn message(
        &mut self,
        epoch: u64,
        difference: Difference,
        unknown: BTreeMap<ResourceKey, Option<ServiceName>>,
    ) -> (proto::ToProxy, bool) {
        let mut size = 0;
        let all = difference.resources.len();
        let fits = |resource: &Arc<proto::Resource>| {
            let first = size == 0;
            size += resource.body.len() + 1;
            first || size <= FULL_MESSAGE
        };
        let resources: Vec<proto::Resource> =
            difference.resources.into_iter().take_while(fits).map(|resource| (*resource).clone()).collect();
        let more = resources.len() < all;
        for resource in &resources {
            if let Ok(key) = ResourceKey::parse(&resource.r#type, &resource.name) {
                self.unknown.remove(&key);
                self.held.insert(key, resource.version.clone());
            }
        }
        for key in &difference.removed {
            self.held.remove(key);
        }
        self.nonce += 1;
        let message = proto::ToProxy {
            // All of an epoch is there only with its last message.
            to_epoch: if more { self.epoch.unwrap_or(0) } else { epoch },
            nonce: self.nonce,
            resources,
            removed: difference.removed.iter().map(ResourceKey::to_proto).collect(),
            unknown: unknown.iter().map(unknown_to_proto).collect(),
            trust: None,
        };
        self.unknown.extend(unknown);
        (message, more)
    }
}

fn trust_to_proto(trust: &Trust, renew_within_ms: u64) -> proto::Trust {
    proto::Trust {
        generation: trust.generation,
        roots_der: trust.roots.roots().iter().map(|root| root.to_vec()).collect(),
        revoked: trust.revoked.keys().map(ToString::to_string).collect(),
        signing_root: trust.signing.to_string(),
        renew_within_ms,
    }
}

fn unknown_to_proto((key, nearest): (&ResourceKey, &Option<ServiceName>)) -> proto::Unknown {
    let name = key.to_proto();
    proto::Unknown {
        r#type: name.r#type,
        name: name.name,
        nearest: nearest.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

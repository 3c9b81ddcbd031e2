//! Which proxies listen, and what each has acknowledged: the proof behind `apply --wait`. Told the time, asks nobody.
//!
//! An epoch is acknowledged by a proxy when it acknowledged a message that reaches it, and refused when it refused one that
//! carried it. Who was connected when an epoch was made is remembered for the last epochs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use equerry_policies::names::SpiffeId;

use crate::registry::InstanceKey;

/// Epochs whose audience is remembered.
const EPOCHS_REMEMBERED: usize = 256;
/// Refusals remembered of one proxy.
const NACKS_REMEMBERED: usize = 16;
/// Messages one proxy may leave unanswered before it is taken for broken.
pub const UNANSWERED: usize = 256;

/// One proxy, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyStatus {
    /// Namespace and instance id.
    pub instance: InstanceKey,
    /// Its identity; `None` for an instance that has not opened a config stream since this control plane started.
    pub spiffe_id: Option<SpiffeId>,
    /// Whether its config stream is open.
    pub connected: bool,
    /// Since when.
    pub connected_since: Option<SystemTime>,
    /// The last epoch it acknowledged; 0 for none.
    pub acked_epoch: u64,
    /// The epoch it should be at.
    pub wanted_epoch: u64,
    /// Its last refusal, when no later epoch was acknowledged without one.
    pub nack: Option<NackStatus>,
    /// The version of its program.
    pub version: Arc<str>,
    /// When the certificate ends that its stream stands on, or, of one that is away, the last that it was seen with; `None` while none is
    /// known.
    pub certificate_not_after: Option<SystemTime>,
    /// What it says of its certificate, and of whom it believes; `None`: an older program, or not connected yet.
    pub standing: Option<Arc<Standing>>,
}

/// A proxy's certificate, and whom it believes, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The generation of trust that is in force there.
    pub generation: u64,
    /// Serial number of its certificate, hexadecimal.
    pub serial: String,
    /// Pin of the root that its certificate leads to; empty: unknown.
    pub root: String,
    /// Until when its certificate holds.
    pub until: SystemTime,
    /// Why what it says of its certificate is not believed.
    pub doubt: Option<String>,
}

impl Standing {
    /// The serial number of the certificate that it shows, if that is believed.
    pub(super) fn shown(&self) -> Option<&str> {
        self.doubt.is_none().then_some(&self.serial)
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NackStatus {
    /// The last epoch it covers.
    pub epoch: u64,
    /// What the proxy said: `TYPE NAME: MESSAGE`.
    pub complaints: Vec<String>,
}

/// How far an epoch has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochStatus {
    /// Which epoch.
    pub epoch: u64,
    /// Every proxy that was known when it was made, by name.
    pub proxies: Vec<ProxyEpoch>,
    /// Every connected one has acknowledged it, and none has refused it.
    pub complete: bool,
}

/// How far an epoch has come at one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyEpoch {
    /// Namespace and instance id.
    pub instance: InstanceKey,
    /// How far.
    pub state: EpochState,
    /// Why it was refused.
    pub complaints: Vec<String>,
}

/// How far an epoch has come at one proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochState {
    /// It is live there.
    Acked,
    /// It was or will be sent.
    Pending,
    /// It was refused there.
    Nacked,
    /// The proxy is not connected.
    Away,
}

impl EpochState {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Pending => "pending",
            Self::Nacked => "nacked",
            Self::Away => "away",
        }
    }
}

/// What a proxy answered, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("found an answer to message {0}, which was never sent or is answered already")]
pub struct UnknownNonce(pub u64);

/// Names one connection of a proxy among all it had.
pub type ConnectionId = u64;

#[derive(Debug)]
struct Nack {
    from: u64,
    to: u64,
    complaints: Vec<String>,
}

#[derive(Debug)]
struct Sent {
    nonce: u64,
    from: u64,
    to: u64,
}

#[derive(Debug)]
struct Proxy {
    id: SpiffeId,
    version: Arc<str>,
    connection: Option<(ConnectionId, SystemTime)>,
    certificate_not_after: Option<SystemTime>,
    acked: u64,
    unanswered: VecDeque<Sent>,
    nacks: VecDeque<Nack>,
    standing: Option<Arc<Standing>>,
}

impl Proxy {
    /// When the certificate of its stream ends; without a stream, the latest that it showed or told of.
    fn last_certificate(&self) -> Option<SystemTime> {
        let believed = self.standing.as_ref().filter(|standing| standing.doubt.is_none());
        let told = believed.map(|standing| standing.until);
        if self.connection.is_some() { self.certificate_not_after } else { self.certificate_not_after.max(told) }
    }

    fn nack_of(&self, epoch: u64) -> Option<&Nack> {
        self.nacks.iter().rev().find(|nack| nack.from <= epoch && epoch <= nack.to)
    }
}

#[derive(Debug, Default)]
struct Audience {
    connected: BTreeSet<InstanceKey>,
    away: BTreeSet<InstanceKey>,
}

/// Every proxy that listens or has listened.
#[derive(Debug, Default)]
pub struct Proxies {
    known: BTreeMap<InstanceKey, Proxy>,
    audiences: BTreeMap<u64, Audience>,
    last_connection: ConnectionId,
}

impl Proxies {
    /// A proxy opened a stream; an older one of the same instance counts no longer.
    pub fn connected(&mut self, key: InstanceKey, id: SpiffeId, version: String, now: SystemTime) -> ConnectionId {
        self.last_connection += 1;
        let connection = Some((self.last_connection, now));
        let (nacks, unanswered) = (VecDeque::new(), VecDeque::new());
        let (version, certificate_not_after, acked, standing) = (version.into(), None, 0, None);
        let proxy = Proxy { id, version, connection, certificate_not_after, acked, unanswered, nacks, standing };
        self.known.insert(key, proxy);
        self.last_connection
    }

    /// A stream stands on a certificate that ends then.
    pub fn certified(&mut self, key: &InstanceKey, connection: ConnectionId, not_after: SystemTime) {
        if let Some(proxy) = self.present(key, connection) {
            proxy.certificate_not_after = Some(not_after);
        }
    }

    /// The instances whose streams are open.
    pub fn all_connected(&self) -> impl Iterator<Item = &InstanceKey> {
        self.known.iter().filter(|(_, proxy)| proxy.connection.is_some()).map(|(key, _)| key)
    }

    /// Whether the instance's stream is open.
    pub fn is_connected(&self, key: &InstanceKey) -> bool {
        self.known.get(key).is_some_and(|proxy| proxy.connection.is_some())
    }

    /// What connected proxies say of their certificates.
    pub(super) fn standings(&self) -> Vec<Arc<Standing>> {
        let connected = self.known.values().filter(|proxy| proxy.connection.is_some());
        connected.filter_map(|proxy| proxy.standing.clone()).collect()
    }

    /// Whether this connection is the instance's present one.
    pub fn is_present(&self, key: &InstanceKey, connection: ConnectionId) -> bool {
        self.known.get(key).is_some_and(|proxy| proxy.connection.is_some_and(|(present, _)| present == connection))
    }

    /// A stream ended.
    pub fn disconnected(&mut self, key: &InstanceKey, connection: ConnectionId) {
        if let Some(proxy) = self.present(key, connection) {
            proxy.connection = None;
            proxy.unanswered.clear();
        }
    }

    /// A message was sent that carries the epochs after the last one up to `to`. Returns how many are unanswered.
    pub fn sent(&mut self, key: &InstanceKey, connection: ConnectionId, nonce: u64, from: u64, to: u64) -> usize {
        self.present(key, connection).map_or(0, |proxy| {
            proxy.unanswered.push_back(Sent { nonce, from, to });
            proxy.unanswered.len()
        })
    }

    /// A proxy says which certificate it shows, and whom it believes.
    pub fn stands(&mut self, key: &InstanceKey, connection: ConnectionId, standing: Standing) {
        if let Some(proxy) = self.present(key, connection) {
            proxy.standing = Some(Arc::new(standing));
        }
    }

    /// A proxy accepted a message.
    ///
    /// # Errors
    /// When it was never sent.
    pub fn acked(&mut self, key: &InstanceKey, connection: ConnectionId, nonce: u64) -> Result<(), UnknownNonce> {
        self.answered(key, connection, nonce).map(drop)
    }

    /// A proxy refused a message, or parts of it.
    ///
    /// # Errors
    /// When it was never sent.
    pub fn nacked(
        &mut self,
        key: &InstanceKey,
        connection: ConnectionId,
        nonce: u64,
        complaints: Vec<String>,
    ) -> Result<(), UnknownNonce> {
        let sent = self.answered(key, connection, nonce)?;
        if let Some(proxy) = self.present(key, connection) {
            proxy.nacks.push_back(Nack { from: sent.from, to: sent.to, complaints });
            if proxy.nacks.len() > NACKS_REMEMBERED {
                proxy.nacks.pop_front();
            }
        }
        Ok(())
    }

    fn answered(&mut self, key: &InstanceKey, connection: ConnectionId, nonce: u64) -> Result<Sent, UnknownNonce> {
        let proxy = self.present(key, connection).ok_or(UnknownNonce(nonce))?;
        let place = proxy.unanswered.iter().position(|sent| sent.nonce == nonce).ok_or(UnknownNonce(nonce))?;
        let sent = proxy.unanswered.remove(place).ok_or(UnknownNonce(nonce))?;
        proxy.acked = proxy.acked.max(sent.to);
        Ok(sent)
    }

    fn present(&mut self, key: &InstanceKey, connection: ConnectionId) -> Option<&mut Proxy> {
        self.known.get_mut(key).filter(|proxy| proxy.connection.is_some_and(|(present, _)| present == connection))
    }

    /// Documents were applied, and this epoch is what holds since, while these instances were registered: remember who must
    /// acknowledge it.
    pub fn epoch_applied(&mut self, epoch: u64, registered: impl Iterator<Item = InstanceKey>) {
        let audience = self.audience_now(registered);
        self.audiences.insert(epoch, audience);
        while self.audiences.len() > EPOCHS_REMEMBERED {
            self.audiences.pop_first();
        }
    }

    fn audience_now(&self, registered: impl Iterator<Item = InstanceKey>) -> Audience {
        let connected: BTreeSet<_> =
            self.known.iter().filter(|(_, p)| p.connection.is_some()).map(|(key, _)| key.clone()).collect();
        let away = registered.filter(|key| !connected.contains(key)).collect();
        Audience { connected, away }
    }

    /// Forgets proxies that are neither connected nor registered any more. One that `is_revoked` is remembered until its certificate
    /// has ended: so long somebody may ask why it is away.
    pub fn forget_gone(
        &mut self,
        is_registered: impl Fn(&InstanceKey) -> bool,
        is_revoked: impl Fn(&SpiffeId) -> bool,
        now: SystemTime,
    ) {
        self.known.retain(|key, proxy| {
            let could_show = || proxy.last_certificate().is_some_and(|end| now < end);
            proxy.connection.is_some() || is_registered(key) || is_revoked(&proxy.id) && could_show()
        });
    }

    /// Every proxy that listens, and every registered instance that should (they come in the order of their keys), at the present
    /// `epoch`, in that order.
    pub fn status(&self, epoch: u64, registered: impl Iterator<Item = InstanceKey>) -> Vec<ProxyStatus> {
        let mut all: Vec<ProxyStatus> = Vec::with_capacity(self.known.len());
        let mut known = self.known.iter().peekable();
        for expected in registered {
            while let Some((key, proxy)) = known.next_if(|(key, _)| **key <= expected) {
                all.push(status_of(key.clone(), Some(proxy), epoch));
            }
            if all.last().is_none_or(|last| last.instance != expected) {
                all.push(status_of(expected, None, epoch));
            }
        }
        all.extend(known.map(|(key, proxy)| status_of(key.clone(), Some(proxy), epoch)));
        all
    }

    /// How far `epoch` has come. For an epoch whose audience is not remembered, everybody known now is its audience.
    pub fn epoch_status(&self, epoch: u64, registered: impl Iterator<Item = InstanceKey>) -> EpochStatus {
        let registered: BTreeSet<InstanceKey> = registered.collect();
        let now;
        let audience = match self.audiences.get(&epoch) {
            Some(audience) => audience,
            None => {
                now = self.audience_now(registered.iter().cloned());
                &now
            }
        };
        let everybody: BTreeSet<&InstanceKey> = audience.connected.iter().chain(&audience.away).collect();
        let proxies: Vec<ProxyEpoch> = everybody
            .into_iter()
            // One that was drained since is nobody's concern any more.
            .filter(|key| self.known.contains_key(key) || registered.contains(key))
            .map(|key| self.epoch_at(key, epoch))
            .collect();
        let complete = proxies.iter().all(|proxy| matches!(proxy.state, EpochState::Acked | EpochState::Away));
        EpochStatus { epoch, proxies, complete }
    }

    fn epoch_at(&self, key: &InstanceKey, epoch: u64) -> ProxyEpoch {
        let proxy = self.known.get(key);
        let nack = proxy.and_then(|proxy| proxy.nack_of(epoch));
        let state = match proxy {
            Some(proxy) if proxy.connection.is_some() && nack.is_some() => EpochState::Nacked,
            Some(proxy) if proxy.connection.is_some() && proxy.acked >= epoch => EpochState::Acked,
            Some(proxy) if proxy.connection.is_some() => EpochState::Pending,
            _ => EpochState::Away,
        };
        let complaints = nack.map(|nack| nack.complaints.clone()).unwrap_or_default();
        ProxyEpoch { instance: key.clone(), state, complaints }
    }
}

fn status_of(instance: InstanceKey, proxy: Option<&Proxy>, wanted_epoch: u64) -> ProxyStatus {
    let connection = proxy.and_then(|proxy| proxy.connection);
    ProxyStatus {
        instance,
        spiffe_id: proxy.map(|proxy| proxy.id.clone()),
        connected: connection.is_some(),
        connected_since: connection.map(|(_, since)| since),
        acked_epoch: proxy.map_or(0, |proxy| proxy.acked),
        wanted_epoch,
        nack: proxy
            .and_then(|proxy| proxy.nacks.back().filter(|nack| nack.to >= proxy.acked))
            .map(|nack| NackStatus { epoch: nack.to, complaints: nack.complaints.clone() }),
        version: proxy.map(|proxy| Arc::clone(&proxy.version)).unwrap_or_default(),
        certificate_not_after: proxy.and_then(Proxy::last_certificate),
        standing: proxy.and_then(|proxy| proxy.standing.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use equerry_policies::names::{InstanceId, Namespace};

    fn key(id: &str) -> InstanceKey {
        InstanceKey { namespace: Namespace::parse("shop").unwrap(), id: InstanceId::parse(id).unwrap() }
    }

    fn connect(proxies: &mut Proxies, id: &str) -> ConnectionId {
        let spiffe = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
        proxies.connected(key(id), spiffe, "0.1.0".into(), SystemTime::UNIX_EPOCH)
    }

    fn states(proxies: &Proxies, epoch: u64) -> Vec<(String, EpochState)> {
        let status = proxies.epoch_status(epoch, [key("a"), key("b"), key("c")].into_iter());
        status.proxies.into_iter().map(|p| (p.instance.id.to_string(), p.state)).collect()
    }

    #[test]
    fn all_that_listen_or_should_are_told_once_and_by_name() {
        let mut proxies = Proxies::default();
        for id in ["d", "b", "f"] {
            connect(&mut proxies, id);
        }
        let told = |registered: &[&str]| -> Vec<(String, bool)> {
            let status = proxies.status(1, registered.iter().map(|id| key(id)));
            status.into_iter().map(|one| (one.instance.id.to_string(), one.connected)).collect()
        };
        let all = |ids: &[(&str, bool)]| ids.iter().map(|(id, there)| ((*id).to_owned(), *there)).collect::<Vec<_>>();
        assert_eq!(told(&[]), all(&[("b", true), ("d", true), ("f", true)]));
        assert_eq!(told(&["b", "d", "f"]), told(&[]));
        let some = [("a", false), ("b", true), ("c", false), ("d", true), ("f", true), ("g", false)];
        assert_eq!(told(&["a", "b", "c", "g"]), all(&some));
    }

    #[test]
    fn an_epoch_is_complete_when_every_connected_proxy_acknowledged_it() {
        let mut proxies = Proxies::default();
        let (a, b) = (connect(&mut proxies, "a"), connect(&mut proxies, "b"));
        proxies.epoch_applied(1, [key("a"), key("b"), key("c")].into_iter());
        proxies.sent(&key("a"), a, 1, 1, 1);
        proxies.sent(&key("b"), b, 1, 1, 1);
        proxies.acked(&key("a"), a, 1).unwrap();
        assert_eq!(
            states(&proxies, 1),
            [("a".into(), EpochState::Acked), ("b".into(), EpochState::Pending), ("c".into(), EpochState::Away)]
        );
        assert!(!proxies.epoch_status(1, std::iter::empty()).complete);
        proxies.acked(&key("b"), b, 1).unwrap();
        assert!(proxies.epoch_status(1, [key("c")].into_iter()).complete);
    }

    #[test]
    fn a_refusal_marks_every_epoch_the_message_carried_and_says_why() {
        let mut proxies = Proxies::default();
        let a = connect(&mut proxies, "a");
        proxies.epoch_applied(1, std::iter::empty());
        proxies.epoch_applied(2, std::iter::empty());
        proxies.sent(&key("a"), a, 1, 1, 2);
        proxies.nacked(&key("a"), a, 1, vec!["destination shop/x: no".into()]).unwrap();
        for epoch in [1, 2] {
            let status = proxies.epoch_status(epoch, std::iter::empty());
            assert_eq!((status.complete, status.proxies[0].state), (false, EpochState::Nacked));
            assert_eq!(status.proxies[0].complaints, ["destination shop/x: no"]);
        }
        proxies.epoch_applied(3, std::iter::empty());
        proxies.sent(&key("a"), a, 2, 3, 3);
        proxies.acked(&key("a"), a, 2).unwrap();
        assert!(proxies.epoch_status(3, std::iter::empty()).complete);
        assert_eq!(proxies.status(3, std::iter::empty())[0].nack, None);
    }

    #[test]
    fn a_proxy_that_reconnects_must_acknowledge_again() {
        let mut proxies = Proxies::default();
        let a = connect(&mut proxies, "a");
        proxies.epoch_applied(1, [key("a")].into_iter());
        proxies.sent(&key("a"), a, 1, 1, 1);
        proxies.acked(&key("a"), a, 1).unwrap();
        proxies.disconnected(&key("a"), a);
        assert_eq!(states(&proxies, 1), [("a".into(), EpochState::Away)]);
        let again = connect(&mut proxies, "a");
        assert_eq!(states(&proxies, 1), [("a".into(), EpochState::Pending)]);
        assert_eq!(proxies.acked(&key("a"), a, 1), Err(UnknownNonce(1)), "the old stream is nobody's any more");
        proxies.disconnected(&key("a"), a);
        assert!(proxies.is_present(&key("a"), again));
    }

    #[test]
    fn a_proxy_that_was_drained_is_waited_for_no_longer() {
        let mut proxies = Proxies::default();
        let a = connect(&mut proxies, "a");
        proxies.epoch_applied(1, [key("a")].into_iter());
        proxies.disconnected(&key("a"), a);
        proxies.forget_gone(|_| false, |_| false, SystemTime::UNIX_EPOCH);
        let status = proxies.epoch_status(1, std::iter::empty());
        assert!(status.complete && status.proxies.is_empty());
    }

    #[test]
    fn one_that_was_revoked_is_remembered_until_its_certificate_has_ended() {
        let mut proxies = Proxies::default();
        let a = connect(&mut proxies, "a");
        let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        proxies.certified(&key("a"), a, ends);
        proxies.disconnected(&key("a"), a);
        let known = |proxies: &mut Proxies, now| {
            proxies.forget_gone(|_| false, |_| true, now);
            proxies.status(1, std::iter::empty()).len()
        };
        assert_eq!(known(&mut proxies, ends - Duration::from_secs(1)), 1, "somebody may ask why it is away");
        assert_eq!(known(&mut proxies, ends), 0);
    }
}

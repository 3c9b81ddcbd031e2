//! A request, or a connection in whose bytes nobody looks for one, as rules ask about it.
//!
//! What costs an allocation is made once, and only when a rule asks. What is not there is nothing: it is none of the values that a
//! rule wants, and none of those that it excludes.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;

use equerry_policies::compile::{Authorization, Candidates, CompiledWorkload, Pattern, Predicate, Rule, RuleId, Turn};
use equerry_policies::names::SpiffeId;
use equerry_policies::policy::{Action, IpBlock};
use http::HeaderMap;
use http::header::HeaderName;
use serde_json::Value;

use super::remote::remote_ip;
use super::{Connection, Facts};
use crate::token::{Caller, claim_texts};

/// What rules ask about.
pub(crate) struct Asked<'a> {
    caller: &'a Caller,
    connection: &'a Connection<'a>,
    /// `None`: nobody looks for one.
    request: Option<&'a Facts<'a>>,
    trusted_hops: u8,
    principal: OnceCell<String>,
    remote: OnceCell<IpAddr>,
}

/// The part of a rule that does not hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Failed<'r> {
    /// It asks about HTTP, and lets nothing pass that is not HTTP.
    NotHttp,
    /// None of its sources holds.
    From(&'r [Vec<Predicate>]),
    /// None of its operations holds.
    To(&'r [Vec<Predicate>]),
    /// This condition does not.
    When(&'r Predicate),
}

impl<'a> Asked<'a> {
    pub(crate) fn request(caller: &'a Caller, facts: &'a Facts<'a>, workload: &CompiledWorkload) -> Self {
        Self { request: Some(facts), ..Self::connection(caller, &facts.connection, workload) }
    }

    pub(crate) fn connection(caller: &'a Caller, connection: &'a Connection<'a>, workload: &CompiledWorkload) -> Self {
        Self {
            caller,
            connection,
            request: None,
            trusted_hops: workload.trusted_hops(connection.port),
            principal: OnceCell::new(),
            remote: OnceCell::new(),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.connection.port
    }

    /// The first rule of a turn, in the order written, that holds.
    pub(super) fn first_match(&self, authorization: &Authorization, turn: Turn) -> Option<RuleId> {
        // Many workloads have no rule that denies, and some none at all.
        if !authorization.asks(turn) {
            return None;
        }
        let Some(lists) = self.candidates(authorization, turn) else {
            return self.each(authorization, turn).next();
        };
        let mut best: Option<RuleId> = None;
        for list in lists {
            let earlier = list.iter().copied().take_while(|id| best.is_none_or(|best| *id < best));
            let found = earlier.into_iter().find(|id| self.matches(authorization, authorization.rule(*id), turn));
            best = found.or(best);
        }
        best
    }

    /// Every rule of a turn that holds, in the order written.
    pub(super) fn all_matches(&self, authorization: &Authorization, turn: Turn) -> Vec<RuleId> {
        let Some(lists) = self.candidates(authorization, turn) else {
            return self.each(authorization, turn).collect();
        };
        let matches = |id: &RuleId| self.matches(authorization, authorization.rule(*id), turn);
        let mut all: Vec<RuleId> = lists.into_iter().flatten().copied().filter(matches).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Rules that might match; `None`: nobody looks for a request, and any might.
    fn candidates<'r>(&self, authorization: &'r Authorization, turn: Turn) -> Option<Candidates<'r>> {
        let (peer, token) = (self.caller.peer(), self.caller.request_principal());
        self.request.map(|request| authorization.candidates(turn, peer, token, request.path))
    }

    /// Every rule of a turn that holds, each looked at.
    fn each(&self, authorization: &Authorization, turn: Turn) -> impl Iterator<Item = RuleId> {
        let of_turn = move |rule: &Rule| authorization.policy_of(rule).turn == turn;
        let holds = move |rule: &Rule| of_turn(rule) && self.matches(authorization, rule, turn);
        authorization.rules().filter(move |(_, rule)| holds(rule)).map(|(id, _)| id)
    }

    fn matches(&self, authorization: &Authorization, rule: &Rule, turn: Turn) -> bool {
        authorization.policy_of(rule).holds_on(self.port()) && self.missing(rule, turn.action()).is_none()
    }

    /// The first part of a rule that does not hold; `None`: it matches.
    pub(crate) fn missing<'r>(&self, rule: &'r Rule, action: Action) -> Option<Failed<'r>> {
        if self.request.is_none() && rule.about_http() && action == Action::Allow {
            return Some(Failed::NotHttp);
        }
        let all = |part: &'r Vec<Predicate>| self.first_failing(part).is_none();
        if !rule.from.is_empty() && !rule.from.iter().any(all) {
            return Some(Failed::From(&rule.from));
        }
        if !rule.to.is_empty() && !rule.to.iter().any(all) {
            return Some(Failed::To(&rule.to));
        }
        self.first_failing(&rule.when).map(Failed::When)
    }

    /// The first of some predicates that does not hold. Where there is no request, what is asked about one is passed over.
    pub(crate) fn first_failing<'r>(&self, predicates: &'r [Predicate]) -> Option<&'r Predicate> {
        let passed_over = |predicate: &Predicate| self.request.is_none() && predicate.about_http();
        predicates.iter().find(|predicate| !passed_over(predicate) && !self.holds(predicate))
    }

    fn holds(&self, predicate: &Predicate) -> bool {
        let peer = self.caller.peer();
        let of_peer = |is: &dyn Fn(&SpiffeId) -> bool| peer.is_some_and(is);
        let of_request = |is: &dyn Fn(&Facts<'_>) -> bool| self.request.is_some_and(is);
        match predicate {
            Predicate::Principal(values) => values.hold(|one| of_peer(&|peer| self.is_principal(one, peer))),
            Predicate::Namespace(values) => values.hold(|one| of_peer(&|peer| one.matches(peer.namespace.as_str()))),
            Predicate::TrustDomain(values) => {
                values.hold(|one| of_peer(&|peer| one.matches(peer.trust_domain.as_str())))
            }
            Predicate::Account(values) => values.hold(|one| {
                of_peer(&|peer| {
                    one.name.as_str() == peer.account.as_str() && one.namespace.as_str() == peer.namespace.as_str()
                })
            }),
            Predicate::RequestPrincipal(values) => {
                let token = self.issuer_and_subject();
                values.hold(|one| token.is_some_and(|(issuer, subject)| one.matches(issuer, subject)))
            }
            Predicate::SourceIp(values) => values.hold(|block| contains(*block, self.connection.peer_ip)),
            Predicate::RemoteIp(values) => values.hold(|block| contains(*block, self.remote_ip())),
            Predicate::DestinationIp(values) => {
                values.hold(|block| self.connection.local_ip.is_some_and(|address| contains(*block, address)))
            }
            Predicate::Port(values) => values.hold(|port| *port == self.connection.port),
            Predicate::Sni(values) => values.hold(|one| self.connection.sni.is_some_and(|name| one.matches(name))),
            Predicate::Host(values) => values
                .hold(|one| of_request(&|facts| one.matches(facts.authority) || one.matches(host_of(facts.authority)))),
            Predicate::Method(values) => values.hold(|one| of_request(&|facts| one.matches(facts.method.as_str()))),
            Predicate::Path(values) => values.hold(|one| of_request(&|facts| one.matches(facts.path))),
            Predicate::Header(name, values) => values.hold(|one| of_request(&|facts| has(facts.headers, name, one))),
            Predicate::Claim(_, values) | Predicate::Audience(values) | Predicate::Presenter(values) => {
                let claim = self.claim(predicate);
                values.hold(|one| claim.as_ref().is_some_and(|claim| claim.texts().any(|text| one.matches(&text))))
            }
        }
    }

    fn is_principal(&self, pattern: &Pattern, peer: &SpiffeId) -> bool {
        match pattern {
            Pattern::Present => true,
            Pattern::Exact(text) => is_exactly(peer, text),
            _ => pattern.matches(self.principal.get_or_init(|| peer.principal())),
        }
    }

    /// The claim that a predicate asks about.
    fn claim<'p>(&'p self, predicate: &'p Predicate) -> Option<Claim<'p>> {
        let named = |name: &str| self.caller.claims()?.get(name);
        let value = match predicate {
            Predicate::Audience(_) => named("aud"),
            Predicate::Presenter(_) => named("azp"),
            Predicate::Claim(path, _) => self.caller.claim(path),
            _ => None,
        };
        let of_words = |path: &[Box<str>]| matches!(path, [only] if matches!(&**only, "scope" | "permission"));
        let of_words = matches!(predicate, Predicate::Claim(path, _) if of_words(path));
        value.map(|value| Claim { value, of_words })
    }

    fn issuer_and_subject(&self) -> Option<(&str, &str)> {
        let issuer = self.caller.issuer()?;
        let subject = self.caller.request_principal()?.strip_prefix(issuer)?.strip_prefix('/')?;
        Some((issuer, subject))
    }

    fn remote_ip(&self) -> IpAddr {
        let headers = self.request.map(|facts| facts.headers);
        *self.remote.get_or_init(|| remote_ip(headers, self.connection.peer_ip, self.trusted_hops))
    }

    /// What there is of the thing that a predicate asks about, for people.
    pub(crate) fn found(&self, predicate: &Predicate) -> Vec<String> {
        let peer = |word: &dyn Fn(&SpiffeId) -> String| self.caller.peer().map(word).into_iter().collect();
        let request = |word: &dyn Fn(&Facts<'_>) -> String| self.request.map(word).into_iter().collect();
        match predicate {
            Predicate::Principal(_) => peer(&SpiffeId::principal),
            Predicate::Namespace(_) => peer(&|peer| peer.namespace.to_string()),
            Predicate::TrustDomain(_) => peer(&|peer| peer.trust_domain.to_string()),
            Predicate::Account(_) => peer(&|peer| peer.account_name().to_string()),
            Predicate::RequestPrincipal(_) => self.caller.request_principal().map(str::to_owned).into_iter().collect(),
            Predicate::SourceIp(_) => vec![self.connection.peer_ip.to_string()],
            Predicate::RemoteIp(_) => vec![self.remote_ip().to_string()],
            Predicate::DestinationIp(_) => self.connection.local_ip.iter().map(ToString::to_string).collect(),
            Predicate::Port(_) => vec![self.connection.port.to_string()],
            Predicate::Sni(_) => self.connection.sni.iter().map(ToString::to_string).collect(),
            Predicate::Host(_) => request(&|facts| facts.authority.to_owned()),
            Predicate::Method(_) => request(&|facts| facts.method.to_string()),
            Predicate::Path(_) => request(&|facts| facts.path.to_owned()),
            Predicate::Header(name, _) => {
                let values = self.request.map(|facts| facts.headers.get_all(name).iter());
                let shown = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                values.into_iter().flatten().map(shown).collect()
            }
            Predicate::Claim(..) | Predicate::Audience(_) | Predicate::Presenter(_) => {
                self.claim(predicate).map(|claim| claim.texts().map(Cow::into_owned).collect()).unwrap_or_default()
            }
        }
    }
}

/// A claim of the verified token.
struct Claim<'c> {
    value: &'c Value,
    /// It is a list written as words with spaces between (RFC 8693 section 4.2): `scope` and `permission`, as Istio reads them.
    of_words: bool,
}

impl<'c> Claim<'c> {
    fn texts(&self) -> impl Iterator<Item = Cow<'c, str>> {
        let (words, whole) = match self.value {
            Value::String(text) if self.of_words => (Some(text), None),
            value => (None, Some(value)),
        };
        let words = words.into_iter().flat_map(|text| text.split(' ').filter(|word| !word.is_empty()));
        words.map(Cow::Borrowed).chain(whole.into_iter().flat_map(claim_texts))
    }
}

/// Whether a header has such a value, each looked at for itself: values put together with commas could be read as another.
fn has(headers: &HeaderMap, name: &HeaderName, pattern: &Pattern) -> bool {
    headers.get_all(name).iter().any(|value| *pattern == Pattern::Present || pattern.matches_bytes(value.as_bytes()))
}

/// The authority without its port.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // The colons inside an IPv6 literal are not the port's.
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

/// Whether `text` is the principal of `peer`, compared part by part.
fn is_exactly(peer: &SpiffeId, text: &str) -> bool {
    text.strip_prefix(peer.trust_domain.as_str())
        .and_then(|rest| rest.strip_prefix("/ns/"))
        .and_then(|rest| rest.strip_prefix(peer.namespace.as_str()))
        .and_then(|rest| rest.strip_prefix("/sa/"))
        == Some(peer.account.as_str())
}

/// Whether a network contains an address; IPv4 addresses written as IPv6 are the IPv4 addresses they are.
pub(super) fn contains((network, length): IpBlock, address: IpAddr) -> bool {
    match (network.to_canonical(), address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let rest = 32_u32.saturating_sub(u32::from(length));
            u32::from(network).checked_shr(rest) == u32::from(address).checked_shr(rest)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let rest = 128_u32.saturating_sub(u32::from(length));
            u128::from(network).checked_shr(rest) == u128::from(address).checked_shr(rest)
        }
        _ => false,
    }
}

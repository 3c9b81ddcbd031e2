//! Those outside the mesh that callers name themselves (`ALLOW_ANY`), as backends like any other: endpoints from the DNS, each
//! with its breaker and latency, a budget for retries, limits.
//!
//! What is known of one outlives the answers of the DNS, by address; how many are known is bounded, because callers choose
//! the names. An address is judged here, after it was looked up and before it is connected to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use equerry_policies::compile;
use equerry_policies::names::{Namespace, ResourceName, ServiceName};
use equerry_policies::policy::{AppProtocol, ServicePort, TrafficPolicy};
use equerry_policies::view::{self, DestinationView, EndpointView};
use equerry_traffic::Refusal;
use equerry_traffic::balance::{Balancer, Member};
use equerry_traffic::outside::{self, ChosenBy, Host, Outside, OwnDoors};

use super::resolve::{Bounds, Resolver, Unresolved};
use crate::live::{Backend, Destination, Endpoint};

/// Most hosts and ports that are known at a time.
const MOST: usize = 1024;
/// One that nobody has called for this long is forgotten.
const MEMORY: Duration = Duration::from_secs(600);

/// Everybody outside who was called lately. One for the process, shared by all threads.
pub struct Outsiders {
    resolver: Resolver,
    doors: OwnDoors,
    known: Mutex<HashMap<Outside, Known>>,
}

struct Known {
    /// What the DNS said when `destination` was made.
    addresses: Arc<[IpAddr]>,
    destination: Arc<Destination>,
    called: Instant,
}

/// The name of everybody outside in metrics and logs, whose labels callers must not choose. No Service is called so: a
/// Service's name has no dot.
pub(crate) fn name() -> ServiceName {
    static NAME: LazyLock<ServiceName> = LazyLock::new(|| {
        let valid = "both are of the form that is asked for";
        ServiceName::new(Namespace::parse("outside").expect(valid), ResourceName::parse("the.mesh").expect(valid))
    });
    NAME.clone()
}

/// Whether it is that name.
pub(crate) fn is(service: &ServiceName) -> bool {
    *service == name()
}

impl std::fmt::Debug for Outsiders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outsiders").field("doors", &self.doors).finish_non_exhaustive()
    }
}

impl Outsiders {
    /// Nobody was called yet. Names are looked up on the current runtime, at the name servers `dns`, or at those of this
    /// machine when none is given; `doors` are this process's own listeners.
    pub fn new(dns: Vec<SocketAddr>, doors: OwnDoors) -> Self {
        Self::asking(Resolver::new(dns, Bounds::default()), doors)
    }

    /// The same with a resolver that is there.
    fn asking(resolver: Resolver, doors: OwnDoors) -> Self {
        Self { resolver, doors, known: Mutex::default() }
    }

    /// Who looks names up, for all of this process.
    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Whoever a request that may leave is for: a destination without routes, whose only port is the one meant.
    ///
    /// # Errors
    /// [`Refusal::NoService`] when the DNS knows nobody of that name, [`Refusal::NotResolved`] when it does not answer,
    /// [`Refusal::Overload`] when too many names are in use, [`Refusal::Forbidden`] when nothing is sent there.
    pub(crate) async fn reach(&self, to: &Outside) -> Result<Arc<Destination>, Refusal> {
        let addresses = match to.host() {
            Host::Address(address) => self.remembered(to, *address),
            Host::Name(name) => self.resolver.addresses(name).await.map_err(|unresolved| refusal(to, &unresolved))?,
        };
        let now = tokio::time::Instant::now().into_std();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.get_mut(to).filter(|known| Arc::ptr_eq(&known.addresses, &addresses)) {
            same.called = now;
            return Ok(Arc::clone(&same.destination));
        }
        let allowed = self.allowed(to, &addresses)?;
        if known.len() >= MOST && !known.contains_key(to) {
            forget(&mut known, now);
        }
        let before = known.remove(to);
        let destination = Arc::new(destination(to, &allowed, before.as_ref().map(|known| &*known.destination), now));
        known.insert(to.clone(), Known { addresses, destination: Arc::clone(&destination), called: now });
        Ok(destination)
    }

    /// The one address of a host that is an address: the very list from before, so that it is known again.
    fn remembered(&self, to: &Outside, address: IpAddr) -> Arc<[IpAddr]> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(to).map_or_else(|| Arc::from([address]), |known| Arc::clone(&known.addresses))
    }

    /// The addresses that a caller may be sent to. The name is refused only when there is none.
    fn allowed(&self, to: &Outside, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Refusal> {
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in addresses {
            let own = self.doors.is_own(SocketAddr::new(*address, to.port())).then_some("this sidecar itself");
            match outside::forbidden(*address, ChosenBy::Caller).or(own) {
                None => allowed.push(*address),
                Some(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if allowed.is_empty() => Err(Refusal::Forbidden { host: to.host().to_string(), why }),
            _ => Ok(allowed),
        }
    }
}

fn refusal(to: &Outside, unresolved: &Unresolved) -> Refusal {
    let host = to.host().to_string();
    match unresolved {
        Unresolved::Nobody => Refusal::NoService { name: host, nearest: None },
        Unresolved::Failed(why) => Refusal::NotResolved { host, detail: why.to_string() },
        Unresolved::TooMany => Refusal::Overload,
    }
}

/// Forgets those that nobody has called for long, else the one that was called the longest time ago. Exchanges that go on
/// keep what they hold.
fn forget(known: &mut HashMap<Outside, Known>, now: Instant) {
    known.retain(|_, known| now.duration_since(known.called) < MEMORY);
    if known.len() >= MOST {
        let oldest = known.iter().min_by_key(|(_, known)| known.called).map(|(to, _)| to.clone());
        oldest.and_then(|oldest| known.remove(&oldest));
    }
}

/// A destination whose endpoints are at `addresses`; endpoints, budget and limits of `before` go on.
fn destination(to: &Outside, addresses: &[IpAddr], before: Option<&Destination>, now: Instant) -> Destination {
    let port = ServicePort {
        name: None,
        port: to.port(),
        target_port: to.port(),
        app_protocol: AppProtocol::Http,
        undeclared: false,
    };
    let ports = vec![port];
    let told = view::resolved(&ports, addresses);
    let members = told.iter().map(|endpoint| Member::new(endpoint.instance.as_str(), endpoint.weight)).collect();
    let states = || before.into_iter().flat_map(|before| &before.backend.endpoints);
    let endpoint = |told: EndpointView| Endpoint {
        state: states().find(|old| old.instance == told.instance).map(|old| Arc::clone(&old.state)).unwrap_or_default(),
        instance: told.instance,
        address: told.address,
        open: told.open,
    };
    let traffic = TrafficPolicy::default();
    let old = before.map(|before| &before.backend.balancer);
    let backend = Backend {
        name: name(),
        balancer: Balancer::new(&traffic.load_balancer, members, old, now, &mut fastrand::Rng::new()),
        traffic,
        accounts: Arc::from([]),
        endpoints: told.into_iter().map(endpoint).collect(),
        unwell: Vec::new(),
        ports: ports.clone(),
        limits: before.map(|before| Arc::clone(&before.backend.limits)).unwrap_or_default(),
        // Nobody outside the mesh is asked over a protocol that we choose.
        answers: Arc::default(),
    };
    let compiled = before.map(|before| Arc::clone(&before.compiled)).unwrap_or_else(|| {
        let view = DestinationView::plain(name(), ports);
        Arc::new(compile::destination(&view).expect("a view without routes has nothing to complain about"))
    });
    Destination {
        compiled,
        budget: before.map(|before| Arc::clone(&before.budget)).unwrap_or_default(),
        backend: Arc::new(backend),
        habits: Arc::default(),
        complete: true,
        used: Arc::new(AtomicBool::new(true)),
    }
}

#[cfg(test)]
mod tests {
    use equerry_policies::policy::OutboundTraffic;

    use super::super::resolve::server::{Says, Server};
    use super::*;

    fn to(authority: &str) -> Outside {
        outside::may_leave(authority, None, OutboundTraffic::AllowAny).unwrap()
    }

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    async fn outsiders() -> (Outsiders, Server) {
        let server = Server::start().await;
        let moment = Duration::from_millis(50);
        let patience = Duration::from_secs(20);
        let bounds =
            Bounds { shortest: moment, longest: moment, longest_negative: moment, patience, ..Bounds::default() };
        let resolver = Resolver::new(vec![server.address], bounds);
        let doors = ["127.0.0.1:15001", "0.0.0.0:15006", "192.0.2.5:15006"].map(|door| door.parse().unwrap());
        (Outsiders::asking(resolver, OwnDoors::new(doors)), server)
    }

    fn instances(destination: &Destination) -> Vec<String> {
        destination.backend.endpoints.iter().map(|endpoint| endpoint.instance.to_string()).collect()
    }

    #[tokio::test]
    async fn what_was_seen_of_an_address_stays_with_it_when_the_dns_says_something_else() {
        let (outsiders, server) = outsiders().await;
        server.say("api.example.com", Says::Addresses(ips(&["192.0.2.1", "192.0.2.2"]), 1));
        let api = to("api.example.com:8080");
        let first = outsiders.reach(&api).await.unwrap();
        assert_eq!(instances(&first), ["dns-192.0.2.1", "dns-192.0.2.2"]);
        assert_eq!(first.backend.ports[0].port, 8080);
        assert_eq!(first.backend.name.to_string(), "outside/the.mesh");

        server.say("api.example.com", Says::Addresses(ips(&["192.0.2.2", "192.0.2.3"]), 1));
        let deadline = Instant::now() + Duration::from_secs(20);
        let next = loop {
            let next = outsiders.reach(&api).await.unwrap();
            if !Arc::ptr_eq(&first, &next) {
                break next;
            }
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(instances(&next), ["dns-192.0.2.2", "dns-192.0.2.3"]);
        assert!(Arc::ptr_eq(&first.backend.endpoints[1].state, &next.backend.endpoints[0].state));
        assert!(Arc::ptr_eq(&first.budget, &next.budget) && Arc::ptr_eq(&first.backend.limits, &next.backend.limits));
    }

    #[tokio::test]
    async fn a_name_leads_nowhere_where_nothing_is_sent_and_an_address_neither() {
        let (outsiders, server) = outsiders().await;
        server.say("evil.example.com", Says::Addresses(ips(&["127.0.0.1", "169.254.169.254"]), 1));
        server.say("half.example.com", Says::Addresses(ips(&["169.254.169.254", "192.0.2.1"]), 1));
        server.say("self.example.com", Says::Addresses(ips(&["192.0.2.5"]), 1));
        for authority in [
            "evil.example.com",
            "169.254.169.254",
            "127.0.0.1:15000",
            "[::ffff:127.0.0.1]:8080",
            "localhost",
            "self.example.com:15006",
        ] {
            let refused = outsiders.reach(&to(authority)).await.err();
            assert!(matches!(refused, Some(Refusal::Forbidden { .. })), "{authority}: {refused:?}");
        }
        assert_eq!(instances(&outsiders.reach(&to("half.example.com")).await.unwrap()), ["dns-192.0.2.1"]);
        assert_eq!(instances(&outsiders.reach(&to("self.example.com:80")).await.unwrap()), ["dns-192.0.2.5"]);
    }

    #[tokio::test]
    async fn an_address_needs_no_dns_and_is_the_same_destination_each_time() {
        let (outsiders, server) = outsiders().await;
        let first = outsiders.reach(&to("192.0.2.9:9000")).await.unwrap();
        assert!(Arc::ptr_eq(&first, &outsiders.reach(&to("192.0.2.9:9000")).await.unwrap()));
        assert!(!Arc::ptr_eq(&first, &outsiders.reach(&to("192.0.2.9:9001")).await.unwrap()));
        assert_eq!(server.asked("192.0.2.9"), 0);
    }

    #[tokio::test]
    async fn a_name_nobody_has_is_no_service_and_one_that_cannot_be_asked_for_is_unavailable() {
        use hickory_resolver::proto::op::ResponseCode;
        let (outsiders, server) = outsiders().await;
        server.say("broken.example.com", Says::Code(ResponseCode::ServFail, 1));
        let gone = outsiders.reach(&to("gone.example.com")).await.err().unwrap();
        let broken = outsiders.reach(&to("broken.example.com")).await.err().unwrap();
        assert_eq!((gone.reason().as_str(), broken.reason().as_str()), ("no_service", "no_healthy_endpoint"));
    }

    #[tokio::test]
    async fn callers_cannot_make_it_know_more_than_so_many() {
        let (outsiders, _server) = outsiders().await;
        for number in 0..MOST + 100 {
            outsiders.reach(&to(&format!("10.1.{}.{}", number / 256, number % 256))).await.unwrap();
        }
        assert_eq!(outsiders.known.lock().unwrap().len(), MOST);
    }
}

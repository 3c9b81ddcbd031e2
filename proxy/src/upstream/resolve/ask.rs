//! One lookup: the hosts file first, then the DNS, A and AAAA together.
//!
//! hickory's own cache is off, for what is remembered of a name and for how long is decided in one place (`memory`). Names
//! are absolute: `ndots` and search domains are for people at a shell. `/etc/hosts` and `/etc/resolv.conf` are read again
//! when they change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use equerry_policies::names::HostName;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};

use super::memory::Outcome;

/// What the hosts file says holds for this long: looking into it again costs little.
const HOSTS_TTL: Duration = Duration::from_secs(10);
/// One question to one round of name servers takes at most this long, whatever resolv.conf allows: the lookup is made again
/// soon, and nobody waits for it that long.
const LONGEST_QUESTION: Duration = Duration::from_secs(2);
/// So many rounds in one lookup, whatever resolv.conf allows.
const MOST_ATTEMPTS: usize = 2;
/// A larger file is not read: neither is written for machines.
const LARGEST_FILE: u64 = 4 << 20;

/// Asks.
pub(crate) struct Asker {
    hosts: Mutex<FromFile<Hosts>>,
    /// `Err`: whom to ask is not known, and why.
    resolver: Mutex<FromFile<Result<TokioResolver, String>>>,
    /// Whether packets to an address would leave this machine at all.
    has_route: fn(IpAddr) -> bool,
}

impl Asker {
    /// Asks the given name servers by UDP and TCP; none given: those of this machine.
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        Self::with_files(servers, "/etc/hosts", "/etc/resolv.conf", has_route)
    }

    /// The same with other files, and another idea of what can be reached.
    pub(super) fn with_files(
        servers: Vec<SocketAddr>,
        hosts: impl AsRef<Path>,
        resolv_conf: impl AsRef<Path>,
        has_route: fn(IpAddr) -> bool,
    ) -> Self {
        Self {
            hosts: Mutex::new(FromFile::new(hosts.as_ref(), read_hosts)),
            resolver: Mutex::new(FromFile::new(resolv_conf.as_ref(), move |text| resolver(&servers, text))),
            has_route,
        }
    }

    /// Looks a name up once.
    pub(crate) async fn ask(&self, name: &HostName) -> Outcome {
        let Ok(mut absolute) = Name::from_ascii(name.as_str()) else { return Outcome::Nobody { ttl: None } };
        absolute.set_fqdn(true);
        if let Some(addresses) = self.in_hosts(&absolute) {
            return Outcome::Found { addresses, ttl: HOSTS_TTL };
        }
        let resolver = match self.resolver.lock().unwrap_or_else(PoisonError::into_inner).now() {
            Ok(resolver) => resolver.clone(),
            Err(why) => return Outcome::Failed(why.clone()),
        };
        let (v4, v6) = tokio::join!(resolver.ipv4_lookup(absolute.clone()), resolver.ipv6_lookup(absolute.clone()));
        match together(read(v4), read(v6)) {
            Outcome::Found { addresses, ttl } => Outcome::Found { addresses: self.with_route(addresses), ttl },
            other => other,
        }
    }

    /// What the hosts file says; a name that stands there is not asked for elsewhere, as with every libc.
    fn in_hosts(&self, name: &Name) -> Option<Vec<IpAddr>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = hosts.now();
        let mut found = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            if let Some(lookup) = hosts.lookup_static_host(&Query::query(name.clone(), kind)) {
                found.extend(lookup.answers().iter().filter_map(|record| record.data.ip_addr()));
            }
        }
        (!found.is_empty()).then_some(found)
    }

    /// Leaves out addresses of a family that this machine has no way to, as `AI_ADDRCONFIG` does; all of them when it has a
    /// way to none, so that the failure is told where it happens.
    fn with_route(&self, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let reached =
            |v4: bool| addresses.iter().filter(|one| one.is_ipv4() == v4).take(4).any(|one| (self.has_route)(*one));
        match (reached(true), reached(false)) {
            (true, false) => addresses.into_iter().filter(IpAddr::is_ipv4).collect(),
            (false, true) => addresses.into_iter().filter(IpAddr::is_ipv6).collect(),
            _ => addresses,
        }
    }
}

/// Connecting a datagram socket sends nothing, and fails where there is no route.
fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    std::net::UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 9))).is_ok()
}

/// What one question brought.
fn read(answer: Result<Lookup, NetError>) -> Outcome {
    match answer {
        Ok(lookup) => {
            // Names on the way (CNAME) count too: the first to change changes the answer.
            let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
            let ttl = Duration::from_secs(u64::from(ttl));
            let addresses: Vec<IpAddr> = lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
            if addresses.is_empty() { Outcome::Nobody { ttl: Some(ttl) } } else { Outcome::Found { addresses, ttl } }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            Outcome::Nobody { ttl: none.negative_ttl.map(|ttl| Duration::from_secs(u64::from(ttl))) }
        }
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// What A and AAAA say together. One that failed does not hide what the other found, but without it nobody can say that
/// there are no addresses.
fn together(v4: Outcome, v6: Outcome) -> Outcome {
    match (v4, v6) {
        (Outcome::Found { mut addresses, ttl }, Outcome::Found { addresses: more, ttl: other }) => {
            addresses.extend(more);
            Outcome::Found { addresses, ttl: ttl.min(other) }
        }
        (found @ Outcome::Found { .. }, _) | (_, found @ Outcome::Found { .. }) => found,
        (failed @ Outcome::Failed(_), _) | (_, failed @ Outcome::Failed(_)) => failed,
        (Outcome::Nobody { ttl }, Outcome::Nobody { ttl: other }) => {
            Outcome::Nobody { ttl: ttl.into_iter().chain(other).min() }
        }
    }
}

fn read_hosts(text: &[u8]) -> Hosts {
    let mut hosts = Hosts::default();
    if let Err(error) = hosts.read_hosts_conf(text) {
        tracing::warn!(%error, "the hosts file is read no further");
    }
    hosts
}

/// Asks `servers`, else those that resolv.conf names; its timeouts hold in both cases, within bounds.
fn resolver(servers: &[SocketAddr], resolv_conf: &[u8]) -> Result<TokioResolver, String> {
    let of_machine = system_conf::parse_resolv_conf(resolv_conf);
    let (config, options) = match (servers, of_machine) {
        ([], Err(error)) => return Err(format!("resolv.conf names nobody to ask: {error}")),
        ([], Ok((config, options))) => (config, options),
        (given, of_machine) => {
            let servers = given.iter().map(name_server).collect();
            let options = of_machine.map_or_else(|_| ResolverOpts::default(), |(_, options)| options);
            (ResolverConfig::from_name_servers(servers), options)
        }
    };
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    let options = builder.options_mut();
    options.timeout = options.timeout.min(LONGEST_QUESTION);
    options.attempts = options.attempts.min(MOST_ATTEMPTS);
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    builder.build().map_err(|error| error.to_string())
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

type Read<T> = Box<dyn Fn(&[u8]) -> T + Send>;

/// What a small file says, read again when it was changed. A file that is not there says nothing.
struct FromFile<T> {
    path: PathBuf,
    read: Read<T>,
    /// When the file that `value` was made of was changed, and its length.
    seen: Option<(SystemTime, u64)>,
    value: T,
}

impl<T> FromFile<T> {
    fn new(path: &Path, read: impl Fn(&[u8]) -> T + Send + 'static) -> Self {
        let value = read(&[]);
        Self { path: path.to_owned(), read: Box::new(read), seen: None, value }
    }

    /// What it says now.
    fn now(&mut self) -> &T {
        let found = std::fs::metadata(&self.path).ok().filter(|file| file.len() <= LARGEST_FILE);
        let stamp = found.and_then(|file| Some((file.modified().ok()?, file.len())));
        if stamp != self.seen {
            self.seen = stamp;
            self.value = (self.read)(&stamp.and_then(|_| std::fs::read(&self.path).ok()).unwrap_or_default());
        }
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(addresses: &[&str], ttl: u64) -> Outcome {
        Outcome::Found {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ttl: Duration::from_secs(ttl),
        }
    }

    fn nobody(ttl: Option<u64>) -> Outcome {
        Outcome::Nobody { ttl: ttl.map(Duration::from_secs) }
    }

    #[test]
    fn both_families_are_one_answer_and_only_both_together_can_say_that_there_is_none() {
        let failed = || Outcome::Failed("timed out".to_owned());
        for (v4, v6, both) in [
            (found(&["192.0.2.1"], 9), found(&["2001:db8::1"], 5), found(&["192.0.2.1", "2001:db8::1"], 5)),
            (found(&["192.0.2.1"], 9), nobody(Some(5)), found(&["192.0.2.1"], 9)),
            (failed(), found(&["2001:db8::1"], 5), found(&["2001:db8::1"], 5)),
            (nobody(Some(9)), failed(), failed()),
            (nobody(Some(9)), nobody(Some(5)), nobody(Some(5))),
            (nobody(None), nobody(Some(5)), nobody(Some(5))),
        ] {
            assert_eq!(together(v4, v6), both);
        }
    }

    #[tokio::test]
    async fn the_hosts_file_comes_first_and_is_read_again_when_it_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (hosts, resolv_conf) = (dir.path().join("hosts"), dir.path().join("resolv.conf"));
        std::fs::write(&hosts, "192.0.2.1 db db.example.com # ours\n2001:db8::1 DB\n").unwrap();
        let asker = Asker::with_files(Vec::new(), &hosts, &resolv_conf, |_| true);
        let db = HostName::parse("db").unwrap();
        assert_eq!(asker.ask(&db).await, found(&["192.0.2.1", "2001:db8::1"], 10));
        std::fs::write(&hosts, "192.0.2.22 db\n").unwrap();
        assert_eq!(asker.ask(&db).await, found(&["192.0.2.22"], 10));
        let other = asker.ask(&HostName::parse("other").unwrap()).await;
        assert!(matches!(&other, Outcome::Failed(why) if why.contains("resolv.conf")), "{other:?}");
    }

    #[tokio::test]
    async fn localhost_is_this_machine_without_asking_anybody() {
        let server = vec![SocketAddr::from(([192, 0, 2, 1], 1))];
        let asker = Asker::with_files(server, "/nowhere/hosts", "/nowhere/resolv.conf", |_| true);
        let Outcome::Found { addresses, .. } = asker.ask(&HostName::parse("x.localhost").unwrap()).await else {
            unreachable!("RFC 6761 section 6.3")
        };
        assert!(addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    }

    #[test]
    fn a_family_without_a_way_out_is_left_out_unless_it_is_all_there_is() {
        let asker = Asker::with_files(Vec::new(), "/nowhere", "/nowhere", |address| address.is_ipv4());
        let all = |addresses: &[&str]| addresses.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(asker.with_route(all(&["192.0.2.1", "2001:db8::1"])), all(&["192.0.2.1"]));
        assert_eq!(asker.with_route(all(&["2001:db8::1"])), all(&["2001:db8::1"]));
        assert!(has_route(Ipv4Addr::LOCALHOST.into()));
    }
}

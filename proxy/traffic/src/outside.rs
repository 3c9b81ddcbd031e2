//! Names that no Service has: whether a request that names one may leave (`outboundTraffic`), and where nothing is ever sent.
//!
//! Under `ALLOW_ANY` the application chooses where its sidecar connects to, and often a stranger chooses for the
//! application: a URL in a form, a redirect. So an address is judged after the name was looked up, and the address that was
//! judged is the one that is connected to. Loopback, link-local and the metadata services of clouds are refused, written in
//! whatever way; so are this sidecar's own listeners.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use equerry_policies::names::HostName;
use equerry_policies::policy::OutboundTraffic;

use crate::refusal::Refusal;

/// The port of plain HTTP, meant where none is named.
const HTTP: u16 = 80;

/// Where somebody outside the mesh is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// What the DNS says of this name.
    Name(HostName),
    /// There.
    Address(IpAddr),
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Proof that a request may leave the mesh, and for where.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Outside {
    host: Host,
    port: u16,
}

impl Outside {
    /// Who is meant.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port meant.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Whether a request may leave whose `authority`, in its normal form, no Service has. `nearest` is the Service whose name
/// is nearest to it.
///
/// # Errors
/// [`Refusal::NoService`] under `REGISTRY_ONLY`, and where the authority can be the name of nobody.
pub fn may_leave(authority: &str, nearest: Option<&str>, traffic: OutboundTraffic) -> Result<Outside, Refusal> {
    let unknown = || Refusal::NoService { name: authority.to_owned(), nearest: nearest.map(str::to_owned) };
    match traffic {
        OutboundTraffic::RegistryOnly => Err(unknown()),
        OutboundTraffic::AllowAny => read(authority).ok_or_else(unknown),
    }
}

fn read(authority: &str) -> Option<Outside> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok().filter(|port| *port != 0)?),
        _ => (authority, HTTP),
    };
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = match literal {
        Some(v6) => Host::Address(IpAddr::V6(v6.parse().ok()?)),
        None => match host.parse::<Ipv4Addr>() {
            Ok(v4) => Host::Address(IpAddr::V4(v4)),
            Err(_) => Host::Name(HostName::parse(host).ok()?),
        },
    };
    Some(Outside { host, port })
}

/// Who chose a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChosenBy {
    /// Whoever wrote the Service that stands for it (`ExternalName`): a name for something on this machine may be meant.
    Policy,
    /// Whoever wrote the request (`ALLOW_ANY`).
    Caller,
}

/// What is at an address where nothing is sent; `None`: it may be connected to.
pub fn forbidden(address: IpAddr, chosen_by: ChosenBy) -> Option<&'static str> {
    match plain(address) {
        IpAddr::V4(address) => forbidden_v4(address, chosen_by),
        IpAddr::V6(address) => forbidden_v6(address, chosen_by),
    }
}

/// IPv4 addresses come in IPv6's clothes too: mapped and compatible (RFC 4291 section 2.5.5), through NAT64 (RFC 6052) and
/// 6to4 (RFC 3056). What they lead to is judged.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let inside = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => inside(high, low),
        _ => address,
    }
}

/// Services that tell whoever asks the credentials of this machine, where they are not link-local: Alibaba's, Oracle's (all
/// of the block of IETF protocols) and Azure's wire server.
fn is_metadata(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [100, 100, 100, 200] | [192, 0, 0, _] | [168, 63, 129, 16])
}

fn forbidden_v4(address: Ipv4Addr, chosen_by: ChosenBy) -> Option<&'static str> {
    if address.is_loopback() {
        return (chosen_by == ChosenBy::Caller).then_some("this machine's loopback");
    }
    // 0.0.0.0 connects to this machine.
    if address.octets()[0] == 0 {
        return Some("no address (0.0.0.0/8)");
    }
    if address.is_link_local() {
        return Some("a link-local address (169.254.0.0/16, where clouds keep credentials)");
    }
    if is_metadata(address) {
        return Some("a cloud's metadata service");
    }
    (address.octets()[0] >= 224).then_some("no single machine (multicast, reserved or broadcast)")
}

/// AWS's metadata service has an address of its own among the private ones (`fd00:ec2::254`).
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

fn forbidden_v6(address: Ipv6Addr, chosen_by: ChosenBy) -> Option<&'static str> {
    if address.is_loopback() {
        return (chosen_by == ChosenBy::Caller).then_some("this machine's loopback");
    }
    if address.is_unspecified() {
        return Some("no address (::)");
    }
    if address.is_unicast_link_local() {
        return Some("a link-local address (fe80::/10)");
    }
    if address == METADATA_V6 {
        return Some("a cloud's metadata service");
    }
    address.is_multicast().then_some("no single machine (multicast)")
}

/// This sidecar's own listeners: 15001 would send a request round in circles, 15000 is for people on this machine.
#[derive(Debug, Clone, Default)]
pub struct OwnDoors(Vec<SocketAddr>);

impl OwnDoors {
    /// The listeners, and every other address they are known by.
    pub fn new(listeners: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self(listeners.into_iter().collect())
    }

    /// Whether a connection to `address` would come back to this sidecar.
    pub fn is_own(&self, address: SocketAddr) -> bool {
        let to = plain(address.ip());
        let here = to.is_loopback() || to.is_unspecified();
        let met = |door: &SocketAddr| {
            let at = plain(door.ip());
            at == to || (here && (at.is_loopback() || at.is_unspecified()))
        };
        self.0.iter().any(|door| door.port() == address.port() && met(door))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_service_has_may_leave_only_where_any_may() {
        let refused = may_leave("ordrs", Some("shop/orders"), OutboundTraffic::RegistryOnly).unwrap_err();
        assert_eq!(refused.to_string(), "there is no service \"ordrs\"; did you mean \"shop/orders\"?");
        let outside = may_leave("api.example.com", None, OutboundTraffic::AllowAny).unwrap();
        assert_eq!((outside.host().to_string().as_str(), outside.port()), ("api.example.com", 80));
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_nothing_between() {
        for (authority, host, port) in [
            ("redis:6379", "redis", 6379),
            ("10.0.0.1", "10.0.0.1", 80),
            ("10.0.0.1:8080", "10.0.0.1", 8080),
            ("[2001:db8::1]", "2001:db8::1", 80),
            ("[2001:db8::1]:8080", "2001:db8::1", 8080),
        ] {
            let read = may_leave(authority, None, OutboundTraffic::AllowAny).unwrap();
            assert_eq!((read.host().to_string().as_str(), read.port()), (host, port), "{authority}");
        }
        for bad in ["", ":80", "a:0", "a:x", "127.1", "0x7f.1", "2130706433", "010.0.0.1", "[::1", "::1", "a..b", "[a]"]
        {
            let refused = may_leave(bad, None, OutboundTraffic::AllowAny);
            assert!(matches!(refused, Err(Refusal::NoService { .. })), "{bad}: {refused:?}");
        }
    }

    #[test]
    fn nobody_is_sent_to_where_credentials_are_kept_in_whatever_way_the_address_is_written() {
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "fe80::1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert!(forbidden(address, ChosenBy::Caller).is_some(), "{address}");
            assert!(forbidden(address, ChosenBy::Policy).is_some(), "{address}");
        }
    }

    #[test]
    fn this_machines_loopback_is_for_names_that_a_policy_chose() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::"] {
            let address: IpAddr = address.parse().unwrap();
            assert!(forbidden(address, ChosenBy::Caller).is_some(), "{address}");
            assert_eq!(forbidden(address, ChosenBy::Policy), None, "{address}");
        }
    }

    #[test]
    fn private_and_public_addresses_may_be_called() {
        for address in ["10.1.2.3", "172.16.0.1", "192.168.1.1", "192.0.1.1", "93.184.216.34", "2001:db8::1", "fd00::1"]
        {
            assert_eq!(forbidden(address.parse().unwrap(), ChosenBy::Caller), None, "{address}");
        }
    }

    #[test]
    fn a_request_never_comes_back_to_the_sidecar_that_sends_it() {
        let listeners = ["127.0.0.1:15001", "127.0.0.1:15000", "0.0.0.0:15006", "10.0.0.5:15006"];
        let doors = OwnDoors::new(listeners.map(|listener| listener.parse().unwrap()));
        let own = ["127.0.0.1:15000", "127.0.0.2:15001", "[::1]:15006", "[::ffff:127.0.0.1]:15000", "10.0.0.5:15006"];
        for address in own.into_iter().chain(["0.0.0.0:15006"]) {
            assert!(doors.is_own(address.parse().unwrap()), "{address}");
        }
        for address in ["127.0.0.1:8080", "10.0.0.6:15006", "10.0.0.5:15001"] {
            assert!(!doors.is_own(address.parse().unwrap()), "{address}");
        }
    }
}

//! What of a request is hashed, so that requests alike go to the same endpoint; and the hash: XXH3, the same in every process
//! and version, so that every sidecar sends them to the same one.
//!
//! It is no secret and need not be: whoever wants to load one endpoint just sends the same value again. `boundedLoad` is
//! what holds then.

use std::borrow::Cow;
use std::net::IpAddr;

use equerry_policies::names::SpiffeId;
use equerry_policies::policy::HashOn;
use http::header::{COOKIE, HeaderName};
use http::request::Parts;
use twox_hash::XxHash3_64;

/// What is hashed, its names read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hash {
    /// The values of a header, all of them in their order.
    Header(HeaderName),
    /// The value of the first cookie of that name.
    Cookie(Box<str>),
    /// The value of the first query parameter of that name, as it was sent.
    Query(Box<str>),
    /// The address of the instance that calls.
    SourceAddress,
    /// The identity of the workload that calls.
    Identity,
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Where the request came from.
    pub address: IpAddr,
    /// The instance beside this sidecar, which stands for its address: its application comes from loopback.
    pub instance: &'a str,
    /// The workload's identity.
    pub identity: &'a SpiffeId,
}

impl Hash {
    /// `None` when a header is named that cannot be one, which the language refuses.
    pub fn new(on: &HashOn) -> Option<Self> {
        Some(match on {
            HashOn::Header(name) => Self::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
            HashOn::Cookie(name) => Self::Cookie(name.as_str().into()),
            HashOn::Query(name) => Self::Query(name.as_str().into()),
            HashOn::SourceAddress => Self::SourceAddress,
            HashOn::Identity => Self::Identity,
        })
    }
}

/// The hash of what `hash` names in a request in its normal form; `None` when the request has no such thing.
pub fn hash_key(hash: &Hash, request: &Parts, source: &Source<'_>) -> Option<u64> {
    match hash {
        Hash::Header(name) => {
            let values = request.headers.get_all(name).iter();
            values
                .fold(None, |so_far, value| Some(XxHash3_64::oneshot_with_seed(so_far.unwrap_or(0), value.as_bytes())))
        }
        Hash::Cookie(name) => cookie(request, name).map(hash_of),
        Hash::Query(name) => query(request, name).map(|value| hash_of(value.as_bytes())),
        Hash::SourceAddress => Some(match source.address.to_canonical() {
            address if address.is_loopback() => hash_of(source.instance.as_bytes()),
            IpAddr::V4(address) => hash_of(&address.octets()),
            IpAddr::V6(address) => hash_of(&address.octets()),
        }),
        Hash::Identity => Some(hash_of(source.identity.to_string().as_bytes())),
    }
}

/// The hash of some bytes.
pub fn hash_of(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// One number made of two, each bit of which depends on every bit of both (the finalizer of SplitMix64).
pub(super) fn mix(one: u64, other: u64) -> u64 {
    let mut z = one.wrapping_add(other.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A cookie's value (RFC 6265 section 4.2.1); over HTTP/2 there may be several `Cookie` headers.
fn cookie<'r>(request: &'r Parts, name: &str) -> Option<&'r [u8]> {
    let pairs = request.headers.get_all(COOKIE).iter().flat_map(|header| header.as_bytes().split(|c| *c == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn query<'r>(request: &'r Parts, name: &str) -> Option<Cow<'r, str>> {
    let pairs = request.uri.query()?.split('&');
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(key, _)| *key == name).map(|(_, v)| v.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn key(on: &HashOn, request: http::request::Builder) -> Option<u64> {
        let identity = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/frontend").unwrap();
        let source = Source { address: [10, 0, 0, 7].into(), instance: "frontend-1", identity: &identity };
        hash_key(&Hash::new(on).unwrap(), &request.body(()).unwrap().into_parts().0, &source)
    }

    fn header(name: &str) -> HashOn {
        HashOn::Header(name.to_owned())
    }

    #[test]
    fn it_is_xxh3_as_every_version_and_every_sidecar_computes_it() {
        assert_eq!(hash_of(b""), 0x2d06_8005_38d3_94c2, "the vector of the reference implementation");
        assert_eq!(key(&header("x-user"), Request::get("/").header("x-user", "")), Some(0x2d06_8005_38d3_94c2));
    }

    #[test]
    fn a_header_is_all_its_values_and_none_is_none() {
        let of = |values: &[&str]| {
            let request = values.iter().fold(Request::get("/"), |request, value| request.header("X-User", *value));
            key(&header("x-user"), request)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["ann"]), Some(hash_of(b"ann")));
        assert_ne!(of(&["ann", "bob"]), of(&["ann"]));
        assert_ne!(of(&["ann", "bob"]), of(&["bob", "ann"]));
        assert_eq!(of(&["ann", "bob"]), of(&["ann", "bob"]));
    }

    #[test]
    fn a_cookie_is_found_among_others_and_by_its_whole_name() {
        let of = |headers: &[&str]| {
            let request = headers.iter().fold(Request::get("/"), |request, value| request.header("cookie", *value));
            key(&HashOn::Cookie("sid".to_owned()), request)
        };
        let expected = Some(hash_of(b"42"));
        assert_eq!(of(&["sid=42"]), expected);
        assert_eq!(of(&["a=1; sid=42; b=2"]), expected);
        assert_eq!(of(&["a=1;sid=42"]), expected);
        assert_eq!(of(&["a=1", "sid=42"]), expected, "HTTP/2 may send a header for each");
        assert_eq!(of(&["xsid=1; sidx=2; SID=3; a=sid=4"]), None);
    }

    #[test]
    fn a_query_parameter_is_found_as_it_was_sent() {
        let of = |target: &str| key(&HashOn::Query("user".to_owned()), Request::get(target));
        assert_eq!(of("/a?user=ann%20b&x=1"), Some(hash_of(b"ann%20b")));
        assert_eq!(of("/a?x=1&user=ann"), Some(hash_of(b"ann")));
        assert_eq!(of("/a?user"), Some(hash_of(b"")));
        assert_eq!(of("/a?users=ann"), None);
        assert_eq!(of("/user=ann"), None);
    }

    #[test]
    fn an_application_beside_its_sidecar_is_known_by_its_instance_not_by_loopback() {
        let identity = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/frontend").unwrap();
        let request = Request::get("/").body(()).unwrap().into_parts().0;
        let of = |address: &str, instance| {
            let source = Source { address: address.parse().unwrap(), instance, identity: &identity };
            hash_key(&Hash::SourceAddress, &request, &source)
        };
        assert_eq!(of("127.0.0.1", "frontend-1"), of("::1", "frontend-1"));
        assert_ne!(of("127.0.0.1", "frontend-1"), of("127.0.0.1", "frontend-2"));
        assert_eq!(of("10.0.0.7", "frontend-1"), of("::ffff:10.0.0.7", "frontend-2"));
    }

    #[test]
    fn the_source_is_its_address_or_its_identity() {
        assert_eq!(key(&HashOn::SourceAddress, Request::get("/")), Some(hash_of(&[10, 0, 0, 7])));
        let identity = b"spiffe://equerry.local/ns/shop/sa/frontend";
        assert_eq!(key(&HashOn::Identity, Request::get("/")), Some(hash_of(identity)));
    }
}

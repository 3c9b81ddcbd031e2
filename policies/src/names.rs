//! Names, parsed once at the door and trusted afterwards.
//!
//! A value of one of these types is proof that its text was checked: nobody re-checks it later. Every constructor
//! refuses with a [`BadName`] that says what was found and what is expected.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest RFC 1123 label.
const MAX_LABEL: usize = 63;
/// Longest RFC 1123 subdomain, and so the longest resource name.
const MAX_SUBDOMAIN: usize = 253;
/// Longest SPIFFE id that implementations must support (SPIFFE-ID section 2.3).
const MAX_SPIFFE_ID: usize = 2048;

/// A text that is not the name it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found {found:?}, expected {expected}")]
pub struct BadName {
    /// The text as it was found, cut to a length that is safe to print.
    pub found: String,
    /// What is expected there, in words.
    pub expected: &'static str,
}

impl BadName {
    fn new(found: &str, expected: &'static str) -> Self {
        Self { found: found.chars().take(80).collect(), expected }
    }
}

fn is_label(text: &str) -> bool {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= MAX_LABEL
        && bytes.iter().all(|&c| edge(c) || c == b'-')
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_label)
}

fn is_trust_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-'))
}

/// The last label is never a number, so that no way of writing an address (`10.0.0.1`, `127.1`, `0x7f000001`) is a name.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_'))
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|c| c.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|c| c.is_ascii_hexdigit()));
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(label) && !number
}

/// Declares a name that is one checked text.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Reads the name.
            ///
            /// # Errors
            /// When the text is not of the expected form.
            pub fn parse(text: &str) -> Result<Self, BadName> {
                if $check(text) { Ok(Self(text.into())) } else { Err(BadName::new(text, $expected)) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        text_form!($name, $expected);
    };
}

/// Debug, parsing, serde and schema for a type that has `parse` and `Display`.
macro_rules! text_form {
    ($name:ident, $expected:literal) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::parse(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(from)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $expected })
            }
        }
    };
}

checked_text!(
    /// The name of a trust domain, such as `equerry.local`: everything one certificate authority vouches for.
    TrustDomain, is_trust_domain, "a trust domain: lower-case letters, digits, '.', '_' and '-'"
);
checked_text!(
    /// A namespace: an RFC 1123 label.
    Namespace, is_label, "a namespace: up to 63 lower-case letters, digits and '-', starting and ending with a letter or digit"
);
checked_text!(
    /// A service account within a namespace: an RFC 1123 subdomain without dots in a SPIFFE path segment's alphabet.
    Account, is_subdomain, "an account: lower-case letters, digits, '-' and '.', starting and ending with a letter or digit"
);
checked_text!(
    /// The name of a resource within its namespace: an RFC 1123 subdomain.
    ResourceName, is_subdomain, "a name: up to 253 lower-case letters, digits, '-' and '.', starting and ending with a letter or digit"
);
checked_text!(
    /// A tenant: an RFC 1123 label, so that it can also be a subdomain.
    TenantName, is_label, "a tenant: up to 63 lower-case letters, digits and '-', starting and ending with a letter or digit"
);
checked_text!(
    /// The id of one running instance of an application, unique in its namespace.
    InstanceId, is_subdomain, "an instance id: up to 253 lower-case letters, digits, '-' and '.', starting and ending with a letter or digit"
);

checked_text!(
    /// A name of the DNS, absolute, without its last dot: `api.example.com`. Never an address.
    HostName, is_host_name, "a host name: lower-case letters, digits, '-', '_' and '.', and never an address"
);

/// A namespace, and what something is called there.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Within<N> {
    /// Where it lives.
    pub namespace: Namespace,
    /// What it is called there.
    pub name: N,
}

/// Declares a name that is a namespace and a name within it, written `namespace/name`.
macro_rules! namespaced {
    ($(#[$doc:meta])* $name:ident, $inner:ident, $check:expr, $expected:literal) => {
        $(#[$doc])*
        ///
        /// Its parts stand in one place, so that handing it on costs one count, not one for each part.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<Within<$inner>>);

        impl Deref for $name {
            type Target = Within<$inner>;

            fn deref(&self) -> &Within<$inner> {
                &self.0
            }
        }

        impl $name {
            /// Puts the two parts together.
            pub fn new(namespace: Namespace, name: $inner) -> Self {
                Self(Arc::new(Within { namespace, name }))
            }

            /// Reads `namespace/name`.
            ///
            /// # Errors
            /// When the text is not of that form.
            pub fn parse(text: &str) -> Result<Self, BadName> {
                let bad = || BadName::new(text, $expected);
                let (namespace, name) = text.split_once('/').ok_or_else(bad)?;
                if !$check(name) {
                    return Err(bad());
                }
                Ok(Self::new(Namespace::parse(namespace).map_err(|_| bad())?, $inner::parse(name).map_err(|_| bad())?))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }
        text_form!($name, $expected);
    };
}

namespaced!(
    /// A Service: `namespace/name`; the name is a label, because it becomes part of a host name.
    ServiceName, ResourceName, is_label, "a service as NAMESPACE/NAME"
);
namespaced!(
    /// Any namespaced document: `namespace/name`.
    PolicyName, ResourceName, is_subdomain, "a document as NAMESPACE/NAME"
);
namespaced!(
    /// A workload's account: `namespace/account`.
    AccountName, Account, is_subdomain, "an account as NAMESPACE/ACCOUNT"
);

/// A workload's identity: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, the only form this mesh issues or accepts.
///
/// Its parts stand in one place, as those of a [`ServiceName`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<Vouched>);

/// The parts of a [`SpiffeId`].
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vouched {
    /// Who vouches for it.
    pub trust_domain: TrustDomain,
    /// The namespace the workload runs in.
    pub namespace: Namespace,
    /// The account the workload runs as.
    pub account: Account,
}

impl Deref for SpiffeId {
    type Target = Vouched;

    fn deref(&self) -> &Vouched {
        &self.0
    }
}

impl SpiffeId {
    /// Puts the parts together.
    pub fn new(trust_domain: TrustDomain, namespace: Namespace, account: Account) -> Self {
        Self(Arc::new(Vouched { trust_domain, namespace, account }))
    }

    /// Reads the URI form, strictly: no query, fragment, port, empty segment or percent-encoding.
    ///
    /// # Errors
    /// When the text is not exactly of the form this mesh issues.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let bad = || BadName::new(text, "spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT");
        if text.len() > MAX_SPIFFE_ID {
            return Err(bad());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(bad)?;
        let mut parts = rest.split('/');
        let (Some(td), Some("ns"), Some(ns), Some("sa"), Some(sa), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let trust_domain = TrustDomain::parse(td).map_err(|_| bad())?;
        let namespace = Namespace::parse(ns).map_err(|_| bad())?;
        Ok(Self::new(trust_domain, namespace, Account::parse(sa).map_err(|_| bad())?))
    }

    /// The account without the trust domain.
    pub fn account_name(&self) -> AccountName {
        AccountName::new(self.namespace.clone(), self.account.clone())
    }

    /// Istio's form of a principal: the id without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.account)
    }
}
text_form!(SpiffeId, "spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT");

/// The identity the control plane itself carries in `trust_domain`.
///
/// # Panics
/// Never: both parts are constants of valid form.
pub fn control_plane_id(trust_domain: TrustDomain) -> SpiffeId {
    SpiffeId::new(trust_domain, Namespace(SYSTEM_NAMESPACE.into()), Account("control-plane".into()))
}

/// The namespace whose policies without a selector hold for the whole mesh, and where the control plane lives.
pub const SYSTEM_NAMESPACE: &str = "equerry-system";

/// A destination as a caller names it: `svc[.ns[.svc[.cluster.local]]][:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The service meant.
    pub service: ServiceName,
    /// The port named, if one was.
    pub port: Option<u16>,
}

impl Authority {
    /// Reads a normalised (lower-case) authority; `own` is the caller's namespace, meant when none is named.
    ///
    /// # Errors
    /// When it cannot be the name of a service of this mesh.
    pub fn parse(text: &str, own: &Namespace) -> Result<Self, BadName> {
        let bad = || BadName::new(text, "SERVICE[.NAMESPACE[.svc[.cluster.local]]][:PORT]");
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(bad)?)),
            None => (text, None),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        let labels: Vec<&str> = host.split('.').collect();
        let (name, namespace) = match labels.as_slice() {
            [name] => (*name, None),
            [name, ns] | [name, ns, "svc"] | [name, ns, "svc", "cluster", "local"] => (*name, Some(*ns)),
            _ => return Err(bad()),
        };
        if !is_label(name) {
            return Err(bad());
        }
        let namespace = match namespace {
            Some(ns) => Namespace::parse(ns).map_err(|_| bad())?,
            None => own.clone(),
        };
        Ok(Self { service: ServiceName::new(namespace, ResourceName(name.into())), port })
    }
}

/// The nearest of `known` to `given`, if one is near enough to be a slip of the pen (edits, at most a
/// third of the length and never more than three).
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (given.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|k| (distance(given, k), k))
        .filter(|(d, _)| *d <= limit)
        .min_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.cmp(b.1)))
        .map(|(_, k)| k)
}

/// Edits between two texts: a letter put in, left out, changed, or swapped with its neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let fold = |text: &str| text.chars().map(|c| c.to_ascii_lowercase()).collect::<Vec<char>>();
    let (a, b) = (fold(a), fold(b));
    let (mut before, mut above): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..=b.len()).collect());
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_read_strictly() {
        let id = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap();
        assert_eq!(id.to_string(), "spiffe://equerry.local/ns/shop/sa/orders");
        for bad in [
            "spiffe://equerry.local/ns/shop/sa/orders/",
            "spiffe://equerry.local/ns/shop/sa/",
            "spiffe://equerry.local:80/ns/shop/sa/orders",
            "spiffe://Equerry.local/ns/shop/sa/orders",
            "spiffe://equerry.local/ns/shop/sa/orders?x",
            "spiffe://equerry.local/ns/sh%6fp/sa/orders",
            "spiffe://equerry.local/ns/shop/sa/orders\0",
            "https://equerry.local/ns/shop/sa/orders",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_authority_names_a_service_in_every_kubernetes_form() {
        let own = Namespace::parse("shop").unwrap();
        for (text, service, port) in [
            ("orders", "shop/orders", None),
            ("orders:8080", "shop/orders", Some(8080)),
            ("orders.bank", "bank/orders", None),
            ("orders.bank.svc:80", "bank/orders", Some(80)),
            ("orders.bank.svc.cluster.local", "bank/orders", None),
        ] {
            let read = Authority::parse(text, &own).unwrap();
            assert_eq!((read.service.to_string().as_str(), read.port), (service, port), "{text}");
        }
        for bad in ["", ":80", "orders:0", "orders:x", "a.b.c", "orders.bank.svc.example.com", "10.0.0.1:80"] {
            assert!(Authority::parse(bad, &own).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_name_is_a_name_and_never_a_way_of_writing_an_address() {
        for good in ["localhost", "api.example.com", "_http.x", "1.example", "3com.com", "0x7g", "a-b.c"] {
            assert!(HostName::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        let bad =
            ["", ".", "a.", "a..b", "-a.com", "a-.com", "A.com", "a b", "a:80", "10.0.0.1", "127.1", "0x7f000001"];
        for bad in bad.into_iter().chain(["2130706433", "1.0x7f", "a.0x", "::1", "[::1]", "a/b", long.as_str()]) {
            assert!(HostName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_spelling_is_offered_only_when_near() {
        assert_eq!(nearest("inventry", ["inventory", "orders"]), Some("inventory"));
        assert_eq!(nearest("prots", ["ports", "type"]), Some("ports"));
        assert_eq!(nearest("x", ["inventory", "orders"]), None);
    }
}

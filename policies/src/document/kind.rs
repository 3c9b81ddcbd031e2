//! The kinds of documents this version reads, and those it knows of but does not.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Mesh-wide settings; one document, named `default`.
    Mesh,
    /// A name that callers call, and which instances stand behind it.
    Service,
    /// Endpoints written down, without a sidecar.
    EndpointSlice,
    /// How HTTP requests to a Service are routed.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// How gRPC calls to a Service are routed.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// Where connections to a Service go.
    #[serde(rename = "TCPRoute")]
    TcpRoute,
    /// How traffic to a Service is balanced, timed, limited and protected.
    TrafficPolicy,
    /// Faults made on purpose.
    FaultInjection,
    /// Who may speak in plain text.
    PeerAuthentication,
    /// Which tokens are accepted.
    RequestAuthentication,
    /// Who may do what.
    AuthorizationPolicy,
    /// Which pages of other sites may change something.
    CsrfPolicy,
    /// Who a tenant is, and what it may spend.
    Tenant,
    /// What policies are expected to decide.
    PolicyTest,
}

/// Kinds known from the standards or planned here that this version does not read.
pub(crate) const UNBUILT: &[&str] = &[
    "TLSRoute",
    "UDPRoute",
    "BackendTLSPolicy",
    "ReferenceGrant",
    "Gateway",
    "GatewayClass",
    "ListenerSet",
    "RateLimitPolicy",
    "Telemetry",
    "List",
];

impl Kind {
    /// Every kind, in the order in which documents are best shown and applied.
    pub const ALL: [Self; 14] = [
        Self::Mesh,
        Self::Service,
        Self::EndpointSlice,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TrafficPolicy,
        Self::FaultInjection,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::AuthorizationPolicy,
        Self::CsrfPolicy,
        Self::Tenant,
        Self::PolicyTest,
    ];

    /// As written after `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::FaultInjection => "FaultInjection",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::CsrfPolicy => "CsrfPolicy",
            Self::Tenant => "Tenant",
            Self::PolicyTest => "PolicyTest",
        }
    }

    /// As written after `apiVersion:`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::HttpRoute | Self::GrpcRoute | Self::TcpRoute => "gateway.networking.k8s.io/v1",
            _ => "equerry.dev/v1",
        }
    }

    /// As it stands in an admin API path.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Mesh => "meshes",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::HttpRoute => "httproutes",
            Self::GrpcRoute => "grpcroutes",
            Self::TcpRoute => "tcproutes",
            Self::TrafficPolicy => "trafficpolicies",
            Self::FaultInjection => "faultinjections",
            Self::PeerAuthentication => "peerauthentications",
            Self::RequestAuthentication => "requestauthentications",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::CsrfPolicy => "csrfpolicies",
            Self::Tenant => "tenants",
            Self::PolicyTest => "policytests",
        }
    }

    /// Short forms for typing; Kubernetes' and Istio's where they have one.
    pub fn short_names(self) -> &'static [&'static str] {
        match self {
            Self::Mesh | Self::GrpcRoute | Self::TcpRoute => &[],
            Self::Service => &["svc"],
            Self::EndpointSlice => &["eps"],
            Self::HttpRoute => &["route", "routes"],
            Self::TrafficPolicy => &["tp"],
            Self::FaultInjection => &["fault", "faults"],
            Self::PeerAuthentication => &["pa"],
            Self::RequestAuthentication => &["ra"],
            Self::AuthorizationPolicy => &["ap"],
            Self::CsrfPolicy => &["csrf"],
            Self::PolicyTest => &["test", "tests"],
            Self::Tenant => &[],
        }
    }

    /// Whether its documents live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Mesh | Self::Tenant)
    }

    /// Reads a kind as people type it: any case, singular, plural or short.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| {
            word.eq_ignore_ascii_case(kind.as_str())
                || word.eq_ignore_ascii_case(kind.plural())
                || kind.short_names().iter().any(|short| word.eq_ignore_ascii_case(short))
        })
    }

    /// Every spelling that [`Kind::from_word`] reads, for complaints about one it does not.
    pub fn words() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().flat_map(|k| [k.as_str(), k.plural()].into_iter().chain(k.short_names().iter().copied()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_read_in_every_way_people_type_it() {
        for word in Kind::words() {
            assert_eq!(Kind::from_word(&word.to_uppercase()), Kind::from_word(word), "{word}");
            assert!(Kind::from_word(word).is_some(), "{word}");
        }
        assert_eq!(Kind::from_word("HTTPRoutes"), Some(Kind::HttpRoute));
        assert_eq!(Kind::from_word("gadget"), None);
    }

    #[test]
    fn no_two_kinds_share_a_word() {
        let words: Vec<_> = Kind::words().map(str::to_lowercase).collect();
        let mut unique = words.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), words.len());
    }
}

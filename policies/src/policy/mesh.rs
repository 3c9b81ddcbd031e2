//! Mesh-wide settings, and who may speak in plain text.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AccessLog, Origin, Target};
use crate::names::{PolicyName, TrustDomain};

/// The meaning of the one `Mesh` document, named `default`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// The trust domain; when named it must be the one the control plane was started with.
    pub trust_domain: Option<TrustDomain>,
    /// What inbound listeners accept where no `PeerAuthentication` says otherwise. Default: STRICT.
    pub mtls: MtlsMode,
    /// What happens to a request at a workload that no ALLOW policy selects. Default: ALLOW, as Istio.
    pub authorization_default: Verdict,
    /// How much of a refusal's cause its caller is told. Default: `reason`.
    pub error_detail: ErrorDetail,
    /// What outbound does with names the registry does not know. Default: `REGISTRY_ONLY`.
    pub outbound_traffic: OutboundTraffic,
    /// Whether callers that speak HTTP/1.0 are served. Default: REFUSE, as Envoy.
    #[serde(default, skip_serializing_if = "Http10::is_refuse")]
    pub http10: Http10,
    /// How many proxies in front of workloads write down in `X-Forwarded-For` whom they speak for. Default: 0, nobody is
    /// believed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub trusted_hops: u8,
    /// How long a connection to a port that declares nothing may be silent until it is taken for one whose server speaks first;
    /// zero: not at all. `None`: [`Mesh::PROTOCOL_DETECTION_TIMEOUT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_detection_timeout: Option<Duration>,
    /// What access logs say beyond what they always say; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<Box<AccessLog>>,
    /// Where it was written.
    pub origin: Origin,
}

impl Mesh {
    /// What holds where no `protocolDetectionTimeout` is written: as Istio's once was, half of Linkerd's.
    pub const PROTOCOL_DETECTION_TIMEOUT: Duration = Duration::from_secs(5);
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "shaped for serde")]
fn is_zero(hops: &u8) -> bool {
    *hops == 0
}

/// Whether an inbound port asks for mutual TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// Only mutual TLS between mesh identities.
    #[default]
    #[serde(rename = "STRICT")]
    Strict,
    /// Mutual TLS and plain text.
    #[serde(rename = "PERMISSIVE")]
    Permissive,
    /// Only plain text, which the sidecars of callers speak there too: nobody is known by an identity.
    #[serde(rename = "DISABLE")]
    Disable,
}

impl MtlsMode {
    /// The word it is written with.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "STRICT",
            Self::Permissive => "PERMISSIVE",
            Self::Disable => "DISABLE",
        }
    }

    /// Whether callers without an identity may come.
    pub fn takes_plain_text(self) -> bool {
        self != Self::Strict
    }

    /// Whether callers may show who they are.
    pub fn takes_tls(self) -> bool {
        self != Self::Disable
    }

    /// The stricter of two.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Strict, _) | (_, Self::Strict) => Self::Strict,
            (Self::Permissive, _) | (_, Self::Permissive) => Self::Permissive,
            (Self::Disable, Self::Disable) => Self::Disable,
        }
    }

    /// The same for sidecars that know nothing of DISABLE: what they then take is more, and nothing they are asked for is
    /// refused.
    pub(crate) fn as_once(self) -> Self {
        if self == Self::Disable { Self::Permissive } else { self }
    }
}

/// Allow or deny.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// The request may pass.
    #[default]
    #[serde(rename = "ALLOW")]
    Allow,
    /// The request may not pass.
    #[serde(rename = "DENY")]
    Deny,
}

/// How much of a refusal's cause its caller is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ErrorDetail {
    /// The reason only.
    #[default]
    Reason,
    /// Reason, policy and rule.
    Full,
}

/// What outbound does with names the registry does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OutboundTraffic {
    /// They are refused with `no_service`.
    #[default]
    #[serde(rename = "REGISTRY_ONLY")]
    RegistryOnly,
    /// They are looked up in the DNS and called in plain text, as the application named them. It then says with an
    /// address of its choice where this workload's sidecar connects to; the sidecar refuses a few that nobody has
    /// business with.
    #[serde(rename = "ALLOW_ANY")]
    AllowAny,
}

/// Whether callers that speak HTTP/1.0 are served, by both listeners of a sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Http10 {
    /// They are answered 426 and asked to speak HTTP/1.1.
    #[default]
    #[serde(rename = "REFUSE")]
    Refuse,
    /// They are served in their own version: no chunks, no interim responses, a connection for each request unless they ask
    /// to keep it. `Host` they have to send, because it names what they call.
    #[serde(rename = "SERVE")]
    Serve,
}

impl Http10 {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "shaped for serde")]
    fn is_refuse(&self) -> bool {
        *self == Self::Refuse
    }
}

/// Whether a workload asks for mutual TLS, and on which of its ports (`PeerAuthentication`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// The document.
    pub name: PolicyName,
    /// Mesh, namespace or selected workloads; never Services.
    pub target: Target,
    /// The mode; `None` inherits from the next wider scope.
    pub mode: Option<MtlsMode>,
    /// Modes of single application ports.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// Where it was written.
    pub origin: Origin,
}

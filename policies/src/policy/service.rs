//! Services, their ports, and endpoints that are known without registering.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Labels, Origin};
use crate::names::{AccountName, HostName, PolicyName, ServiceName};

/// The meaning of a `v1/Service`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// `namespace/name`.
    pub name: ServiceName,
    /// At least one; port numbers are unique.
    pub ports: Vec<ServicePort>,
    /// Instances of the same namespace that carry all of these labels are members; empty selects none.
    pub selector: Labels,
    /// Accounts a member may run as (annotation `equerry.dev/accounts`), sorted; never empty when `selector` is set.
    pub accounts: Vec<AccountName>,
    /// How many proxies in front of it write down in `X-Forwarded-For` whom they speak for (annotation `equerry.dev/trusted-hops`);
    /// `None`: as many as the mesh says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_hops: Option<u8>,
    /// The name outside the mesh that it stands for (`type: ExternalName`); then it has no selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<HostName>,
    /// Where it was written.
    pub origin: Origin,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What callers name.
    pub port: u16,
    /// What the application listens on; `port` unless the document says otherwise.
    pub target_port: u16,
    /// What is spoken there.
    pub app_protocol: AppProtocol,
    /// Nobody wrote down what is spoken there: it may be bytes as well, where no rule about HTTP holds.
    #[serde(default, skip_serializing_if = "is_false")]
    pub undeclared: bool,
}

impl ServicePort {
    /// Whether a connection may lead there in which nobody looks for requests, as far as the port itself says.
    pub fn takes_bytes(&self) -> bool {
        self.undeclared || self.app_protocol == AppProtocol::Tcp
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "shaped for serde")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What an application speaks on a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 with prior knowledge (`http2`, `kubernetes.io/h2c`).
    Http2,
    /// gRPC, and so HTTP/2 with prior knowledge.
    Grpc,
    /// Bytes that nobody looks at.
    Tcp,
}

/// Plain-text endpoints written down in a `discovery.k8s.io/v1/EndpointSlice`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StaticEndpoints {
    /// The document.
    pub name: PolicyName,
    /// The Service they belong to (label `kubernetes.io/service-name`).
    pub service: ServiceName,
    /// Addresses of endpoints that are ready, in the order written.
    pub addresses: Vec<IpAddr>,
    /// `(port name, port)`: the port listened on for the Service port of that name.
    pub ports: Vec<(Option<String>, u16)>,
    /// Where it was written.
    pub origin: Origin,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_declares_what_it_speaks_travels_as_it_always_did_and_one_that_does_not_says_so() {
        let before = r#"{"name":null,"port":80,"targetPort":8080,"appProtocol":"http"}"#;
        let declared: ServicePort = serde_json::from_str(before).unwrap();
        assert!(!declared.takes_bytes());
        assert_eq!(serde_json::to_string(&declared).unwrap(), before);
        let undeclared = ServicePort { undeclared: true, ..declared };
        let written = serde_json::to_string(&undeclared).unwrap();
        assert!(written.ends_with(r#""appProtocol":"http","undeclared":true}"#), "{written}");
        assert_eq!(serde_json::from_str::<ServicePort>(&written).unwrap(), undeclared);
        assert!(undeclared.takes_bytes());
    }
}

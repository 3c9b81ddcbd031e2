//! A resource as it is understood: its type, its name, its version, and the view in its body.
//!
//! Encoding is deterministic (same view, same bytes, same version). Decoding trusts nothing: size, type, name, version
//! and body are checked, and a [`DecodeError`] names what was wrong so that it can be sent back as a complaint.

use std::fmt;

use aws_lc_rs::digest;
use equerry_policies::names::ServiceName;
use equerry_policies::view::{DestinationView, EndpointsView, WorkloadView};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::MAX_RESOURCE;
use crate::proto;

/// The name of the one `workload` resource of a proxy.
const SELF: &str = "self";
/// Bytes of the SHA-256 that make a version: 128 bits tell contents apart, and are short in logs.
const VERSION_BYTES: usize = 16;

/// What kind of thing a resource tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// What the proxy enforces at its own inbound. Security: without it, deny.
    Workload,
    /// A Service as its callers must know it.
    Destination,
    /// Where a Service can be reached now.
    Endpoints,
}

impl ResourceKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Workload, Self::Destination, Self::Endpoints];

    /// The kind as it stands in a message's `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Destination => "destination",
            Self::Endpoints => "endpoints",
        }
    }

    /// Reads a message's `type`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A resource's type and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKey {
    /// The proxy's own policy.
    Workload,
    /// A Service as a destination.
    Destination(ServiceName),
    /// A Service's endpoints.
    Endpoints(ServiceName),
}

impl ResourceKey {
    /// Its kind.
    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Workload => ResourceKind::Workload,
            Self::Destination(_) => ResourceKind::Destination,
            Self::Endpoints(_) => ResourceKind::Endpoints,
        }
    }

    /// The Service it is about; `None` for the proxy's own policy.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Workload => None,
            Self::Destination(service) | Self::Endpoints(service) => Some(service),
        }
    }

    /// Its name as it stands in a message: `self`, or `namespace/name`.
    pub fn name(&self) -> String {
        self.service().map_or_else(|| SELF.to_owned(), ToString::to_string)
    }

    /// Reads the type and name of a message.
    ///
    /// # Errors
    /// When the type is not known (a newer program on the other side) or the name is not of that type's form.
    pub fn parse(kind: &str, name: &str) -> Result<Self, DecodeError> {
        let known = ResourceKind::parse(kind).ok_or_else(|| DecodeError::UnknownType { found: shown(kind) })?;
        let service = || ServiceName::parse(name).map_err(|_| DecodeError::BadName { kind: known, found: shown(name) });
        match known {
            ResourceKind::Workload if name == SELF => Ok(Self::Workload),
            ResourceKind::Workload => Err(DecodeError::BadName { kind: known, found: shown(name) }),
            ResourceKind::Destination => Ok(Self::Destination(service()?)),
            ResourceKind::Endpoints => Ok(Self::Endpoints(service()?)),
        }
    }

    /// The key as a message.
    pub fn to_proto(&self) -> proto::ResourceName {
        proto::ResourceName { r#type: self.kind().as_str().to_owned(), name: self.name() }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

impl TryFrom<&proto::ResourceName> for ResourceKey {
    type Error = DecodeError;
    fn try_from(name: &proto::ResourceName) -> Result<Self, DecodeError> {
        Self::parse(&name.r#type, &name.name)
    }
}

/// A resource, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// What the proxy enforces at its own inbound.
    Workload(Box<WorkloadView>),
    /// A Service as its callers must know it.
    Destination(Box<DestinationView>),
    /// Where a Service can be reached now.
    Endpoints(Box<EndpointsView>),
}

impl Resource {
    /// Its type and name.
    pub fn key(&self) -> ResourceKey {
        match self {
            Self::Workload(_) => ResourceKey::Workload,
            Self::Destination(view) => ResourceKey::Destination(view.service.clone()),
            Self::Endpoints(view) => ResourceKey::Endpoints(view.service.clone()),
        }
    }

    /// Makes the message. Same view, same bytes.
    ///
    /// # Errors
    /// When the body would be larger than [`MAX_RESOURCE`].
    pub fn encode(&self) -> Result<proto::Resource, EncodeError> {
        let key = self.key();
        let body = match self {
            Self::Workload(view) => body_of(view.as_ref(), &key)?,
            Self::Destination(view) => body_of(view.as_ref(), &key)?,
            Self::Endpoints(view) => body_of(view.as_ref(), &key)?,
        };
        Ok(proto::Resource {
            r#type: key.kind().as_str().to_owned(),
            name: key.name(),
            version: version_of(&body),
            body,
        })
    }

    /// Understands a message. Fields that this version does not know are ignored: they were added by a newer one, and
    /// what changes meaning gets a type or field of its own.
    ///
    /// # Errors
    /// A [`DecodeError`] that says what is wrong, fit to be sent back in a NACK.
    pub fn decode(message: &proto::Resource) -> Result<Self, DecodeError> {
        let key = ResourceKey::parse(&message.r#type, &message.name)?;
        if message.body.len() > MAX_RESOURCE {
            return Err(DecodeError::TooLarge { key, bytes: message.body.len() });
        }
        let actual = version_of(&message.body);
        if actual != message.version {
            return Err(DecodeError::WrongVersion { key, said: shown(&message.version), actual });
        }
        let resource = match &key {
            ResourceKey::Workload => Self::Workload(Box::new(view_in(&message.body, &key)?)),
            ResourceKey::Destination(_) => Self::Destination(Box::new(view_in(&message.body, &key)?)),
            ResourceKey::Endpoints(_) => Self::Endpoints(Box::new(view_in(&message.body, &key)?)),
        };
        let inside = resource.key();
        if inside == key { Ok(resource) } else { Err(DecodeError::WrongService { key, inside }) }
    }
}

/// The version of a body: the first 128 bits of its SHA-256, in lower-case hexadecimal.
pub fn version_of(body: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, body);
    hash.as_ref().iter().take(VERSION_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

fn body_of(view: &impl Serialize, key: &ResourceKey) -> Result<Vec<u8>, EncodeError> {
    let body = serde_json::to_vec(view)
        .map_err(|error| EncodeError::NotJson { key: key.clone(), error: error.to_string() })?;
    if body.len() > MAX_RESOURCE {
        return Err(EncodeError::TooLarge { key: key.clone(), bytes: body.len() });
    }
    Ok(body)
}

fn view_in<T: DeserializeOwned>(body: &[u8], key: &ResourceKey) -> Result<T, DecodeError> {
    serde_json::from_slice(body).map_err(|error| DecodeError::BadBody { key: key.clone(), error: error.to_string() })
}

/// A stranger's text, cut to a length that is safe to print.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Why a resource cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It would be larger than the other side accepts.
    #[error("{key} has {bytes} bytes, at most {MAX_RESOURCE} can be sent: split the Service")]
    TooLarge {
        /// Which resource.
        key: ResourceKey,
        /// How large its body is.
        bytes: usize,
    },
    /// The view cannot be written as JSON: a mistake in this program.
    #[error("{key} cannot be written: {error}")]
    NotJson {
        /// Which resource.
        key: ResourceKey,
        /// What the writer said.
        error: String,
    },
}

/// Why a resource that arrived cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The sender knows a type of resource that this program does not.
    #[error("found a resource of type {found:?}, this version knows workload, destination and endpoints")]
    UnknownType {
        /// The type found.
        found: String,
    },
    /// The name has not the form of its type.
    #[error("found {kind} named {found:?}, expected {}", if *.kind == ResourceKind::Workload { "self" } else { "NAMESPACE/NAME" })]
    BadName {
        /// The type.
        kind: ResourceKind,
        /// The name found.
        found: String,
    },
    /// The body is larger than this program accepts.
    #[error("{key} has {bytes} bytes, at most {MAX_RESOURCE} are accepted")]
    TooLarge {
        /// Which resource.
        key: ResourceKey,
        /// How large its body is.
        bytes: usize,
    },
    /// The version is not the hash of the body: damaged on the way.
    #[error("{key} says version {said}, but its body hashes to {actual}")]
    WrongVersion {
        /// Which resource.
        key: ResourceKey,
        /// The version in the message.
        said: String,
        /// The hash of its body.
        actual: String,
    },
    /// The body is not the JSON of its type's view.
    #[error("{key} cannot be read: {error}")]
    BadBody {
        /// Which resource.
        key: ResourceKey,
        /// What the reader said, with line and column.
        error: String,
    },
    /// The body tells of another Service than the name.
    #[error("{key} carries {inside}")]
    WrongService {
        /// The name of the message.
        key: ResourceKey,
        /// What its body is about.
        inside: ResourceKey,
    },
}

impl DecodeError {
    /// The resource concerned, when its name could be read.
    pub fn key(&self) -> Option<&ResourceKey> {
        match self {
            Self::UnknownType { .. } | Self::BadName { .. } => None,
            Self::TooLarge { key, .. }
            | Self::WrongVersion { key, .. }
            | Self::BadBody { key, .. }
            | Self::WrongService { key, .. } => Some(key),
        }
    }
}

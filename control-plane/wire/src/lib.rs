//! What control plane and proxy say to each other: the messages, their typed contents, and their limits.
//!
//! [`proto`] holds the generated messages and, behind the features `client` and `server`, tonic's stubs. [`Resource`] is
//! what an update carries once it is understood; nothing above this crate parses a body or names a version itself.

pub mod limits;
pub mod resource;

pub use limits::{MAX_MESSAGE, MAX_RESOURCE};
pub use resource::{DecodeError, EncodeError, Resource, ResourceKey, ResourceKind, version_of};

/// Messages and stubs generated from `proto/equerry.proto`.
pub mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::disallowed_types,
        reason = "generated: the comments are those of the .proto file"
    )]
    include!(concat!(env!("OUT_DIR"), "/equerry.v1.rs"));
}

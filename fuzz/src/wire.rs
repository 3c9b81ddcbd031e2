//! What the wire must bear: messages of a proxy or a control plane that is broken, or is none.
//!
//! Bodies of fuzz targets, shared with the tests that replay their corpora.

use equerry_wire::{Resource, proto, version_of};
use prost::Message as _;

/// Bytes as messages: whatever is understood is written and understood the same again.
pub fn wire_message(bytes: &[u8]) {
    if let Ok(message) = proto::FromProxy::decode(bytes) {
        assert_eq!(proto::FromProxy::decode(&*message.encode_to_vec()).as_ref(), Ok(&message));
    }
    if let Ok(message) = proto::ToProxy::decode(bytes) {
        assert_eq!(proto::ToProxy::decode(&*message.encode_to_vec()).as_ref(), Ok(&message));
        for resource in &message.resources {
            understood(resource);
        }
    }
}

/// A resource: `TYPE NAME`, a line feed, and its body; its version is made right, or nothing behind it would be reached.
pub fn wire_resource(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (Ok(head), body) = (std::str::from_utf8(&bytes[..end]), &bytes[end + 1..]) else { return };
    let (kind, name) = head.split_once(' ').unwrap_or((head, ""));
    let (version, body) = (version_of(body), body.to_vec());
    understood(&proto::Resource { r#type: kind.into(), name: name.into(), version, body });
}

fn understood(message: &proto::Resource) {
    if let Ok(resource) = Resource::decode(message)
        && let Ok(again) = resource.encode()
    {
        assert_eq!(Resource::decode(&again).as_ref(), Ok(&resource));
    }
}

//! Golden bytes, hostile bytes, and bytes of another version.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use equerry_policies::names::{InstanceId, ServiceName};
use equerry_policies::view::{EndpointAddress, EndpointView, EndpointsView};
use equerry_wire::proto::{self, from_proxy::Message as FromProxy};
use equerry_wire::{DecodeError, EncodeError, MAX_RESOURCE, Resource, ResourceKey, ResourceKind, version_of};
use prost::Message as _;

/// The body of the golden resource, as every version since the first writes and reads it.
const BODY: &str = r#"{"service":"shop/orders","endpoints":[{"instance":"orders-1","address":{"mesh":"10.0.0.1:15006"}},{"instance":"static-10.0.0.9","address":{"plain":[[80,"10.0.0.9:8080"]]}}]}"#;

fn service(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

fn endpoints() -> Resource {
    let endpoint = |id: &str, address| EndpointView {
        instance: InstanceId::parse(id).unwrap(),
        address,
        weight: 1,
        open: Vec::new(),
    };
    Resource::Endpoints(Box::new(EndpointsView {
        service: service("shop/orders"),
        endpoints: vec![
            endpoint("orders-1", EndpointAddress::Mesh("10.0.0.1:15006".parse().unwrap())),
            endpoint("static-10.0.0.9", EndpointAddress::Plain(vec![(80, "10.0.0.9:8080".parse().unwrap())])),
        ],
        unwell: Vec::new(),
    }))
}

fn resource(kind: &str, name: &str, body: &str) -> proto::Resource {
    proto::Resource { r#type: kind.into(), name: name.into(), version: version_of(body.as_bytes()), body: body.into() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_same_view_is_the_same_bytes_as_ever() {
    let message = endpoints().encode().unwrap();
    assert_eq!(String::from_utf8(message.body.clone()).unwrap(), BODY);
    assert_eq!((message.r#type.as_str(), message.name.as_str()), ("endpoints", "shop/orders"));
    assert_eq!(message.version, "6e990bf817e1922b2c38e364345927eb");
    assert_eq!(Resource::decode(&message), Ok(endpoints()));
}

#[test]
fn an_update_is_the_same_bytes_as_ever() {
    let name = ResourceKey::Destination(service("shop/old")).to_proto();
    let update = proto::ToProxy {
        to_epoch: 300,
        nonce: 7,
        resources: vec![resource("endpoints", "shop/orders", "{}")],
        removed: vec![name],
        unknown: vec![proto::Unknown {
            r#type: "destination".into(),
            name: "shop/inventry".into(),
            nearest: "shop/inventory".into(),
        }],
        trust: None,
    };
    let golden = concat!(
        "08ac0210071a3e0a09656e64706f696e7473120b73686f702f6f72646572731a2034343133366661333535623336373861313134366164",
        "3136663765383634396522027b7d22170a0b64657374696e6174696f6e120873686f702f6f6c642a2c0a0b64657374696e6174696f6e12",
        "0d73686f702f696e76656e7472791a0e73686f702f696e76656e746f7279",
    );
    assert_eq!(hex(&update.encode_to_vec()), golden);
    assert_eq!(proto::ToProxy::decode(update.encode_to_vec().as_slice()), Ok(update));
}

#[test]
fn a_lease_with_many_labels_is_the_same_bytes_whatever_the_order() {
    let lease = |labels: [(&str, &str); 3]| proto::LeaseRequest {
        instance_id: "orders-1".into(),
        generation: 1,
        labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        ..Default::default()
    };
    let one = lease([("app", "orders"), ("zone", "a"), ("version", "v1")]);
    let other = lease([("version", "v1"), ("app", "orders"), ("zone", "a")]);
    assert_eq!(one.encode_to_vec(), other.encode_to_vec());
}

#[test]
fn what_a_newer_version_adds_is_passed_over() {
    let newer = BODY.replacen('{', r#"{"weightsByZone":{"a":[1,2]},"#, 1);
    assert_eq!(Resource::decode(&resource("endpoints", "shop/orders", &newer)), Ok(endpoints()));
    let mut bytes = endpoints().encode().unwrap().encode_to_vec();
    bytes.extend([0xaa, 0x06, 0x03, b'n', b'e', b'w']);
    assert_eq!(Resource::decode(&proto::Resource::decode(bytes.as_slice()).unwrap()), Ok(endpoints()));
}

#[test]
fn a_type_of_a_newer_version_is_refused_by_name() {
    let told = Resource::decode(&resource("tap", "shop/orders", "{}")).unwrap_err();
    assert_eq!(told, DecodeError::UnknownType { found: "tap".into() });
    assert!(told.to_string().contains("tap") && told.key().is_none());
}

#[test]
fn every_way_to_be_wrong_has_its_own_name() {
    let decode = |kind: &str, name: &str, body: &str| Resource::decode(&resource(kind, name, body)).unwrap_err();
    assert!(matches!(decode("workload", "other", "{}"), DecodeError::BadName { kind: ResourceKind::Workload, .. }));
    assert!(matches!(decode("endpoints", "orders", BODY), DecodeError::BadName { .. }));
    assert!(matches!(decode("endpoints", "shop/orders", "{"), DecodeError::BadBody { .. }));
    assert!(matches!(decode("destination", "shop/orders", BODY), DecodeError::BadBody { .. }));
    let other = decode("endpoints", "shop/web", BODY);
    assert_eq!(other.to_string(), "endpoints shop/web carries endpoints shop/orders");
    let mut damaged = endpoints().encode().unwrap();
    damaged.body[40] ^= 1;
    assert!(matches!(Resource::decode(&damaged), Err(DecodeError::WrongVersion { .. })));
    let deep = "[".repeat(100_000);
    assert!(matches!(decode("endpoints", "shop/orders", &deep), DecodeError::BadBody { .. }));
}

#[test]
fn a_strangers_text_is_cut_before_it_is_shown() {
    let told = Resource::decode(&resource(&"x".repeat(1 << 20), "self", "{}")).unwrap_err().to_string();
    assert!(told.len() < 200, "{}", told.len());
}

#[test]
fn too_large_is_refused_by_the_sender_and_by_the_receiver() {
    let endpoint = |i: u32| EndpointView {
        instance: InstanceId::parse(&format!("orders-{i}-{}", "x".repeat(50))).unwrap(),
        address: EndpointAddress::Mesh("10.0.0.1:15006".parse().unwrap()),
        weight: 1,
        open: Vec::new(),
    };
    let view = EndpointsView {
        service: service("shop/orders"),
        endpoints: (0..100_000).map(endpoint).collect(),
        unwell: Vec::new(),
    };
    assert!(matches!(Resource::Endpoints(Box::new(view)).encode(), Err(EncodeError::TooLarge { .. })));
    let body = " ".repeat(MAX_RESOURCE + 1);
    assert!(matches!(
        Resource::decode(&resource("endpoints", "shop/orders", &body)),
        Err(DecodeError::TooLarge { .. })
    ));
}

#[test]
fn bytes_cut_or_changed_anywhere_never_panic() {
    let update =
        proto::ToProxy { to_epoch: 1, nonce: 1, resources: vec![endpoints().encode().unwrap()], ..Default::default() };
    let whole = update.encode_to_vec();
    let mut understood = 0;
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x55;
        for bytes in [&whole[..at], changed.as_slice()] {
            let Ok(message) = proto::ToProxy::decode(bytes) else { continue };
            understood += message.resources.iter().filter(|r| Resource::decode(r).is_ok()).count();
        }
    }
    // Only the numbers beside the resource may change without its being noticed.
    assert!(understood < 8, "{understood} changed updates passed as whole");
}

#[test]
fn what_is_said_of_trust_is_the_same_bytes_as_ever() {
    let trust = proto::Trust {
        generation: 3,
        roots_der: vec![vec![0x30, 0x00]],
        revoked: vec!["spiffe://a/ns/b/sa/c".into()],
        signing_root: "ab".into(),
        renew_within_ms: 1000,
    };
    let update = proto::ToProxy { to_epoch: 1, nonce: 2, trust: Some(trust), ..Default::default() };
    let golden = "0801100232230803120230001a147370696666653a2f2f612f6e732f622f73612f632202616228e807";
    assert_eq!(hex(&update.encode_to_vec()), golden);
    let standing =
        proto::Standing { trust_generation: 3, leaf_serial: "4f".into(), root: "ab".into(), leaf_not_after_unix: 9 };
    let told = proto::FromProxy { message: Some(FromProxy::Standing(standing)) };
    assert_eq!(hex(&told.encode_to_vec()), "2a0c080312023466 1a026162 2009".replace(' ', ""));
    assert_eq!(proto::FromProxy::decode(told.encode_to_vec().as_slice()), Ok(told));
}

#[test]
fn hello_and_nack_of_a_proxy_are_read_back() {
    let hello = proto::FromProxy {
        message: Some(FromProxy::Hello(proto::Hello {
            instance_id: "orders-1".into(),
            version: "0.1.0".into(),
            epoch: 3,
            held: vec![proto::Held { r#type: "workload".into(), name: "self".into(), version: "00".into() }],
        })),
    };
    assert_eq!(proto::FromProxy::decode(hello.encode_to_vec().as_slice()), Ok(hello));
    let empty = proto::FromProxy::decode([].as_slice()).unwrap();
    assert_eq!(empty.message, None, "an empty message is no panic but nothing said");
}

#[test]
fn keys_are_read_back_as_they_were_written() {
    for key in [ResourceKey::Workload, ResourceKey::Destination(service("a/b")), ResourceKey::Endpoints(service("a/b"))]
    {
        assert_eq!(ResourceKey::try_from(&key.to_proto()), Ok(key));
    }
}

/// A workload as the first version wrote it, every part of authorization that it knew included.
const WORKLOAD: &str = r#"{"mesh":{"trustDomain":null,"mtls":"STRICT","authorizationDefault":"ALLOW","errorDetail":"reason","outboundTraffic":"REGISTRY_ONLY","origin":{"line":0}},"services":[],"peer":"STRICT","peerPorts":[],"tokens":[],"authorization":[{"ports":null,"policy":{"name":"shop/a","target":"namespace","action":"ALLOW","rules":[{"from":[{"principals":["present"],"namespaces":[{"exact":"shop"}],"requestPrincipals":[],"ipBlocks":[["10.0.0.0",8]]}],"to":[{"hosts":[],"methods":[{"exact":"GET"}],"paths":[{"prefix":"/a"}],"ports":[80]}],"when":[{"claim":["role"],"values":[{"suffix":"min"}]}],"origin":{"line":3}}],"origin":{"line":1}}}],"tenants":[]}"#;

#[test]
fn a_workload_of_the_first_version_is_read_and_written_in_its_own_bytes() {
    let decoded = Resource::decode(&resource("workload", "self", WORKLOAD)).unwrap();
    let Resource::Workload(view) = &decoded else { panic!("{decoded:?}") };
    assert_eq!(view.authorization[0].policy.rules[0].when.len(), 1);
    let again = decoded.encode().unwrap();
    assert_eq!(String::from_utf8(again.body).unwrap(), WORKLOAD, "what it can enforce it can read");
}

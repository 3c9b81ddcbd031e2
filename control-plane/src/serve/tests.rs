//! Real TLS on loopback, a real store, sidecars as tonic clients: what each of them sees.

use std::time::Instant;

use equerry_certs::tls::pinned_client_config;
use equerry_policies::document::{Kind, read};
use equerry_policies::names::{ServiceName, TenantName};
use equerry_wire::proto::config_client::ConfigClient;
use equerry_wire::proto::from_proxy::Message;
use equerry_wire::proto::identity_client::IdentityClient;
use equerry_wire::proto::quota_client::QuotaClient;
use equerry_wire::proto::registry_client::RegistryClient;
use equerry_wire::{Resource, ResourceKey, proto};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::harness::{PATIENCE, house, house_in};
use super::*;
use crate::control::{ApplyError, ApplyOptions, EpochState};
use crate::registry::InstanceKey;
use crate::store::unix_ms;

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080}]}
";
const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: inventory, port: 80}]}]
";
const TENANT: &str = "
apiVersion: equerry.dev/v1
kind: Tenant
metadata: {name: acme}
spec:
  match: [{header: {name: x-tenant, value: acme, trustedFrom: [shop/frontend]}}]
  quotas: [{services: [shop/inventory], requests: 100, window: 1h}]
";

fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).unwrap()
}

fn names(update: &proto::ToProxy) -> Vec<String> {
    update.resources.iter().map(|resource| format!("{} {}", resource.r#type, resource.name)).collect()
}

fn destination(name: &str) -> ResourceKey {
    ResourceKey::Destination(service(name))
}

fn endpoints(name: &str) -> ResourceKey {
    ResourceKey::Endpoints(service(name))
}

fn addresses(update: &proto::ToProxy) -> usize {
    let Resource::Endpoints(view) = Resource::decode(&update.resources[0]).unwrap() else {
        panic!("no endpoints: {update:?}")
    };
    view.endpoints.len()
}

#[tokio::test]
async fn a_stranger_without_a_certificate_may_only_sign() {
    let house = house().await;
    let stranger = house.channel(pinned_client_config(&house.control.authority().pin()).unwrap());
    let hello = proto::FromProxy { message: Some(Message::Hello(proto::Hello::default())) };
    let refused = ConfigClient::new(stranger.clone()).subscribe(tokio_stream::once(hello)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("only Sign may be called without one"), "{refused}");
    let refused = RegistryClient::new(stranger.clone()).lease(proto::LeaseRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused =
        QuotaClient::new(stranger.clone()).slices(tokio_stream::once(proto::SliceReport::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let csr_der = equerry_certs::Request::new().unwrap().csr_der;
    let asked =
        proto::SignRequest { csr_der, join_token: "nobody.nothing".into(), now_unix_ms: unix_ms(SystemTime::now()) };
    let refused = IdentityClient::new(stranger).sign(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "Sign itself judges the token: {refused}");
}

#[tokio::test]
async fn a_sidecar_is_told_what_it_uses_and_every_epoch_once() {
    let house = house().await;
    house.apply(SHOP).await;
    let orders = house.join("shop/orders").await;
    assert_eq!(orders.lease("orders-1").await, ["shop/orders"]);
    let mut talk = orders.subscribe("orders-1", Vec::new()).await;
    talk.interest(&[ResourceKey::Workload, destination("shop/orders"), endpoints("shop/orders")], &[]).await;
    let first = talk.accept().await;
    assert_eq!(first.to_epoch, 1);
    assert_eq!(names(&first), ["workload self", "destination shop/orders", "endpoints shop/orders"]);

    let epoch = house.apply(ROUTE).await;
    let second = talk.hear().await;
    assert_eq!(
        (second.to_epoch, names(&second)),
        (
            epoch,
            vec![
                "destination shop/inventory".into(),
                "destination shop/orders".into(),
                "endpoints shop/inventory".into()
            ]
        ),
        "the new backend comes unasked"
    );
    assert_eq!(house.state(epoch), [EpochState::Pending]);
    talk.say(Message::Ack(proto::Ack { nonce: second.nonce })).await;
    house.until("the acknowledgement", |control| control.epoch_status(epoch).unwrap().complete).await;

    let epoch = house
        .apply("{apiVersion: v1, kind: Service, metadata: {name: other, namespace: bank}, spec: {ports: [{port: 1}]}}")
        .await;
    let third = talk.accept().await;
    assert_eq!(
        (third.to_epoch, third.resources.len()),
        (epoch, 0),
        "an epoch that does not concern it is empty, and told all the same"
    );
    assert_eq!(house.apply(SHOP).await, epoch, "what says what it said makes no epoch");
}

#[tokio::test]
async fn endpoints_come_and_go_within_an_epoch() {
    let house = house().await;
    let epoch = house.apply(SHOP).await;
    let (orders, inventory) = (house.join("shop/orders").await, house.join("shop/inventory").await);
    orders.lease("orders-1").await;
    let mut talk = orders.subscribe("orders-1", Vec::new()).await;
    talk.interest(&[endpoints("shop/inventory")], &[]).await;
    assert_eq!(addresses(&talk.accept().await), 0);
    inventory.lease("inventory-1").await;
    let came = talk.accept().await;
    assert_eq!((came.to_epoch, addresses(&came)), (epoch, 1));
    let sick = proto::LeaseRequest {
        healthy: false,
        health_detail: "503".into(),
        ..inventory.lease_request("inventory-1", 1)
    };
    RegistryClient::new(inventory.channel.clone()).lease(sick).await.unwrap();
    assert_eq!(addresses(&talk.accept().await), 0);
    inventory.lease("inventory-1").await;
    assert_eq!(addresses(&talk.accept().await), 1);
    let release = proto::ReleaseRequest { instance_id: "inventory-1".into(), generation: 1 };
    RegistryClient::new(inventory.channel.clone()).release(release).await.unwrap();
    assert_eq!(addresses(&talk.accept().await), 0);
}

#[tokio::test]
async fn an_unknown_name_is_answered_with_its_nearest_and_comes_when_it_exists() {
    let house = house().await;
    house.apply(SHOP).await;
    let orders = house.join("shop/orders").await;
    let mut talk = orders.subscribe("orders-1", Vec::new()).await;
    talk.interest(&[destination("shop/inventry")], &[]).await;
    let answer = talk.accept().await;
    assert_eq!(
        (answer.unknown[0].name.as_str(), answer.unknown[0].nearest.as_str()),
        ("shop/inventry", "shop/inventory")
    );
    house.apply(&SHOP.replace("name: inventory", "name: inventry")).await;
    assert_eq!(names(&talk.accept().await), ["destination shop/inventry", "endpoints shop/inventry"]);
    house.delete(Kind::Service, "inventry").await;
    let gone = talk.accept().await;
    assert_eq!(gone.removed[0].name, "shop/inventry");
    house.apply(&SHOP.replace("name: inventory", "name: inventry")).await;
    assert_eq!(
        names(&talk.accept().await),
        ["destination shop/inventry", "endpoints shop/inventry"],
        "and all of it comes again"
    );
}

#[tokio::test]
async fn who_holds_something_already_is_sent_only_the_difference() {
    let house = house().await;
    house.apply(SHOP).await;
    let orders = house.join("shop/orders").await;
    let wanted = [destination("shop/orders"), destination("shop/inventory")];
    let mut talk = orders.subscribe("orders-1", Vec::new()).await;
    talk.interest(&wanted, &[]).await;
    let first = talk.accept().await;
    let held = |resource: &proto::Resource| proto::Held {
        r#type: resource.r#type.clone(),
        name: resource.name.clone(),
        version: resource.version.clone(),
    };
    let held: Vec<proto::Held> = first.resources.iter().map(held).collect();
    drop(talk);
    let epoch = house.apply(SHOP.replace("targetPort: 8080", "targetPort: 9090").split("---").next().unwrap()).await;
    let mut talk = orders.subscribe("orders-1", held).await;
    talk.interest(&wanted, &[]).await;
    let second = talk.accept().await;
    assert_eq!((second.to_epoch, names(&second)), (epoch, vec!["destination shop/orders".to_owned()]));
}

#[tokio::test]
async fn its_own_policy_is_told_only_once_its_labels_are_known() {
    let house = house().await;
    house.apply(SHOP).await;
    let orders = house.join("shop/orders").await;
    let mut talk = orders.subscribe("orders-1", Vec::new()).await;
    talk.interest(&[ResourceKey::Workload], &[]).await;
    assert!(talk.accept().await.resources.is_empty(), "without labels a policy that selects it would be left out");
    orders.lease("orders-1").await;
    assert_eq!(names(&talk.accept().await), ["workload self"]);
}

#[tokio::test]
async fn a_refusal_names_the_proxy_and_its_complaint() {
    let house = house().await;
    let orders = house.join("shop/orders").await;
    orders.lease("orders-1").await;
    let mut talk = orders.subscribe("orders-1", Vec::new()).await;
    talk.interest(&[destination("shop/orders")], &[]).await;
    talk.accept().await;
    let epoch = house.apply(SHOP).await;
    let update = talk.hear().await;
    let complaint =
        proto::Complaint { r#type: "destination".into(), name: "shop/orders".into(), message: "too new for me".into() };
    talk.say(Message::Nack(proto::Nack { nonce: update.nonce, complaints: vec![complaint] })).await;
    house
        .until("the refusal", |control| control.epoch_status(epoch).unwrap().proxies[0].state == EpochState::Nacked)
        .await;
    let status = house.control.epoch_status(epoch).unwrap();
    assert_eq!(status.proxies[0].complaints, ["destination shop/orders: too new for me"]);
    assert!(!status.complete);
    talk.say(Message::Ack(proto::Ack { nonce: 99 })).await;
    assert_eq!(talk.end().await.code(), Code::InvalidArgument, "an answer to nothing ends the stream");
    house.until("the end", |control| !control.proxies()[0].connected).await;
    assert_eq!(house.state(epoch), [EpochState::Away]);
}

#[tokio::test]
async fn a_newer_stream_of_an_instance_ends_the_older() {
    let house = house().await;
    let orders = house.join("shop/orders").await;
    let mut older = orders.subscribe("orders-1", Vec::new()).await;
    older.accept().await;
    let mut newer = orders.subscribe("orders-1", Vec::new()).await;
    newer.accept().await;
    house.apply(SHOP).await;
    newer.accept().await;
    assert_eq!(older.end().await.code(), Code::Aborted);
    house.control.stop();
    assert_eq!(newer.end().await.code(), Code::Unavailable, "who stays behind is told when the control plane stops");
}

#[tokio::test]
async fn a_service_that_does_not_list_the_account_is_named() {
    let house = house().await;
    house.apply(SHOP).await;
    let thief = house.join("shop/thief").await;
    let labels = [("app".to_owned(), "inventory".to_owned())].into_iter().collect();
    let request = proto::LeaseRequest { labels, ..thief.lease_request("thief-1", 1) };
    let refused = RegistryClient::new(thief.channel.clone()).lease(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("shop/inventory") && refused.message().contains("shop/thief"), "{refused}");
    assert!(house.control.instances().is_empty());
    thief.lease("thief-1").await;
    let labels = [("app".to_owned(), "inventory".to_owned())].into_iter().collect();
    let disguised = proto::LeaseRequest { labels, ..thief.lease_request("thief-1", 1) };
    let refused = RegistryClient::new(thief.channel.clone()).lease(disguised).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "nor by changing its labels afterwards: {refused}");
}

#[tokio::test]
async fn a_lease_that_cannot_be_is_refused_saying_why() {
    let house = house().await;
    let orders = house.join("shop/orders").await;
    let refuse = async |request: proto::LeaseRequest| {
        RegistryClient::new(orders.channel.clone()).lease(request).await.unwrap_err().message().to_owned()
    };
    let good = || orders.lease_request("orders-1", 5);
    let heavy = [("equerry.dev/weight".to_owned(), "heavy".to_owned())].into();
    let an_hour_off = unix_ms(SystemTime::now() - Duration::from_secs(3600));
    for (request, words) in [
        (proto::LeaseRequest { inbound: "0.0.0.0:15006".into(), ..good() }, "--advertise"),
        (proto::LeaseRequest { inbound: "here".into(), ..good() }, "expected IP:PORT"),
        (proto::LeaseRequest { ports: vec![70_000], ..good() }, "expected 1 to 65535"),
        (proto::LeaseRequest { labels: heavy, ..good() }, "equerry.dev/weight: found \"heavy\""),
        (proto::LeaseRequest { instance_id: "No Name".into(), ..good() }, "instance id"),
        (proto::LeaseRequest { now_unix_ms: an_hour_off, ..good() }, "clock"),
    ] {
        let message = refuse(request).await;
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
    RegistryClient::new(orders.channel.clone()).lease(good()).await.unwrap();
    let message = refuse(orders.lease_request("orders-1", 4)).await;
    assert!(message.contains("generation 5, found 4"), "{message}");
    let thief = house.join("shop/thief").await;
    let refused =
        RegistryClient::new(thief.channel.clone()).lease(thief.lease_request("orders-1", 9)).await.unwrap_err();
    assert!(refused.message().contains("held by account shop/orders"), "{refused}");
    let release = proto::ReleaseRequest { instance_id: "orders-1".into(), generation: 5 };
    assert_eq!(
        RegistryClient::new(thief.channel.clone()).release(release).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn what_was_registered_and_applied_is_there_after_a_crash() {
    let house = house().await;
    let epoch = house.apply(SHOP).await;
    let orders = house.join("shop/orders").await;
    orders.lease("orders-1").await;
    let version = house.control.documents(&Default::default())[0].version.clone();
    // Nothing is closed or flushed: a second control plane opens what the first has acknowledged.
    let again = house_in(house.dir, None).await;
    assert_eq!(again.control.epoch(), epoch);
    assert_eq!(again.control.documents(&Default::default())[0].version, version);
    assert_eq!(again.control.service(&service("shop/orders")).unwrap().members[0].registration.id.as_str(), "orders-1");
    let status = again.control.epoch_status(epoch).unwrap();
    assert_eq!(status.proxies[0].state, EpochState::Away, "registered, and not connected yet");
}

#[tokio::test]
async fn a_full_store_refuses_an_apply_whole() {
    let house = house_in(tempfile::tempdir().unwrap(), Some(60)).await;
    let epoch = house.apply(SHOP).await;
    let one = |i: usize| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{i}, namespace: bulk, labels: {{x: {}}}}}, spec: {{ports: [{{port: 1}}]}}}}",
            "y".repeat(63)
        )
    };
    let many: Vec<String> = (0..2_000).map(one).collect();
    let documents = read("many.yaml", &many.join("\n---\n")).unwrap();
    let refused = house.control.apply(documents, ApplyOptions::default()).await.unwrap_err();
    assert!(matches!(refused, ApplyError::Full), "{refused}");
    assert_eq!((house.control.epoch(), house.control.documents(&Default::default()).len()), (epoch, 2));
    assert_eq!(house.apply(ROUTE).await, epoch + 1, "it goes on");
}

#[tokio::test]
async fn slices_are_granted_over_the_stream_and_never_more_than_the_quota() {
    let house = house().await;
    house.apply(SHOP).await;
    house.apply(TENANT).await;
    let inventory = house.join("shop/inventory").await;
    inventory.lease("inventory-1").await;
    let mut followed = None;
    house.control.settle_quotas(&mut followed).await;
    let (reports, stream) = mpsc::channel(16);
    let mut report =
        proto::SliceReport { instance_id: "inventory-1".into(), quota: "acme/0".into(), ..Default::default() };
    reports.send(report.clone()).await.unwrap();
    let mut grants =
        QuotaClient::new(inventory.channel.clone()).slices(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let mut told = grants.message().await.unwrap().unwrap();
    assert_eq!(
        (told.granted, told.window),
        (50, told.server_unix_ms / 3_600_000),
        "the first slice is half, for one sidecar"
    );
    while !told.exhausted {
        report = proto::SliceReport {
            window: told.window,
            granted: told.granted,
            spent: told.granted,
            wants_more: true,
            ..report
        };
        reports.send(report.clone()).await.unwrap();
        told = tokio::time::timeout(PATIENCE, grants.message()).await.unwrap().unwrap().unwrap();
        assert!(told.granted <= 100);
    }
    assert_eq!(told.granted, 100);
    let usage = house.control.tenant_usage(&TenantName::parse("acme").unwrap()).unwrap();
    assert_eq!(usage.quotas[0].granted, 100);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = listen("--grpc", address).await.unwrap_err().to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("--grpc") && error.contains("another program"),
        "{error}"
    );
}

#[tokio::test]
async fn an_instance_that_registers_anew_while_it_expires_is_not_forgotten() {
    let house = house().await;
    let orders = house.join("shop/orders").await;
    orders.lease("orders-1").await;
    let key = InstanceKey { namespace: "shop".parse().unwrap(), id: "orders-1".parse().unwrap() };
    let expiring = house.control.expire_leases(Instant::now() + Duration::from_secs(60));
    let (_, services) = tokio::join!(expiring, orders.lease("orders-1"));
    drop(services);
    assert!(house.control.instance(&key).is_some());
    let again = house_in(house.dir, None).await;
    assert!(again.control.instance(&key).is_some());
}

#[test]
fn a_handshake_that_fails_for_another_control_planes_root_says_what_to_look_at() {
    let alert = rustls::Error::AlertReceived(AlertDescription::CertificateUnknown);
    let said = why_not(&io::Error::new(io::ErrorKind::InvalidData, alert));
    assert!(said.contains("ca.pem") && said.contains("--advertise"), "{said}");
    assert_eq!(why_not(&io::Error::other("the line is dead")), "the line is dead");
}

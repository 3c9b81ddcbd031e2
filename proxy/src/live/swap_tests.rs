//! Services that stand for names outside the mesh, between what the control plane says and what the DNS says.

use std::net::IpAddr;

use equerry_policies::policy::{AppProtocol, ServicePort};
use equerry_policies::view::EndpointsView;

use super::*;

fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).unwrap()
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn found(says: &[(&str, &[&str])]) -> Found {
    let addresses = |all: &[&str]| all.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect();
    says.iter().map(|(name, all)| (host(name), addresses(all))).collect()
}

fn swap() -> Swap {
    let own = SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/frontend").unwrap();
    Swap::new(own, OwnDoors::new(["127.0.0.1:15000".parse().unwrap()]))
}

/// `shop/payments`, which stands for `name` on port `to`.
fn payments(swap: &mut Swap, name: &str, to: u16) {
    let ports =
        vec![ServicePort { name: None, port: 80, target_port: to, app_protocol: AppProtocol::Http, undeclared: false }];
    let view =
        DestinationView { external: Some(host(name)), ..DestinationView::plain(service("shop/payments"), ports) };
    let endpoints = EndpointsView { service: service("shop/payments"), endpoints: Vec::new(), unwell: Vec::new() };
    let resources = [Resource::Destination(Box::new(view)), Resource::Endpoints(Box::new(endpoints))];
    let resources = resources.map(|resource| resource.encode().unwrap()).into();
    assert_eq!(swap.take(proto::ToProxy { to_epoch: 1, nonce: 1, resources, ..Default::default() }), []);
}

/// Where it leads, when it may be called.
fn leads_to(swap: &mut Swap) -> Option<Vec<String>> {
    let live = swap.next(Instant::now());
    let endpoints = &live.destination(&service("shop/payments"))?.backend.endpoints;
    let shown = |endpoint: &Endpoint| match &endpoint.address {
        EndpointAddress::Plain(ports) => format!("{} {ports:?}", endpoint.instance),
        EndpointAddress::Mesh(address) => format!("mutual TLS to {address}"),
    };
    Some(endpoints.iter().map(shown).collect())
}

#[test]
fn a_service_outside_may_be_called_when_the_dns_was_asked_and_goes_where_it_says() {
    let mut swap = swap();
    payments(&mut swap, "pay.example.com", 8080);
    assert_eq!(leads_to(&mut swap), None, "the first request waits for the DNS");
    assert_eq!(swap.names(), BTreeSet::from([host("pay.example.com")]));
    assert!(swap.settled(), "the control plane does not wait for the DNS");

    swap.set_found(found(&[("pay.example.com", &["192.0.2.1", "192.0.2.2"])]));
    let both = ["dns-192.0.2.1 [(80, 192.0.2.1:8080)]", "dns-192.0.2.2 [(80, 192.0.2.2:8080)]"].map(str::to_owned);
    assert_eq!(leads_to(&mut swap), Some(both.to_vec()));
    let state = |swap: &mut Swap, at: usize| {
        Arc::clone(&swap.next(Instant::now()).destinations[&service("shop/payments")].backend.endpoints[at].state)
    };
    let before = state(&mut swap, 1);
    swap.set_found(found(&[("pay.example.com", &["192.0.2.2"])]));
    assert!(Arc::ptr_eq(&before, &state(&mut swap, 0)), "what was seen of an address stays with it");

    swap.set_found(found(&[("pay.example.com", &[])]));
    assert_eq!(leads_to(&mut swap), Some(vec![]), "nobody is there, and nobody waits for more");
}

#[test]
fn a_service_that_stands_for_another_name_moves_there_once_the_dns_was_asked_for_it() {
    let mut swap = swap();
    payments(&mut swap, "old.example.com", 80);
    swap.set_found(found(&[("old.example.com", &["192.0.2.1"])]));
    let old = leads_to(&mut swap);
    payments(&mut swap, "new.example.com", 80);
    assert_eq!(leads_to(&mut swap), old, "the old one stays in force");
    assert_eq!(swap.names(), BTreeSet::from([host("new.example.com"), host("old.example.com")]));
    assert!(!swap.settled());

    swap.set_found(found(&[("old.example.com", &["192.0.2.1"]), ("new.example.com", &["192.0.2.9"])]));
    assert_eq!(leads_to(&mut swap), Some(vec!["dns-192.0.2.9 [(80, 192.0.2.9:80)]".to_owned()]));
    assert!(swap.settled());
    assert_eq!(swap.names(), BTreeSet::from([host("new.example.com")]), "nobody asks for the old one any more");
}

#[test]
fn after_a_restart_the_first_request_waits_for_the_dns_again() {
    let mut before = swap();
    payments(&mut before, "pay.example.com", 80);
    let mut swap = swap();
    assert_eq!(swap.restore(before.saved(Vec::new())), []);
    assert_eq!((leads_to(&mut swap), swap.names().len()), (None, 1));
    swap.set_found(found(&[("pay.example.com", &["192.0.2.1"])]));
    assert_eq!(leads_to(&mut swap).map(|all| all.len()), Some(1));
}

#[test]
fn no_service_leads_to_the_sidecars_own_listeners() {
    let mut swap = swap();
    swap.set_found(found(&[("pay.example.com", &["127.0.0.1", "192.0.2.1"])]));
    payments(&mut swap, "pay.example.com", 15000);
    assert_eq!(leads_to(&mut swap), Some(vec!["dns-192.0.2.1 [(80, 192.0.2.1:15000)]".to_owned()]));
    payments(&mut swap, "pay.example.com", 8080);
    assert_eq!(leads_to(&mut swap).map(|all| all.len()), Some(2), "on other ports this machine may be meant");
}

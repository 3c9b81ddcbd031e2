//! Which routes of a Service hold for callers of one namespace, and which Services they can send to.

use std::collections::BTreeSet;

use crate::names::{Namespace, ServiceName};
use crate::policy::{HttpRoute, Meaning, RouteFilter, Service, TcpRoute};

/// Every Service that a route can send to, copies included.
pub(super) fn receivers(route: &HttpRoute) -> impl Iterator<Item = &ServiceName> {
    route.rules.iter().flat_map(|rule| {
        let filters = rule.filters.iter().chain(rule.backends.iter().flat_map(|to| &to.filters));
        let copies = filters.filter_map(|filter| match filter {
            RouteFilter::Mirror(mirror) => Some(&mirror.service),
            _ => None,
        });
        rule.backends.iter().map(|to| &to.service).chain(copies)
    })
}

/// The namespaces from which a Service looks different from what other callers see: its own, and those with a route of
/// their own to it.
pub fn callers<'m>(meaning: &'m Meaning, service: &'m ServiceName) -> BTreeSet<&'m Namespace> {
    let http = meaning.routes.values().chain(meaning.grpc_routes.values()).map(|r| (&r.name, &r.parents));
    let all = http.chain(meaning.tcp_routes.values().map(|r| (&r.name, &r.parents)));
    let to_it = all.filter(|(_, parents)| parents.iter().any(|(parent, _)| parent == service));
    to_it.map(|(name, _)| &name.namespace).chain([&service.namespace]).collect()
}

/// A route's parents: Services, each with the one port that is meant, if one is.
type Parents = [(ServiceName, Option<u16>)];

/// The routes of a Service that hold for callers of one namespace, by name, their parents cut to this Service. A route in
/// the Service's namespace holds for everybody (producer); one in the caller's own namespace (consumer) takes its place on
/// the ports it is attached to, whatever kind of route either is.
pub(super) struct Held<'a> {
    meaning: &'a Meaning,
    service: &'a Service,
    caller: &'a Namespace,
    consumed: BTreeSet<u16>,
}

impl<'a> Held<'a> {
    pub(super) fn new(meaning: &'a Meaning, service: &'a Service, caller: &'a Namespace) -> Self {
        let mut held = Self { meaning, service, caller, consumed: BTreeSet::new() };
        if *caller != service.name.namespace {
            let http = meaning.routes.values().chain(meaning.grpc_routes.values()).map(|r| (&r.name, &r.parents));
            let all = http.chain(meaning.tcp_routes.values().map(|r| (&r.name, &r.parents)));
            let own = all.filter(|(name, _)| name.namespace == *caller);
            held.consumed = own.flat_map(|(_, parents)| held.attached(parents)).collect();
        }
        held
    }

    pub(super) fn http_routes(&self) -> Vec<HttpRoute> {
        let all = self.meaning.routes.values().chain(self.meaning.grpc_routes.values());
        all.filter_map(|r| Some(HttpRoute { parents: self.cut(&r.name.namespace, &r.parents)?, ..r.clone() })).collect()
    }

    pub(super) fn tcp_routes(&self) -> Vec<TcpRoute> {
        let all = self.meaning.tcp_routes.values();
        all.filter_map(|r| Some(TcpRoute { parents: self.cut(&r.name.namespace, &r.parents)?, ..r.clone() })).collect()
    }

    /// The ports of the Service that these parents mean.
    fn attached(&self, parents: &Parents) -> BTreeSet<u16> {
        let parents = parents.iter().filter(|(parent, _)| *parent == self.service.name);
        parents
            .flat_map(|(_, port)| {
                self.service.ports.iter().map(|p| p.port).filter(move |p| port.is_none_or(|own| own == *p))
            })
            .collect()
    }

    /// The parents of a route of `namespace`, where it holds; `None` where it does not.
    fn cut(&self, namespace: &Namespace, parents: &Parents) -> Option<Vec<(ServiceName, Option<u16>)>> {
        let name = &self.service.name;
        let consumer = *namespace != name.namespace;
        if consumer && namespace != self.caller {
            return None;
        }
        let holds = |port: &u16| consumer || !self.consumed.contains(port);
        let ports: Vec<u16> = self.attached(parents).into_iter().filter(holds).collect();
        let parents = if ports.len() == self.service.ports.len() {
            vec![(name.clone(), None)]
        } else {
            ports.into_iter().map(|port| (name.clone(), Some(port))).collect()
        };
        (!parents.is_empty()).then_some(parents)
    }
}

//! Which workloads a policy holds for: `selector` or `targetRefs`, or the scope of its namespace.

use super::World;
use super::at::At;
use crate::document::shape::Notes;
use crate::names::{Namespace, SYSTEM_NAMESPACE, ServiceName};
use crate::policy::{Labels, Target};

/// Reads the target of a policy's `spec`.
pub(super) fn target(
    spec: Option<&At<'_>>,
    namespace: &Namespace,
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<Target> {
    let wide = if namespace.as_str() == SYSTEM_NAMESPACE { Target::Mesh } else { Target::Namespace };
    let Some(spec) = spec else { return Some(wide) };
    if let (Some(selector), Some(_)) = (spec.get("selector"), spec.get("targetRefs")) {
        selector.complain_of(notes, "selector beside targetRefs", "one of the two");
    }
    if spec.get("targetRefs").is_some() {
        let named = services(spec, namespace, world, notes);
        for (service, at) in &named {
            world.enforcing(at, service, notes);
        }
        let services: Vec<ServiceName> = named.into_iter().map(|(service, _)| service).collect();
        return (!services.is_empty()).then_some(Target::Services(services));
    }
    let Some(selector) = spec.get("selector") else { return Some(wide) };
    let written = selector.map("matchLabels");
    if written.is_empty() {
        selector.complain_of(
            notes,
            "a selector without labels",
            "labels in matchLabels; without a selector it holds for all",
        );
    }
    let labels: Labels =
        written.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.text()?.to_owned()))).collect();
    Some(Target::Workloads(labels))
}

/// Reads `targetRefs`: Services of the policy's own namespace, each once, and where each is named.
pub(super) fn services<'d>(
    spec: &At<'d>,
    namespace: &Namespace,
    world: &World,
    notes: &mut Notes<'_>,
) -> Vec<(ServiceName, At<'d>)> {
    let mut services: Vec<(ServiceName, At<'d>)> = Vec::new();
    for reference in spec.list("targetRefs") {
        if let Some(elsewhere) = reference.get("namespace").filter(|n| n.text() != Some(namespace.as_str())) {
            elsewhere.unsupported(notes, &format!("a policy holds for Services of its own namespace, {namespace}"));
            continue;
        }
        let (Some(at), Some(name)) = (reference.get("name"), reference.parse("name")) else { continue };
        let service = ServiceName::new(namespace.clone(), name);
        if reference.text_of("kind") != Some("Service") {
            continue;
        }
        if services.iter().any(|(known, _)| *known == service) {
            at.complain(notes, "each Service once");
        } else if world.service(&at, &service, notes).is_some() {
            services.push((service, at));
        }
    }
    services
}

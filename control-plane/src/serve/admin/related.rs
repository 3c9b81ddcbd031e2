//! What is written about a Service: every document that names it, sends traffic to it, or holds for its members. Found in the
//! documents as they are kept, so that a new kind is told of without being known here.

use equerry_policies::document::{DocumentKey, Kind};
use equerry_policies::names::{Namespace, ServiceName};
use equerry_policies::policy::Service;
use serde_json::Value;

use super::shapes::RelatedReply;
use crate::control::Truth;

/// The namespace whose policies hold for the whole mesh when they select nothing.
const SYSTEM: &str = "equerry-system";

/// Every document that has to do with a Service, by kind, namespace and name.
pub(super) fn related(truth: &Truth, service: &ServiceName) -> Vec<RelatedReply> {
    let Some(meant) = truth.meaning.services.get(service) else { return Vec::new() };
    let all = truth.documents.iter().filter(|(key, _)| !matches!(key.kind, Kind::Service | Kind::Mesh));
    all.filter_map(|(key, stored)| {
        let how = how(key, stored.json(), meant)?;
        Some(RelatedReply {
            kind: key.kind.to_string(),
            namespace: key.namespace.as_ref().map(ToString::to_string),
            name: key.name.to_string(),
            how: how.to_owned(),
        })
    })
    .collect()
}

fn how(key: &DocumentKey, json: &Value, service: &Service) -> Option<&'static str> {
    let spec = &json["spec"];
    let home = key.namespace.as_ref();
    let refers = |list: &Value| list.as_array().into_iter().flatten().any(|one| is_service(one, home, &service.name));
    let counted = |quota: &Value| {
        quota["services"].as_array().into_iter().flatten().any(|name| name.as_str() == Some(&service.name.to_string()))
    };
    let slice = json.pointer("/metadata/labels/kubernetes.io~1service-name").and_then(Value::as_str);
    if refers(&spec["targetRefs"])
        || refers(&spec["parentRefs"])
        || spec["quotas"].as_array().into_iter().flatten().any(counted)
        || home == Some(&service.name.namespace) && slice == Some(service.name.name.as_str())
    {
        return Some("names");
    }
    if spec["rules"].as_array().into_iter().flatten().any(|rule| refers(&rule["backendRefs"])) {
        return Some("sends");
    }
    holds_for_workloads(key, spec, service)
}

/// Of policies about workloads: whether they hold for members of the Service, and by what.
fn holds_for_workloads(key: &DocumentKey, spec: &Value, service: &Service) -> Option<&'static str> {
    let scoped = matches!(key.kind, Kind::PeerAuthentication | Kind::RequestAuthentication | Kind::AuthorizationPolicy);
    let home = key.namespace.as_ref().filter(|_| scoped && spec["targetRefs"].is_null())?;
    let labels = spec.pointer("/selector/matchLabels").and_then(Value::as_object).filter(|labels| !labels.is_empty());
    match labels {
        Some(labels) => {
            let carried =
                labels.iter().all(|(key, value)| service.selector.get(key).map(String::as_str) == value.as_str());
            (carried && *home == service.name.namespace && !service.selector.is_empty()).then_some("selects")
        }
        None if home.as_str() == SYSTEM => Some("mesh"),
        None => (*home == service.name.namespace).then_some("namespace"),
    }
}

/// Whether a reference is to this Service.
fn is_service(reference: &Value, home: Option<&Namespace>, service: &ServiceName) -> bool {
    let namespace = reference["namespace"].as_str().or(home.map(Namespace::as_str));
    reference["kind"].as_str().unwrap_or("Service") == "Service"
        && reference["name"].as_str() == Some(service.name.as_str())
        && namespace == Some(service.namespace.as_str())
}

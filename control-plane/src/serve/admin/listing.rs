//! Documents in lists: of every kind, of one namespace, of the kinds without; by page, or watched.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use equerry_policies::document::DocumentKey;
use equerry_policies::names::Namespace;
use http::{HeaderMap, StatusCode};

use super::documents::{kind_of, may, namespace_of};
use super::page::page;
use super::params::{Listing, Params};
use super::problem::PROBLEM_JSON;
use super::shapes::{DocumentList, FieldError, Problem};
use super::watch::{self, Item, Told};
use crate::access::{Actor, Permission};
use crate::control::{ControlPlane, DocumentFilter, StoredDocument, Truth};

/// List documents, or watch them.
#[utoipa::path(get, path = "/api/v1/documents", tag = "documents",
    params(Listing, ("kind" = Option<String>, Query, description = "Only this kind, in any spelling"),
        ("resumeAfter" = Option<u64>, Query, description = "Of a watch: only what changed since this epoch"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same, as browsers say it")),
    responses((status = 200, content((DocumentList = "application/json"), (String = "text/event-stream"))),
        (status = 410, body = Problem, content_type = PROBLEM_JSON, description = "It is not known any more what changed since then")))]
pub(super) async fn list(
    State(control): State<ControlPlane>,
    actor: Actor,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let kind = params.text("kind").map(|kind| kind_of(&kind)).transpose()?;
    let filter = DocumentFilter { kind, ..DocumentFilter::default() };
    answer(&control, actor, params, &headers, filter)
}

/// List the documents of one kind in one namespace, or watch them.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/{kind}", tag = "documents",
    params(("namespace" = String, Path,), ("kind" = String, Path, description = "In any spelling: HTTPRoute, httproutes"), Listing,
        ("resumeAfter" = Option<u64>, Query, description = "Of a watch: only what changed since this epoch")),
    responses((status = 200, content((DocumentList = "application/json"), (String = "text/event-stream")))))]
pub(super) async fn list_namespaced(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((namespace, kind)): Path<(String, String)>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (kind, namespace) = (kind_of(&kind)?, namespace_of(&namespace)?);
    if !kind.namespaced() {
        return Err(Problem::bad_request(format_args!(
            "{kind} documents have no namespace: /api/v1/{}",
            kind.plural()
        )));
    }
    let filter = DocumentFilter { kind: Some(kind), namespace: Some(namespace), name: None };
    answer(&control, actor, params, &headers, filter)
}

/// List the documents of a kind, or watch them.
#[utoipa::path(get, path = "/api/v1/{kind}", tag = "documents",
    params(("kind" = String, Path, description = "meshes or tenants"), Listing,
        ("resumeAfter" = Option<u64>, Query, description = "Of a watch: only what changed since this epoch")),
    responses((status = 200, content((DocumentList = "application/json"), (String = "text/event-stream")))))]
pub(super) async fn list_global(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path(kind): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let filter = DocumentFilter { kind: Some(kind_of(&kind)?), ..DocumentFilter::default() };
    answer(&control, actor, params, &headers, filter)
}

/// What a list of documents was asked for.
struct Asked {
    actor: Actor,
    filter: DocumentFilter,
    listing: Listing,
}

fn answer(
    control: &ControlPlane,
    actor: Actor,
    mut params: Params,
    headers: &HeaderMap,
    filter: DocumentFilter,
) -> Result<Response, Problem> {
    let listing = Listing::read(&mut params);
    let after = params.number("resumeAfter", 0..=i64::MAX.unsigned_abs());
    params.finish()?;
    let namespace = within(filter.namespace.as_ref(), listing.namespace.as_ref())?;
    let asked = Asked { actor, filter: DocumentFilter { namespace, ..filter }, listing };
    let truth = control.truth();
    if asked.listing.watch {
        let told = match after.or_else(|| watch::last_event(headers)) {
            Some(after) => asked.known_at(control, &truth, after)?,
            None => Told::new(),
        };
        let actor = asked.actor.clone();
        return watch::stream(control, actor, told, watch::When::Documents, move |control| {
            let found = asked.found(&control.truth());
            found.into_iter().map(|(key, stored)| item(&key, &stored)).collect()
        });
    }
    let of = format!("documents {:?}", asked.filter);
    let found = page(asked.found(&truth), &asked.listing, &of)?;
    let items = found.items.into_iter().map(|stored| stored.document.to_json()).collect();
    let list = DocumentList { epoch: truth.epoch, items, rest: found.rest };
    Ok(Json(list).into_response())
}

/// One namespace may be named by the path and by the query, which then must agree.
fn within(path: Option<&Namespace>, query: Option<&Namespace>) -> Result<Option<Namespace>, Problem> {
    match (path, query) {
        (Some(path), Some(query)) if path != query => {
            let detail = format_args!("found {query}, expected {path} as in the path");
            Err(Problem::bad_field(FieldError::in_parameter("namespace", detail)))
        }
        (one, other) => Ok(one.or(other).cloned()),
    }
}

fn item(key: &DocumentKey, stored: &StoredDocument) -> Item {
    Item { key: key.to_string(), version: watch::version_of(&stored.version), object: stored.document.to_json() }
}

impl Asked {
    /// What is asked for, as far as the bearer may read it.
    fn found(&self, truth: &Truth) -> Vec<(DocumentKey, StoredDocument)> {
        let wanted = truth.documents.iter().filter(|(key, _)| self.filter.wants(key));
        wanted.filter(|(_, stored)| self.seen(stored)).map(|(key, stored)| (key.clone(), stored.clone())).collect()
    }

    fn seen(&self, stored: &StoredDocument) -> bool {
        let key = stored.document.key();
        (self.listing.labels.is_empty() || self.listing.labels.holds(&stored.document.labels()))
            && (self.actor.limits.is_empty() || may(&self.actor, Permission::Read, key).is_ok())
    }

    /// What somebody knows who was told everything up to an epoch. It is found out of one `truth`: a change that comes meanwhile is
    /// one that they do not know.
    fn known_at(&self, control: &ControlPlane, truth: &Truth, after: u64) -> Result<Told, Problem> {
        let gone = || {
            Problem::new(
                StatusCode::GONE,
                "epoch_gone",
                format_args!(
                    "what changed since epoch {after} is not known any more (the present one is {}); list again and watch from there",
                    truth.epoch
                ),
            )
        };
        let since: HashMap<DocumentKey, bool> = control.changed_since(after, truth.epoch).ok_or_else(gone)?;
        let mut told = Told::new();
        for (key, stored) in self.found(truth).into_iter().filter(|(key, _)| !since.contains_key(key)) {
            told.insert(key.to_string(), watch::version_of(&stored.version));
        }
        let mine = |key: &DocumentKey| self.filter.wants(key) && may(&self.actor, Permission::Read, key).is_ok();
        for (key, _) in since.into_iter().filter(|(key, there)| *there && mine(key)) {
            told.insert(key.to_string(), watch::OTHER);
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{Place, ROUTE, SERVICE};
    use super::*;

    #[tokio::test]
    async fn a_change_that_comes_while_a_watch_goes_on_is_told_to_it() {
        let place = Place::new().await;
        place.apply(&[SERVICE, ROUTE], "").await;
        let truth = place.control.truth();
        place.apply(&[&SERVICE.replace("port: 80,", "port: 81,"), &ROUTE.replace("port: 80", "port: 81")], "").await;
        let actor = Actor {
            id: String::new(),
            name: String::new(),
            role: crate::access::Role::Admin,
            limits: crate::access::Limits::default(),
        };
        let asked = Asked { actor, filter: DocumentFilter::default(), listing: Listing::default() };
        let told = asked.known_at(&place.control, &truth, 1).unwrap();
        let now = asked.found(&place.control.truth());
        assert_eq!((place.control.epoch(), now.len(), told.len()), (2, 2, 2));
        for (key, stored) in now {
            assert_ne!(told[&key.to_string()], watch::version_of(&stored.version), "{key} is as good as told");
        }
        let told = asked.known_at(&place.control, &place.control.truth(), 2).unwrap();
        assert!(
            asked
                .found(&place.control.truth())
                .iter()
                .all(|(key, stored)| told[&key.to_string()] == watch::version_of(&stored.version))
        );
    }
}

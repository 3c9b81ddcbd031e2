//! `accessLog` of a `Mesh`: what lets somebody in is masked where nothing is written, and never shown where it is.

use std::collections::{BTreeMap, BTreeSet};

use super::at::At;
use crate::document::shape::Notes;
use crate::names::PolicyName;
use crate::policy::{AccessLog, Logged, RequestAuthentication, Show, TokenPlace, claim_path, holds_secret};

/// Which document reads tokens from what, by the kind of place and its name.
pub(super) struct Tokens(BTreeMap<(Place, String), PolicyName>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Header,
    Query,
    Cookie,
}

impl Tokens {
    /// Those of all documents.
    pub(super) fn of(all: &BTreeMap<PolicyName, RequestAuthentication>) -> Self {
        let mut places = BTreeMap::new();
        for (document, rule) in all.iter().flat_map(|(name, policy)| policy.rules.iter().map(move |rule| (name, rule)))
        {
            for place in &rule.places {
                let key = match place {
                    TokenPlace::Header { name, .. } => (Place::Header, name.clone()),
                    TokenPlace::Query(name) => (Place::Query, name.clone()),
                    TokenPlace::Cookie(name) => (Place::Cookie, name.clone()),
                };
                places.entry(key).or_insert_with(|| document.clone());
            }
        }
        Self(places)
    }

    fn read_from(&self, place: Place, name: &str) -> Option<&PolicyName> {
        self.0.get(&(place, name.to_owned()))
    }
}

pub(super) fn access_log(at: &At<'_>, tokens: &Tokens, notes: &mut Notes<'_>) -> AccessLog {
    let mut header = |key: &str| {
        named(at, key, Show::Value, notes, |name, notes| {
            let header = name.text()?.to_ascii_lowercase();
            let secret = secret(Place::Header, &header, tokens);
            // Both lists are of what calls carry; the mesh's own words are told elsewhere in the line.
            if header.starts_with(super::tenant::RESERVED) {
                name.complain(notes, "a header of callers or applications: this one belongs to the mesh");
            }
            Some((header, secret))
        })
    };
    let (request_headers, response_headers) = (header("requestHeaders"), header("responseHeaders"));
    let query_parameters = named(at, "queryParameters", Show::Value, notes, |name, _| {
        let name = name.text()?.to_owned();
        let secret = secret(Place::Query, &name, tokens);
        Some((name, secret))
    });
    // What a cookie is called says little of what it lets somebody into.
    let cookies = named(at, "cookies", Show::Mask, notes, |name, _| {
        let name = name.text()?.to_owned();
        let secret = secret(Place::Cookie, &name, tokens);
        Some((name, secret))
    });
    let claims = named(at, "claims", Show::Value, notes, |name, _| {
        let path = claim_path(name.text()?)?;
        let secret = path.iter().any(|part| holds_secret(part)).then(|| "its name says so".to_owned());
        Some((path, secret))
    });
    AccessLog { request_headers, response_headers, query_parameters, cookies, claims }
}

/// Why it lets somebody in, if so.
fn secret(place: Place, name: &str, tokens: &Tokens) -> Option<String> {
    match tokens.read_from(place, name) {
        Some(document) => Some(format!("RequestAuthentication {document} reads tokens there")),
        None => holds_secret(name).then(|| "its name says so".to_owned()),
    }
}

/// The items of one list, each once; `usual` is how they are shown where nothing is written.
fn named<N: Ord + Clone>(
    at: &At<'_>,
    key: &str,
    usual: Show,
    notes: &mut Notes<'_>,
    mut read: impl FnMut(&At<'_>, &mut Notes<'_>) -> Option<(N, Option<String>)>,
) -> Vec<Logged<N>> {
    let (mut all, mut seen) = (Vec::new(), BTreeSet::new());
    for item in at.list(key) {
        let Some(place) = item.get("name") else { continue };
        let Some((name, secret)) = read(&place, notes) else { continue };
        if !seen.insert(name.clone()) {
            place.complain(notes, "each name once in a list");
        }
        let show = match (item.text_of("show"), secret) {
            (Some("HASH"), _) => Show::Hash,
            (Some("MASK"), _) | (None, Some(_)) => Show::Mask,
            (Some(_), Some(why)) => {
                if let Some(show) = item.get("show") {
                    show.complain(notes, format!("HASH or MASK: what stands there lets somebody in ({why})"));
                }
                Show::Mask
            }
            (None, None) => usual,
            (Some(_), None) => Show::Value,
        };
        all.push(Logged { name, show });
    }
    all
}

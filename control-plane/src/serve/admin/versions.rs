//! Entity tags: what a caller believes of a document, and what it is told.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::shapes::Problem;
use crate::control::Precondition;

/// What `If-Match` and `If-None-Match` ask of a change.
pub(super) fn precondition(headers: &HeaderMap) -> Result<Option<Precondition>, Problem> {
    let wanted = tags(headers, &header::IF_MATCH)?;
    let unwanted = tags(headers, &header::IF_NONE_MATCH)?;
    match (wanted, unwanted) {
        (None, None) => Ok(None),
        (Some(Tags::Any), None) => Ok(Some(Precondition::Present)),
        (None, Some(Tags::Any)) => Ok(Some(Precondition::Absent)),
        (Some(Tags::These(mut versions)), None) if versions.len() == 1 => Ok(versions.pop().map(Precondition::Version)),
        _ => Err(Problem::bad_request(
            "found a combination that is not supported, expected If-Match with one ETag or *, or If-None-Match: *",
        )),
    }
}

/// Entity tags of a header.
pub(super) enum Tags {
    Any,
    These(Vec<String>),
}

impl Tags {
    /// Whether a version is among them.
    pub(super) fn holds(&self, version: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(versions) => versions.iter().any(|known| known == version),
        }
    }
}

/// The tags that a header names.
pub(super) fn tags(headers: &HeaderMap, name: &header::HeaderName) -> Result<Option<Tags>, Problem> {
    let mut versions = Vec::new();
    let mut present = false;
    for value in headers.get_all(name) {
        present = true;
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Some(Tags::Any));
        }
        for tag in text.split(',').map(str::trim) {
            let strong = tag.strip_prefix("W/").unwrap_or(tag);
            let version = strong.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let version = version.ok_or_else(|| {
                Problem::bad_request(format_args!("{name}: found {tag:?}, expected an ETag in quotes, or *"))
            })?;
            versions.push(version.to_owned());
        }
    }
    Ok(present.then_some(Tags::These(versions)))
}

/// A version as an entity tag.
pub(super) fn etag(version: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(&format!("\"{version}\""))
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a version is not text"))
}

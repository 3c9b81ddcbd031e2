//! JSON Schemas of every kind, for editors.

use crate::document::Kind;

/// One schema (draft 2020-12) for each kind.
pub fn all() -> Vec<(Kind, serde_json::Value)> {
    Vec::new()
}

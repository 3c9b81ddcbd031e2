//! Inline JSON Web Key Sets: as JSON text or written out, read by the same code that compiles them.
//!
//! A private or symmetric key in a policy is a leak and never a way to configure anything: it is refused without showing
//! the line it stands on.

use serde_json::Value;

use super::at::At;
use crate::compile::keys::{BadKeySet, read};
use crate::document::node::Value as Found;
use crate::document::shape::Notes;

/// Reads a key set; the answer is its canonical JSON text.
pub(super) fn key_set(at: &At<'_>, notes: &mut Notes<'_>) -> Option<String> {
    let set: Value = match &at.node.value {
        Found::Text(text) => match serde_json::from_str(text) {
            Ok(set) => set,
            Err(wrong) => {
                at.complain(notes, format!("a JSON Web Key Set as JSON text ({wrong})"));
                return None;
            }
        },
        _ => at.node.to_json(),
    };
    let text = canonical(&set).to_string();
    match read(&text) {
        Ok(_) => return Some(text),
        Err(secret @ BadKeySet::Secret(_)) => {
            at.complain_of(notes, secret.to_string(), "public keys only");
            if let Some(complaint) = notes.list.last_mut() {
                complaint.snippet = None;
            }
        }
        Err(wrong) => {
            at.complain_of(notes, wrong.to_string(), "a JSON Web Key Set with a public key: {\"keys\": [...]}");
        }
    }
    None
}

/// Certificates as PEM, nothing secret among them.
pub(super) fn certificates<'d>(at: &At<'d>, notes: &mut Notes<'_>) -> Option<&'d str> {
    let text = at.text()?;
    if text.contains("PRIVATE KEY") {
        at.complain_of(
            notes,
            "a private key",
            "certificates only; whoever reads this document has the key now: replace it",
        );
        if let Some(complaint) = notes.list.last_mut() {
            complaint.snippet = None;
        }
        return None;
    }
    Some(text)
}

/// The same JSON, members sorted; certificates are left out, because nothing reads them.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().filter(|(name, _)| !name.starts_with("x5")).collect();
            members.sort_by_key(|(name, _)| *name);
            Value::Object(members.into_iter().map(|(name, value)| (name.clone(), canonical(value))).collect())
        }
        Value::Array(items) => items.iter().map(canonical).collect(),
        other => other.clone(),
    }
}

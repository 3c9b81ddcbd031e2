//! `/config`: the settings and the configuration in force, as they are, but for what is secret.
//!
//! Secret is: what headers that carry credentials are set to, private parts of keys, and passwords in addresses. What
//! comes from documents is shown as the control plane sent it, so that nothing is left out that counts.

use serde_json::{Map, Value, json};

use super::Window;
use crate::app::Shared;

/// Stands for a secret.
const MASKED: &str = "***";
/// Headers that carry credentials, and words in the names of those that people make up for it.
const CREDENTIALS: [&str; 8] =
    ["authorization", "cookie", "token", "secret", "password", "api-key", "apikey", "credential"];
/// Private and symmetric parts of a JSON Web Key (RFC 7518 section 6).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// The whole page.
pub(super) fn shown(window: &Window, shared: &Shared) -> Value {
    let live = shared.live.load();
    let mut destinations: Vec<_> = live.destinations.values().collect();
    destinations.sort_by(|a, b| a.backend.name.cmp(&b.backend.name));
    let destinations: Vec<_> = destinations
        .into_iter()
        .map(|destination| {
            let backend = &destination.backend;
            json!({
                "service": backend.name,
                "ports": backend.ports,
                "accounts": &*backend.accounts,
                "traffic": backend.traffic,
                "endpoints": backend.endpoints.iter().map(|endpoint| json!({
                    "instance": endpoint.instance,
                    "address": endpoint.address,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    let certificate = shared.identity.latest().map(|identity| {
        json!({ "id": identity.id, "notAfter": equerry_certs::rfc3339(identity.not_after), "generation": identity.generation })
    });
    json!({
        "instance": shared.settings.instance,
        "settings": shared.settings.as_json(),
        "log": window.levels.shown(),
        "epoch": live.epoch,
        "generations": shared.live.generations(),
        "controlPlane": { "address": shared.settings.control_plane, "connected": window.status.connected() },
        "certificate": certificate,
        "workload": live.workload.as_ref().map(|workload| json!({
            "services": workload.services.iter().map(|(service, _)| service).collect::<Vec<_>>(),
            "mesh": workload.mesh,
        })),
        "issuers": shared.keys.shown(),
        "destinations": destinations,
        "unknown": live.unknown.iter().map(|(name, nearest)| json!({ "service": name, "nearest": nearest })).collect::<Vec<_>>(),
        "resources": shared.live.resources().iter().map(|one| json!({
            "type": one.kind,
            "name": one.name,
            "version": one.version,
            "body": serde_json::from_slice::<Value>(&one.body).map_or(Value::Null, masked),
        })).collect::<Vec<_>>(),
    })
}

/// A value without its secrets.
fn masked(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(masked_object(object)),
        Value::Array(items) => match pair(&items) {
            Some(name) if carries_credentials(name) => json!([name, MASKED]),
            _ => Value::Array(items.into_iter().map(masked).collect()),
        },
        Value::String(text) => Value::String(masked_text(text)),
        other => other,
    }
}

fn masked_object(object: Map<String, Value>) -> Map<String, Value> {
    let named = object.get("name").and_then(Value::as_str).is_some_and(carries_credentials);
    let is_key = object.get("kty").is_some_and(Value::is_string);
    let each = object.into_iter().map(|(key, value)| {
        let secret = (is_key && PRIVATE.contains(&key.as_str())) || (named && key == "value");
        let value = if secret { json!(MASKED) } else { masked(value) };
        (key, value)
    });
    each.collect()
}

/// The name of a header and what it is set to.
fn pair(items: &[Value]) -> Option<&str> {
    match items {
        [Value::String(name), Value::String(_)] => Some(name),
        _ => None,
    }
}

fn carries_credentials(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    CREDENTIALS.iter().any(|word| name.contains(word))
}

/// JSON in a text is a value of its own; an address loses its password.
fn masked_text(text: String) -> String {
    if text.starts_with('{')
        && let Ok(inner) = serde_json::from_str::<Value>(&text)
    {
        return masked(inner).to_string();
    }
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => {
            let (user, _) = user.split_once(':').unwrap_or_default();
            format!("{scheme}://{user}:{MASKED}@{host}{}", &rest[authority.len()..])
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_credentials_is_masked_wherever_it_stands_and_nothing_else_is() {
        let shown = masked(json!({
            "filters": [{"requestHeaders": {"set": [["authorization", "Bearer SECRET1"], ["x-color", "blue"]],
                "add": [["X-Api-Key", "SECRET2"], ["Cookie", "SECRET3"]], "remove": ["x-token", "x-a"]}}],
            "headers": [{"name": "x-auth-token", "value": "SECRET4"}, {"name": "x-b", "value": "shown"}],
            "jwks": "{\"keys\":[{\"kty\":\"oct\",\"k\":\"SECRET5\",\"kid\":\"one\"},{\"kty\":\"RSA\",\"n\":\"shown-n\",\"d\":\"SECRET6\"}]}",
            "keys": {"kty": "EC", "d": "SECRET7", "x": "shown-x"},
            "uri": "https://user:SECRET8@issuer.example/jwks?a=b",
            "d": "shown-d",
        }))
        .to_string();
        assert!(!shown.contains("SECRET"), "{shown}");
        for left in
            ["blue", "shown", "shown-n", "shown-x", "shown-d", "one", "x-token", "user:***@issuer.example/jwks?a=b"]
        {
            assert!(shown.contains(left), "{left} is missing: {shown}");
        }
    }
}

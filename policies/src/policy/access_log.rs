//! What access logs say beyond what they always say: headers, query parameters and claims that somebody asked for by name,
//! and which of them are never written down as they are.
//!
//! A log is read by more people, for longer, than what it tells of was meant for. So what lets somebody in is masked whatever
//! is asked: known by its name, by its shape, or because a policy reads tokens there.

use serde::{Deserialize, Serialize};

/// `Mesh.accessLog`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLog {
    /// Headers of requests, in lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<Logged<String>>,
    /// Headers of responses, in lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<Logged<String>>,
    /// Query parameters, by their decoded names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query_parameters: Vec<Logged<String>>,
    /// Single cookies of requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cookies: Vec<Logged<String>>,
    /// Claims of verified tokens, by their paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Logged<Vec<String>>>,
}

/// One thing that is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Logged<N> {
    /// What.
    pub name: N,
    /// How.
    pub show: Show,
}

/// How much of a value is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Show {
    /// All of it, up to a length.
    #[serde(rename = "VALUE")]
    Value,
    /// A keyed hash: lines of one process with the same value can be told, the value cannot.
    #[serde(rename = "HASH")]
    Hash,
    /// That there is one. Also what a version that does not know the word makes of it.
    #[serde(rename = "MASK", other)]
    Mask,
}

/// Parts of names that say that a value lets somebody in.
const SECRET_PARTS: &[&str] = &[
    "apikey",
    "assertion",
    "auth",
    "bearer",
    "cookie",
    "credential",
    "csrf",
    "jwt",
    "passphrase",
    "passwd",
    "password",
    "secret",
    "session",
    "signature",
    "token",
    "xsrf",
];
/// Whole names that do: those of authorization codes, of keys and signatures in URLs, and of tickets.
const SECRET_NAMES: &[&str] = &[
    "accesskey",
    "code",
    "hmac",
    "key",
    "otp",
    "pass",
    "pin",
    "privatekey",
    "pwd",
    "samlrequest",
    "samlresponse",
    "sid",
    "sig",
    "ticket",
];
/// Names that hold such a part and no secret: for whom something is, not what lets them in.
const HARMLESS: &[&str] = &["authority", "author", "authtime", "tokentype", "wwwauthenticate", "proxyauthenticate"];

/// Whether a header, query parameter or claim of that name lets whoever reads it in somewhere, so that its value is never
/// logged. Rather once too often: how something is spelt (`X-Api-Key`, `api_key`, `apiKey`) makes no difference.
pub fn holds_secret(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let known = SECRET_NAMES.contains(&plain.as_str()) || SECRET_PARTS.iter().any(|part| plain.contains(part));
    known && !HARMLESS.contains(&plain.as_str())
}

/// Whether a value has the shape of something that lets somebody in, whatever it is called: a JSON Web Token, credentials
/// behind their scheme, a token of this mesh, a key in PEM.
pub fn looks_secret(value: &str) -> bool {
    let begins = |scheme: &str| value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    ["bearer ", "basic ", "negotiate ", "digest "].into_iter().any(begins)
        || ["eqj1.", "eqa1.", "-----BEGIN "].into_iter().any(|mark| value.contains(mark))
        || value.match_indices("eyJ").any(|(at, _)| begins_a_token(&value[at..]))
}

/// Two parts of base64url with a dot between: `{"` in that alphabet is `eyJ`.
fn begins_a_token(text: &str) -> bool {
    let coded = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let header = text.find(|c| !coded(c)).unwrap_or(text.len());
    header >= 8 && text[header..].strip_prefix('.').is_some_and(|rest| rest.starts_with(coded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lets_somebody_in_is_known_by_its_name_however_it_is_spelt() {
        for name in [
            "Authorization",
            "proxy-authorization",
            "Cookie",
            "set-cookie",
            "x-api-key",
            "api_key",
            "apiKey",
            "access_token",
            "id_token_hint",
            "refresh-token",
            "code",
            "sig",
            "X-Amz-Signature",
            "X-Amz-Credential",
            "client_secret",
            "password",
            "key",
            "jsessionid",
            "client_assertion",
            "x-csrf-token",
            "SAMLResponse",
        ] {
            assert!(holds_secret(name), "{name}");
        }
        for name in
            ["x-tenant", "accept", "page", "sub", "iss", "auth_time", "authority", "user-agent", "keyboard", "zip"]
        {
            assert!(!holds_secret(name), "{name}");
        }
    }

    #[test]
    fn what_lets_somebody_in_is_known_by_its_shape_whatever_it_is_called() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2ln";
        for value in [
            token,
            &format!("v1:{token}"),
            "Bearer abc",
            "basic YTpi",
            "eqj1.ID.SECRET.PIN",
            "-----BEGIN PRIVATE KEY-----",
        ] {
            assert!(looks_secret(value), "{value}");
        }
        for value in ["ann", "eyJ", "eyJ is how tokens begin.", "basically", "1.2.3", ""] {
            assert!(!looks_secret(value), "{value}");
        }
    }

    #[test]
    fn a_way_to_show_that_is_not_known_masks() {
        let logged: Logged<String> = serde_json::from_str(r#"{"name":"x-tenant","show":"FIRST_FOUR"}"#).unwrap();
        assert_eq!(logged.show, Show::Mask);
    }
}

//! One thing that a rule asks: of whom or what, which values it may have, and which not.

use std::fmt;

use http::HeaderName;

use super::super::text::Pattern;
use super::super::tokens::{ClaimPath, path};
use crate::complaint::Complaint;
use crate::names::AccountName;
use crate::policy::{self, Attribute, Condition, IpBlock, Origin, StringMatch};

/// What a thing must be: one of `any` unless that is empty, and none of `none`.
#[derive(Debug, Clone)]
pub struct Values<T> {
    /// Any one of these; empty: whatever it is.
    pub any: Box<[T]>,
    /// None of these.
    pub none: Box<[T]>,
}

impl<T> Values<T> {
    /// Whether they hold, where `is` says of a value whether it is (or is among) what was found. What is not there is nothing:
    /// it fails `any`, and passes `none`.
    pub fn hold(&self, is: impl Fn(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&is)) && !self.none.iter().any(is)
    }
}

/// One thing that a rule asks.
#[derive(Debug, Clone)]
pub enum Predicate {
    /// The peer's principal, without `spiffe://`.
    Principal(Values<Pattern>),
    /// The namespace of the peer's identity.
    Namespace(Values<Pattern>),
    /// The trust domain of the peer's identity.
    TrustDomain(Values<Pattern>),
    /// The account of the peer's identity.
    Account(Values<AccountName>),
    /// Issuer and subject of the verified token.
    RequestPrincipal(Values<TokenPattern>),
    /// The address of the direct peer.
    SourceIp(Values<IpBlock>),
    /// The address of whoever made the request.
    RemoteIp(Values<IpBlock>),
    /// The address that was connected to.
    DestinationIp(Values<IpBlock>),
    /// The authority in lower case, with or without its port.
    Host(Values<Pattern>),
    /// The method.
    Method(Values<Pattern>),
    /// The path.
    Path(Values<Pattern>),
    /// The application's port.
    Port(Values<u16>),
    /// Each value of a header. `*` is its presence, even if it is empty.
    Header(HeaderName, Values<Pattern>),
    /// A claim of the verified token, or each member of it.
    Claim(ClaimPath, Values<Pattern>),
    /// Each audience of the verified token.
    Audience(Values<Pattern>),
    /// The party that the verified token was issued to.
    Presenter(Values<Pattern>),
    /// The server name of the TLS connection.
    Sni(Values<Pattern>),
}

impl Predicate {
    /// Whether it asks about what only an HTTP request has: where nobody looks for requests, there is no such thing.
    pub fn about_http(&self) -> bool {
        match self {
            Self::RequestPrincipal(_)
            | Self::Host(_)
            | Self::Method(_)
            | Self::Path(_)
            | Self::Header(..)
            | Self::Claim(..)
            | Self::Audience(_)
            | Self::Presenter(_) => true,
            Self::Principal(_)
            | Self::Namespace(_)
            | Self::TrustDomain(_)
            | Self::Account(_)
            | Self::SourceIp(_)
            | Self::RemoteIp(_)
            | Self::DestinationIp(_)
            | Self::Port(_)
            | Self::Sni(_) => false,
        }
    }

    /// What it asks about, for people.
    pub fn subject(&self) -> String {
        let word = match self {
            Self::Principal(_) => "principal",
            Self::Namespace(_) => "namespace",
            Self::TrustDomain(_) => "trust domain",
            Self::Account(_) => "account",
            Self::RequestPrincipal(_) => "request principal",
            Self::SourceIp(_) => "source address",
            Self::RemoteIp(_) => "remote address",
            Self::DestinationIp(_) => "destination address",
            Self::Host(_) => "host",
            Self::Method(_) => "method",
            Self::Path(_) => "path",
            Self::Port(_) => "port",
            Self::Header(name, _) => return format!("header {name}"),
            Self::Claim(path, _) => return format!("claim {}", path.join(".")),
            Self::Audience(_) => "audience",
            Self::Presenter(_) => "presenter",
            Self::Sni(_) => "server name",
        };
        word.to_owned()
    }

    /// The values that it may have, and those that it may not, as they are written.
    pub fn wanted(&self) -> (Vec<String>, Vec<String>) {
        fn words<T>(values: &Values<T>, word: impl Fn(&T) -> String) -> (Vec<String>, Vec<String>) {
            (values.any.iter().map(&word).collect(), values.none.iter().map(&word).collect())
        }
        let block = |(network, length): &IpBlock| format!("{network}/{length}");
        match self {
            Self::Principal(values)
            | Self::Namespace(values)
            | Self::TrustDomain(values)
            | Self::Host(values)
            | Self::Method(values)
            | Self::Path(values)
            | Self::Header(_, values)
            | Self::Claim(_, values)
            | Self::Audience(values)
            | Self::Presenter(values)
            | Self::Sni(values) => words(values, ToString::to_string),
            Self::Account(values) => words(values, ToString::to_string),
            Self::RequestPrincipal(values) => words(values, ToString::to_string),
            Self::SourceIp(values) | Self::RemoteIp(values) | Self::DestinationIp(values) => words(values, block),
            Self::Port(values) => words(values, ToString::to_string),
        }
    }
}

/// Issuer and subject of a token, compared each for itself: no subject can pass for a part of an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPattern {
    issuer: Pattern,
    subject: Pattern,
    written: Box<str>,
}

impl TokenPattern {
    /// Reads a `requestPrincipals` value as Istio does: the last `/` parts issuer and subject, and the star is the issuer's or the
    /// subject's, whichever end it stands at.
    fn new(from: &StringMatch) -> Self {
        let exact = |text: &str| Pattern::Exact(text.into());
        let (issuer, subject) = match from {
            StringMatch::Present | StringMatch::Template(_) => (Pattern::Present, Pattern::Present),
            StringMatch::Exact(text) => match text.rsplit_once('/') {
                Some((issuer, subject)) => (exact(issuer), exact(subject)),
                None => (exact(text), exact("")),
            },
            StringMatch::Suffix(text) => match text.rsplit_once('/') {
                Some(("", subject)) => (Pattern::Present, exact(subject)),
                Some((issuer, subject)) => (Pattern::Suffix(issuer.into()), exact(subject)),
                None => (Pattern::Present, Pattern::Suffix(text.as_str().into())),
            },
            StringMatch::Prefix(text) => match text.rsplit_once('/') {
                Some((issuer, "")) => (exact(issuer), Pattern::Present),
                Some((issuer, subject)) => (exact(issuer), Pattern::Prefix(subject.into())),
                None => (Pattern::Prefix(text.as_str().into()), Pattern::Present),
            },
        };
        Self { issuer, subject, written: Pattern::new(from).to_string().into() }
    }

    /// Whether a token of this issuer and subject is meant.
    pub fn matches(&self, issuer: &str, subject: &str) -> bool {
        self.issuer.matches(issuer) && self.subject.matches(subject)
    }
}

impl fmt::Display for TokenPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// What is asked where at least one value is written.
fn asked<T, F>(
    any: &[F],
    none: &[F],
    read: impl Fn(&F) -> T,
    of: impl FnOnce(Values<T>) -> Predicate,
) -> Option<Predicate> {
    let values = || Values { any: any.iter().map(&read).collect(), none: none.iter().map(&read).collect() };
    (!any.is_empty() || !none.is_empty()).then(|| of(values()))
}

/// Everything that a source asks.
pub(super) fn of_source(source: &policy::Source) -> Vec<Predicate> {
    let parts = [
        asked(&source.principals, &source.not_principals, Pattern::new, Predicate::Principal),
        asked(&source.namespaces, &source.not_namespaces, Pattern::new, Predicate::Namespace),
        asked(&source.service_accounts, &source.not_service_accounts, Clone::clone, Predicate::Account),
        asked(&source.trust_domains, &source.not_trust_domains, Pattern::new, Predicate::TrustDomain),
        asked(
            &source.request_principals,
            &source.not_request_principals,
            TokenPattern::new,
            Predicate::RequestPrincipal,
        ),
        asked(&source.ip_blocks, &source.not_ip_blocks, |block| *block, Predicate::SourceIp),
        asked(&source.remote_ip_blocks, &source.not_remote_ip_blocks, |block| *block, Predicate::RemoteIp),
    ];
    parts.into_iter().flatten().collect()
}

/// Everything that an operation asks.
pub(super) fn of_operation(operation: &policy::Operation) -> Vec<Predicate> {
    let parts = [
        asked(&operation.methods, &operation.not_methods, Pattern::new, Predicate::Method),
        asked(&operation.paths, &operation.not_paths, Pattern::new, Predicate::Path),
        asked(&operation.hosts, &operation.not_hosts, Pattern::lower_case, Predicate::Host),
        asked(&operation.ports, &operation.not_ports, |port| *port, Predicate::Port),
    ];
    parts.into_iter().flatten().collect()
}

/// Everything that a condition asks.
pub(super) fn of_condition(condition: &Condition, origin: &Origin, complaints: &mut Vec<Complaint>) -> Vec<Predicate> {
    match condition {
        Condition::Source(source) => of_source(source),
        Condition::Operation(operation) => of_operation(operation),
        Condition::DestinationIp { values, not_values } => {
            asked(values, not_values, |block| *block, Predicate::DestinationIp).into_iter().collect()
        }
        Condition::Text { of, values, not_values } => {
            let of: Box<dyn FnOnce(Values<Pattern>) -> Predicate> = match of {
                Attribute::Header(name) => match HeaderName::try_from(name.as_str()) {
                    Ok(name) => Box::new(|values| Predicate::Header(name, values)),
                    Err(_) => {
                        complaints.push(Complaint::at(origin, "when", format!("{name:?}"), "the name of a header"));
                        return Vec::new();
                    }
                },
                Attribute::Claim(claim) => {
                    let claim = path(claim);
                    Box::new(|values| Predicate::Claim(claim, values))
                }
                Attribute::Audiences => Box::new(Predicate::Audience),
                Attribute::Presenter => Box::new(Predicate::Presenter),
                Attribute::Sni => Box::new(Predicate::Sni),
            };
            asked(values, not_values, Pattern::new, of).into_iter().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuer_and_subject_are_compared_each_for_itself() {
        let text = |text: &str| text.to_owned();
        let is = |from: StringMatch, issuer: &str, subject: &str| TokenPattern::new(&from).matches(issuer, subject);
        assert!(is(StringMatch::Exact(text("https://a/b")), "https://a", "b"));
        assert!(!is(StringMatch::Exact(text("https://a/b/c")), "https://a", "b/c"), "the last slash parts them");
        assert!(is(StringMatch::Prefix(text("https://a/")), "https://a", "anybody"));
        assert!(!is(StringMatch::Prefix(text("https://a/")), "https://a/b", "anybody"));
        assert!(!is(StringMatch::Prefix(text("https://a/")), "https://a", ""), "a subject must be there");
        assert!(is(StringMatch::Prefix(text("https://a/ad")), "https://a", "ada"));
        assert!(is(StringMatch::Suffix(text("/ada")), "https://whoever", "ada"));
        assert!(is(StringMatch::Suffix(text("example.com/ada")), "https://example.com", "ada"));
        assert!(is(StringMatch::Suffix(text("da")), "https://whoever", "ada"));
        assert!(is(StringMatch::Present, "https://a", "b") && !is(StringMatch::Present, "https://a", ""));
    }
}

//! Where an issuer publishes its keys: an `https` URL, taken apart once.
//!
//! Whoever can change what stands there can make tokens, so nothing but `https` is a way to it, and nothing in it may be
//! read in two ways: no user, no fragment, no way of writing an address but the usual one.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;

use crate::names::HostName;

/// Longest URL.
const MAX_URL: usize = 2048;

/// An `https` URL of a key set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyUrl {
    text: Box<str>,
    host: UrlHost,
    port: u16,
    target: Box<str>,
}

/// Whom a URL names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UrlHost {
    /// Whoever the DNS says.
    Name(HostName),
    /// Whoever is there.
    Address(IpAddr),
}

impl fmt::Display for UrlHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl KeyUrl {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_URL {
            return Err("it is longer than 2048 bytes");
        }
        if text.contains('#') {
            return Err("it has a fragment");
        }
        let uri = Uri::from_str(text).map_err(|_| "it is not a URL")?;
        if uri.scheme_str() != Some("https") {
            return Err("it is not https: whoever can change what is answered can make tokens");
        }
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("it names a user");
        }
        let host = authority.host().to_ascii_lowercase();
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match (literal, host.parse::<std::net::Ipv4Addr>()) {
            (Some(v6), _) => UrlHost::Address(v6.parse::<Ipv6Addr>().map_err(|_| "its host is no address")?.into()),
            (None, Ok(v4)) => UrlHost::Address(v4.into()),
            (None, Err(_)) => UrlHost::Name(HostName::parse(&host).map_err(|_| "its host is no name and no address")?),
        };
        let port = match authority.as_str().rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            Some((_, port)) => port.parse().ok().filter(|port| *port != 0).ok_or("its port is not 1 to 65535")?,
            None => 443,
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self { text: text.into(), host, port, target: target.into() })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whom it names.
    pub fn host(&self) -> &UrlHost {
        &self.host
    }

    /// The port; 443 when none is written.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The value of `Host`.
    pub fn authority(&self) -> String {
        let host = match &self.host {
            UrlHost::Address(IpAddr::V6(address)) => format!("[{address}]"),
            host => host.to_string(),
        };
        if self.port == 443 { host } else { format!("{host}:{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_once() {
        for (text, host, port, target, authority) in [
            ("https://login.example.com/jwks.json", "login.example.com", 443, "/jwks.json", "login.example.com"),
            ("https://LOGIN.example.com:8443/a?b=c", "login.example.com", 8443, "/a?b=c", "login.example.com:8443"),
            ("https://192.0.2.1", "192.0.2.1", 443, "/", "192.0.2.1"),
            ("https://[2001:db8::1]:444/x", "2001:db8::1", 444, "/x", "[2001:db8::1]:444"),
        ] {
            let url = KeyUrl::parse(text).unwrap();
            assert_eq!((url.host().to_string().as_str(), url.port(), url.target()), (host, port, target), "{text}");
            assert_eq!((url.authority().as_str(), url.as_str()), (authority, text));
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            "",
            "login.example.com/jwks",
            "http://login.example.com/jwks",
            "file:///etc/passwd",
            "https://user@login.example.com/",
            "https://login.example.com/#x",
            "https://login.example.com:0/",
            "https://login.example.com:99999/",
            "https://127.1/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://login example.com/",
            "https://[::1/",
            "https:///jwks",
        ] {
            assert!(KeyUrl::parse(text).is_err(), "{text}");
        }
        assert!(KeyUrl::parse(&format!("https://a/{}", "x".repeat(MAX_URL))).is_err());
    }
}

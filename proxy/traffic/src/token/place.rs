//! Where a request carries its token, and how it is taken out again.
//!
//! A request carries one token: where two places hold one each, nobody could say whom it speaks for, and it is refused.

use equerry_policies::compile::{Place, TokenRule};
use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};

use super::fault;
use crate::normalize::Normal;
use crate::refusal::{Reason, Refusal};
use crate::route::decoded;

/// The token that is shown, in one of the places that the rules name, and where.
pub(super) fn shown<'r, 'h>(
    rules: impl Iterator<Item = &'r TokenRule>,
    headers: &'h HeaderMap,
    query: Option<&'h str>,
) -> Result<Option<(&'r Place, &'h str)>, Refusal> {
    let mut found: Option<(&Place, &str)> = None;
    for place in rules.flat_map(|rule| &rule.places) {
        if found.is_some_and(|(known, _)| known == place) {
            continue;
        }
        let Some(token) = read(place, headers, query)? else { continue };
        if found.is_some() {
            return Err(invalid("there is more than one token"));
        }
        found = Some((place, token));
    }
    Ok(found)
}

fn invalid(why: &str) -> Refusal {
    fault(Reason::TokenInvalid, why, None)
}

fn read<'h>(place: &Place, headers: &'h HeaderMap, query: Option<&'h str>) -> Result<Option<&'h str>, Refusal> {
    match place {
        Place::Bearer => bearer(headers),
        Place::Header(name, prefix) => header(headers, name, prefix),
        Place::Cookie(name) => {
            let all = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
            let named = all.filter_map(|pair| cookie_of(pair, name)).filter(|value| !value.is_empty());
            match only(named, "there is more than one cookie of the token's name")? {
                Some(value) => {
                    std::str::from_utf8(value).map(Some).map_err(|_| invalid("the token's cookie is not text"))
                }
                None => Ok(None),
            }
        }
        Place::Query(name) => {
            let pairs = query.unwrap_or_default().split('&').filter(|pair| is_named(pair, name));
            let values = pairs.map(|pair| pair.split_once('=').map_or("", |(_, value)| value));
            only(values.filter(|value| !value.is_empty()), "there is more than one query parameter of the token's name")
        }
    }
}

fn only<T>(mut all: impl Iterator<Item = T>, otherwise: &str) -> Result<Option<T>, Refusal> {
    let first = all.next();
    if all.next().is_some() { Err(invalid(otherwise)) } else { Ok(first) }
}

/// The token of `Authorization: Bearer`; another scheme is no token.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid("there is more than one Authorization header"));
    }
    let text = value.to_str().map_err(|_| invalid("the Authorization header is not text"))?;
    let Some((scheme, token)) = text.split_once(' ') else { return Ok(None) };
    Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()))
}

/// What follows the prefix; a value that begins otherwise is no token, and neither is one of several words.
fn header<'h>(headers: &'h HeaderMap, name: &HeaderName, prefix: &str) -> Result<Option<&'h str>, Refusal> {
    let Some(value) = only(headers.get_all(name).iter(), "there is more than one header of the token's name")? else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| invalid("the token's header is not text"))?;
    Ok(text.strip_prefix(prefix).map(str::trim).filter(|token| !token.is_empty() && !token.contains(' ')))
}

/// The value of a cookie pair, if that is its name.
fn cookie_of<'p>(pair: &'p [u8], name: &str) -> Option<&'p [u8]> {
    let pair = pair.trim_ascii();
    let at = pair.iter().position(|byte| *byte == b'=')?;
    (pair[..at].trim_ascii() == name.as_bytes()).then(|| pair[at + 1..].trim_ascii())
}

fn is_named(pair: &str, name: &str) -> bool {
    *decoded(pair.split('=').next().unwrap_or_default()) == *name.as_bytes()
}

/// Takes the token out of its place.
pub(super) fn take_out(place: &Place, headers: &mut HeaderMap, normal: Option<&mut Normal>) {
    match place {
        Place::Bearer => {
            headers.remove(AUTHORIZATION);
        }
        Place::Header(name, _) => {
            headers.remove(name);
        }
        Place::Cookie(name) => take_cookie_out(headers, name),
        Place::Query(name) => {
            if let Some(normal) = normal {
                normal.keep_parameters(|pair| !is_named(pair, name));
            }
        }
    }
}

fn take_cookie_out(headers: &mut HeaderMap, name: &str) {
    let others = |value: &HeaderValue| {
        let pairs = value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let kept: Vec<&[u8]> = pairs.filter(|pair| !pair.is_empty() && cookie_of(pair, name).is_none()).collect();
        // Parts of a header's value, put together again, are one.
        Some(kept.join(&b"; "[..])).filter(|kept| !kept.is_empty()).and_then(|kept| HeaderValue::from_bytes(&kept).ok())
    };
    let kept: Vec<HeaderValue> = headers.get_all(COOKIE).iter().filter_map(others).collect();
    headers.remove(COOKIE);
    for value in kept {
        headers.append(COOKIE, value);
    }
}

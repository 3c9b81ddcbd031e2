//! `/log`: what is logged now, and how to change that for a while.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;

use super::{reply, text};
use crate::config::duration;
use crate::log::{Levels, LogRefusal};

/// `GET`, `PUT ?filter=...&for=...` and `DELETE`.
pub(super) fn answer(levels: &Levels, method: &Method, query: Option<&str>) -> Response<Full<Bytes>> {
    let changed = match *method {
        Method::GET => Ok(()),
        Method::PUT => change(levels, query.unwrap_or_default()),
        Method::DELETE => {
            levels.back();
            Ok(())
        }
        _ => return text(StatusCode::METHOD_NOT_ALLOWED, "use GET, PUT ?filter=FILTER&for=TIME, or DELETE\n"),
    };
    match changed {
        Ok(()) => reply(StatusCode::OK, "application/json", format!("{:#}\n", levels.shown())),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

fn change(levels: &Levels, query: &str) -> Result<(), String> {
    let (mut filter, mut stay) = (None, None);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value = decoded(value).ok_or_else(|| format!("{name}: found {value:?}, expected text"))?;
        match name {
            "filter" => filter = Some(value),
            "for" => stay = Some(duration(&value).map_err(|error| format!("for: found {value:?}: {error}"))?),
            _ => return Err(format!("{name}: expected filter or for")),
        }
    }
    let filter = filter.ok_or("filter: expected error, warn, info, debug, trace, or MODULE=LEVEL,...")?;
    levels.set(&filter, stay).map_err(|refusal: LogRefusal| refusal.to_string())
}

/// Text that a client wrote with `%xx`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits =
            std::str::from_utf8(more.get(..2)?).ok().filter(|two| two.bytes().all(|c| c.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &more[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::levels;

    #[tokio::test(start_paused = true)]
    async fn the_log_is_changed_by_module_and_a_mistake_is_named() {
        let (levels, _layer) = levels("info");
        let ask = |method: Method, query: &str| answer(&levels, &method, Some(query)).status().as_u16();
        assert_eq!(ask(Method::PUT, "filter=warn,equerry_proxy%3A%3Alive%3Ddebug&for=5m"), 200);
        assert_eq!(levels.shown()["filter"], "warn,equerry_proxy::live=debug");
        assert_eq!(levels.shown()["secondsLeft"], 300);
        for wrong in ["", "filter=louder", "filter=info&for=ever", "filter=info&for=25h", "filter=%zz", "filtre=info"] {
            assert_eq!(ask(Method::PUT, wrong), 400, "{wrong}");
        }
        assert_eq!(ask(Method::POST, "filter=info"), 405);
        assert_eq!((ask(Method::DELETE, ""), levels.shown()["filter"].as_str()), (200, Some("info")));
    }
}

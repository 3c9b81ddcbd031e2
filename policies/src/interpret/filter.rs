//! The filters of rules and backends, and which of them cannot stand together.

use std::collections::BTreeSet;

use super::World;
use super::at::At;
use super::route::{not_normal, referent};
use crate::document::shape::Notes;
use crate::names::PolicyName;
use crate::policy::{
    CorsRules, HeaderEdits, OriginPattern, PathEdit, PathMatch, RequestMirror, RequestRedirect, RouteFilter,
    RouteMatch, UrlRewrite,
};

/// Each type of filter, and the key that says how.
const KEYS: [(&str, &str); 6] = [
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("CORS", "cors"),
];
/// Seconds for which a browser remembers a preflight where nothing is written (Gateway API).
const DEFAULT_MAX_AGE: u32 = 5;
/// Headers that frame a message or end at each hop: to change them would break the message.
const FRAMING: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Reads `filters` of a rule or backend. `matches` are the rule's.
pub(super) fn filters(
    of: &At<'_>,
    matches: &[RouteMatch],
    route: &PolicyName,
    world: &World,
    notes: &mut Notes<'_>,
) -> Vec<RouteFilter> {
    let mut seen = BTreeSet::new();
    let mut filters = Vec::new();
    for at in of.list("filters") {
        let Some((word, key)) = at.text_of("type").and_then(|word| KEYS.into_iter().find(|(known, _)| *known == word))
        else {
            continue;
        };
        if let Some(kind) = at.get("type").filter(|_| word != "RequestMirror" && !seen.insert(word)) {
            kind.complain_of(notes, format!("a second {word}"), "each filter but RequestMirror once");
        }
        for (_, other) in KEYS.into_iter().filter(|(_, other)| *other != key) {
            if let Some(other_at) = at.get(other) {
                other_at.complain_of(notes, format!("{other} in a {word}"), format!("{key} alone"));
            }
        }
        let Some(how) = at.get(key) else {
            at.complain_of(notes, format!("a {word} without {key}"), format!("the key {key}, which says how"));
            continue;
        };
        filters.extend(one(word, &how, matches, route, world, notes));
    }
    let has = |wanted: fn(&RouteFilter) -> bool| filters.iter().any(wanted);
    if has(|f| matches!(f, RouteFilter::Redirect(_)))
        && has(|f| matches!(f, RouteFilter::Rewrite(_)))
        && let Some(at) = of.get("filters")
    {
        at.complain_of(
            notes,
            "RequestRedirect beside URLRewrite",
            "one of the two: what is redirected is sent nowhere",
        );
    }
    filters
}

fn one(
    word: &str,
    how: &At<'_>,
    matches: &[RouteMatch],
    route: &PolicyName,
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<RouteFilter> {
    Some(match word {
        "RequestHeaderModifier" => RouteFilter::RequestHeaders(header_edits(how, true, notes)),
        "ResponseHeaderModifier" => RouteFilter::ResponseHeaders(header_edits(how, false, notes)),
        "RequestMirror" => RouteFilter::Mirror(mirror(how, route, world, notes)?),
        "RequestRedirect" => RouteFilter::Redirect(redirect(how, matches, notes)),
        "URLRewrite" => RouteFilter::Rewrite(rewrite(how, matches, notes)),
        _ => RouteFilter::Cors(cors(how, notes)),
    })
}

/// Why a route may not change a header, if so.
fn untouchable(name: &str, of_request: bool) -> Option<&'static str> {
    match name {
        "host" if of_request => Some("Host is changed by urlRewrite.hostname"),
        "x-forwarded-client-cert" if of_request => Some("the callee's sidecar says who called"),
        "proxy-status" if !of_request => Some("the mesh alone says in it what it did"),
        name if name.starts_with(super::tenant::RESERVED) => Some("x-equerry-* is reserved"),
        name if FRAMING.contains(&name) => Some("it frames the message, or ends at each hop"),
        _ => None,
    }
}

fn header_edits(how: &At<'_>, of_request: bool, notes: &mut Notes<'_>) -> HeaderEdits {
    let mut seen = BTreeSet::new();
    let mut name = |at: &At<'_>, notes: &mut Notes<'_>| {
        let name = at.text()?.to_ascii_lowercase();
        if let Some(why) = untouchable(&name, of_request) {
            at.complain(notes, format!("a header that a route may change; {why}"));
        } else if !seen.insert(name.clone()) {
            at.complain(notes, "each header once in set, add and remove together");
        }
        Some(name)
    };
    let mut valued = |key: &str, notes: &mut Notes<'_>| -> Vec<(String, String)> {
        let items = how.list(key);
        let read =
            items.iter().filter_map(|item| Some((name(&item.get("name")?, notes)?, item.text_of("value")?.to_owned())));
        read.collect()
    };
    let (set, add) = (valued("set", notes), valued("add", notes));
    let remove = how.list("remove").iter().filter_map(|item| name(item, notes)).collect();
    let edits = HeaderEdits { set, add, remove };
    if edits == HeaderEdits::default() {
        how.complain_of(notes, "nothing to set, add or remove", "at least one header to change");
    }
    edits
}

fn mirror(how: &At<'_>, route: &PolicyName, world: &World, notes: &mut Notes<'_>) -> Option<RequestMirror> {
    let fraction = how.get("fraction");
    if let (Some(_), Some(fraction)) = (how.get("percent"), &fraction) {
        fraction.complain_of(notes, "fraction beside percent", "one of the two");
    }
    let (share, out_of) = match (how.whole("percent"), &fraction) {
        (Some(percent), _) => (percent, 100),
        (None, Some(fraction)) => {
            (fraction.whole("numerator").unwrap_or(0), fraction.whole("denominator").unwrap_or(100))
        }
        (None, None) => (100, 100),
    };
    if let Some(numerator) = fraction.as_ref().and_then(|f| f.get("numerator")).filter(|_| share > out_of) {
        numerator.complain(notes, format!("a number not larger than the denominator, {out_of}"));
    }
    let to = referent(&how.get("backendRef")?, route, world, notes, "nothing is copied")?;
    // Copies that lead nowhere are not made (Gateway API).
    let (service, port) = to.ok()?;
    Some(RequestMirror { service, port, share, out_of })
}

fn redirect(how: &At<'_>, matches: &[RouteMatch], notes: &mut Notes<'_>) -> RequestRedirect {
    let status = how.whole("statusCode").unwrap_or(302);
    if let Some(code) = how.get("statusCode").filter(|_| matches!(status, 304..=306)) {
        code.complain(notes, "301, 302, 303, 307 or 308");
    }
    RequestRedirect {
        secure: how.text_of("scheme").map(|scheme| scheme == "https"),
        hostname: how.text_of("hostname").map(str::to_owned),
        port: how.whole("port"),
        path: how.get("path").and_then(|path| path_edit(&path, matches, notes)),
        status,
    }
}

fn rewrite(how: &At<'_>, matches: &[RouteMatch], notes: &mut Notes<'_>) -> UrlRewrite {
    let rewrite = UrlRewrite {
        hostname: how.text_of("hostname").map(str::to_owned),
        path: how.get("path").and_then(|path| path_edit(&path, matches, notes)),
    };
    if how.get("hostname").is_none() && how.get("path").is_none() {
        how.complain_of(notes, "nothing to rewrite", "hostname, path or both");
    }
    rewrite
}

fn path_edit(at: &At<'_>, matches: &[RouteMatch], notes: &mut Notes<'_>) -> Option<PathEdit> {
    let (word, key, other) = match at.text_of("type")? {
        "ReplaceFullPath" => ("ReplaceFullPath", "replaceFullPath", "replacePrefixMatch"),
        "ReplacePrefixMatch" => ("ReplacePrefixMatch", "replacePrefixMatch", "replaceFullPath"),
        _ => return None,
    };
    if let Some(other_at) = at.get(other) {
        other_at.complain_of(notes, format!("{other} in a {word}"), format!("{key} alone"));
    }
    let Some(value) = at.get(key) else {
        at.complain_of(notes, format!("a {word} without {key}"), format!("the key {key}, which says by what"));
        return None;
    };
    let text = value.text()?.to_owned();
    let prefix = key == "replacePrefixMatch";
    // An empty replacement is allowed for a prefix alone: it takes the prefix away.
    if let Some(wrong) = not_normal(&text).filter(|_| !(prefix && text.is_empty())) {
        value.complain(notes, format!("a normalised path that starts with '/'; {wrong}"));
    }
    if !prefix {
        return Some(PathEdit::Full(text));
    }
    if !matches!(matches, [RouteMatch { path: PathMatch::Prefix(_), .. }]) {
        let kind = at.get("type").unwrap_or_else(|| at.clone());
        kind.complain_of(
            notes,
            "ReplacePrefixMatch in a rule whose one match is not a PathPrefix",
            "exactly one match, of type PathPrefix: the prefix that is replaced",
        );
    }
    Some(PathEdit::Prefix(text))
}

fn cors(how: &At<'_>, notes: &mut Notes<'_>) -> CorsRules {
    let mut listed = |key: &str, fold: fn(&str) -> String| -> Vec<String> {
        let mut texts = Vec::new();
        for at in how.list(key) {
            let Some(text) = at.text().map(fold) else { continue };
            if texts.contains(&text) {
                at.complain(notes, "each of them once");
            }
            texts.push(text);
        }
        if let Some(at) = how.get(key).filter(|_| texts.len() > 1 && texts.iter().any(|text| text == "*")) {
            at.complain_of(notes, "* beside others", "* alone, which stands for all, or a list without it");
        }
        texts
    };
    let origins = listed("allowOrigins", str::to_ascii_lowercase);
    CorsRules {
        origins: origins.iter().filter_map(|text| OriginPattern::parse(text)).collect(),
        credentials: how.flag("allowCredentials").unwrap_or(false),
        methods: listed("allowMethods", str::to_owned),
        headers: listed("allowHeaders", str::to_ascii_lowercase),
        expose: listed("exposeHeaders", str::to_ascii_lowercase),
        max_age: how.whole("maxAge").unwrap_or(DEFAULT_MAX_AGE),
    }
}

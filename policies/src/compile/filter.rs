//! Filters with their names, values and paths parsed, so that nothing is parsed or refused while a request waits.

use http::{HeaderName, HeaderValue, StatusCode};

use crate::complaint::Complaint;
use crate::names::ServiceName;
use crate::policy::{self, CorsRules, Origin, OriginPattern, PathMatch, RouteFilter, RouteMatch};

/// What is done to requests and responses beside sending them somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Changes headers of the request.
    RequestHeaders(HeaderEdits),
    /// Changes headers of the response.
    ResponseHeaders(HeaderEdits),
    /// Answers with another address.
    Redirect(Redirect),
    /// Changes host and path of the request.
    Rewrite(Rewrite),
    /// Sends copies elsewhere.
    Mirror(Mirror),
    /// Lets scripts of other origins read the answers.
    Cors(Cors),
}

/// Changes to headers; each header is named once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderEdits {
    /// The header is this, whatever it was.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// The header has this value beside those it has.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// The header is gone.
    pub remove: Vec<HeaderName>,
}

/// Where a caller is sent instead; what is `None` stays as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `true`: https, `false`: http.
    pub secure: Option<bool>,
    /// The host.
    pub hostname: Option<Box<str>>,
    /// The port.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<PathEdit>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// What host and path are changed to; what is `None` stays as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// The whole authority.
    pub authority: Option<HeaderValue>,
    /// The path.
    pub path: Option<PathEdit>,
}

/// How a path is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathEdit {
    /// It becomes this.
    Full(Box<str>),
    /// Its beginning `from` becomes `to`; neither ends with a slash, and each may be empty.
    Prefix {
        /// The prefix that matched.
        from: Box<str>,
        /// What stands in its place.
        to: Box<str>,
    },
}

/// Where copies of requests go, and of how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The Service.
    pub service: ServiceName,
    /// The Service port; `None`: its only one.
    pub port: Option<u16>,
    /// Of `out_of` requests so many are copied.
    pub share: u32,
    /// See `share`; never 0.
    pub out_of: u32,
}

/// Which scripts of other origins may read the answers, and what they may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins that may.
    pub origins: Vec<OriginPattern>,
    /// With cookies and the like.
    pub credentials: bool,
    /// Methods that scripts may use.
    pub methods: Allowed,
    /// Headers that scripts may send.
    pub headers: Allowed,
    /// Headers of the response that scripts may read.
    pub expose: Allowed,
    /// For how many seconds a browser remembers it.
    pub max_age: HeaderValue,
}

/// A list as it is told to browsers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Nothing beside what browsers always allow.
    Nothing,
    /// Everything.
    All,
    /// These, separated by commas.
    These(HeaderValue),
}

impl PathEdit {
    /// The new path, for a path that the rule's match fits. It begins with a slash.
    pub fn apply(&self, path: &str) -> String {
        match self {
            Self::Full(new) => new.to_string(),
            Self::Prefix { from, to } => {
                let rest = path.strip_prefix(&**from).unwrap_or(path);
                let new = format!("{to}{rest}");
                if new.starts_with('/') { new } else { format!("/{new}") }
            }
        }
    }
}

/// Compiles the filters of a rule or backend; `key` is theirs in the document, `matches` are the rule's.
pub(super) fn filters(
    from: &[RouteFilter],
    matches: &[RouteMatch],
    origin: &Origin,
    key: &str,
    complaints: &mut Vec<Complaint>,
) -> Vec<Filter> {
    let mut compiled = Vec::new();
    for (number, filter) in from.iter().enumerate() {
        match one(filter, matches) {
            Ok(filter) => compiled.push(filter),
            Err((found, expected)) => {
                complaints.push(Complaint::at(origin, format!("{key}[{number}]"), found, expected));
            }
        }
    }
    compiled
}

/// What was found and what is expected.
type Wrong = (String, &'static str);

fn one(filter: &RouteFilter, matches: &[RouteMatch]) -> Result<Filter, Wrong> {
    Ok(match filter {
        RouteFilter::RequestHeaders(edits) => Filter::RequestHeaders(header_edits(edits)?),
        RouteFilter::ResponseHeaders(edits) => Filter::ResponseHeaders(header_edits(edits)?),
        RouteFilter::Redirect(to) => Filter::Redirect(Redirect {
            secure: to.secure,
            hostname: to.hostname.as_deref().map(Into::into),
            port: to.port,
            path: to.path.as_ref().map(|path| path_edit(path, matches)).transpose()?,
            status: StatusCode::from_u16(to.status).map_err(|_| (to.status.to_string(), "a status of redirection"))?,
        }),
        RouteFilter::Rewrite(to) => Filter::Rewrite(Rewrite {
            authority: to.hostname.as_deref().map(value).transpose()?,
            path: to.path.as_ref().map(|path| path_edit(path, matches)).transpose()?,
        }),
        RouteFilter::Mirror(mirror) if mirror.out_of == 0 => {
            return Err(("a fraction of 0 requests".to_owned(), "a denominator above 0"));
        }
        RouteFilter::Mirror(mirror) => Filter::Mirror(Mirror {
            service: mirror.service.clone(),
            port: mirror.port,
            share: mirror.share,
            out_of: mirror.out_of,
        }),
        RouteFilter::Cors(rules) => Filter::Cors(cors(rules)?),
    })
}

fn header_edits(from: &policy::HeaderEdits) -> Result<HeaderEdits, Wrong> {
    let pairs = |list: &[(String, String)]| -> Result<Vec<_>, Wrong> {
        list.iter().map(|(named, text)| Ok((name(named)?, value(text)?))).collect()
    };
    Ok(HeaderEdits {
        set: pairs(&from.set)?,
        add: pairs(&from.add)?,
        remove: from.remove.iter().map(|named| name(named)).collect::<Result<_, _>>()?,
    })
}

fn name(text: &str) -> Result<HeaderName, Wrong> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| (format!("{text:?}"), "the name of a header"))
}

fn value(text: &str) -> Result<HeaderValue, Wrong> {
    HeaderValue::from_str(text).map_err(|_| (format!("{text:?}"), "the value of a header"))
}

fn path_edit(from: &policy::PathEdit, matches: &[RouteMatch]) -> Result<PathEdit, Wrong> {
    let bare = |path: &str| path.strip_suffix('/').unwrap_or(path).into();
    match (from, matches) {
        (policy::PathEdit::Full(path), _) => Ok(PathEdit::Full(path.as_str().into())),
        (policy::PathEdit::Prefix(to), [RouteMatch { path: PathMatch::Prefix(prefix), .. }]) => {
            Ok(PathEdit::Prefix { from: bare(prefix), to: bare(to) })
        }
        (policy::PathEdit::Prefix(_), _) => {
            Err(("ReplacePrefixMatch".to_owned(), "exactly one match, of type PathPrefix, in its rule"))
        }
    }
}

fn cors(from: &CorsRules) -> Result<Cors, Wrong> {
    let allowed = |list: &[String]| match list {
        [] => Ok(Allowed::Nothing),
        [all] if all == "*" => Ok(Allowed::All),
        these => value(&these.join(", ")).map(Allowed::These),
    };
    Ok(Cors {
        origins: from.origins.clone(),
        credentials: from.credentials,
        methods: allowed(&from.methods)?,
        headers: allowed(&from.headers)?,
        expose: allowed(&from.expose)?,
        max_age: HeaderValue::from(from.max_age),
    })
}

#[cfg(test)]
mod tests {
    use super::PathEdit;

    #[test]
    fn a_prefix_is_replaced_as_in_the_specifications_table() {
        let bare = |path: &str| path.strip_suffix('/').unwrap_or(path).into();
        for (path, from, to, new) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
        ] {
            let edit = PathEdit::Prefix { from: bare(from), to: bare(to) };
            assert_eq!(edit.apply(path), new, "{path} {from} {to}");
        }
    }
}

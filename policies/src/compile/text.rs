//! Texts that must be something: Istio's four string matches, and the anchored regular expressions of routes.
//!
//! Regular expressions are linear-time by construction and limited in size, so no policy can make a request expensive.

use std::fmt;

use regex::Regex;

use crate::complaint::Complaint;
use crate::policy::{Origin, PathTemplate, StringMatch, TextMatch, whole_match};

/// What a text must be, in authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// There is a text, and it is not empty.
    Present,
    /// Exactly this.
    Exact(Box<str>),
    /// Begins with this.
    Prefix(Box<str>),
    /// Ends with this.
    Suffix(Box<str>),
    /// A path with places left open.
    Template(Box<Template>),
}

/// A path with places left open, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The segments before `{**}`; `None`: any one that is not empty.
    head: Box<[Option<Box<str>>]>,
    /// Where there is a `{**}`, what the path must end with.
    tail: Option<Box<str>>,
    written: Box<str>,
}

impl Template {
    fn new(from: &PathTemplate) -> Self {
        let written = from.as_str();
        let (head, tail) = match written.split_once("/{**}") {
            Some((head, tail)) => (head, Some(tail.into())),
            None => (written, None),
        };
        let open = |segment: &str| if segment == "{*}" { None } else { Some(segment.into()) };
        let head = head.strip_prefix('/').map(|head| head.split('/').map(open).collect()).unwrap_or_default();
        Self { head, tail, written: written.into() }
    }

    fn matches(&self, path: &str) -> bool {
        let Some(mut rest) = path.strip_prefix('/') else { return false };
        for (number, wanted) in self.head.iter().enumerate() {
            let last = self.tail.is_none() && number + 1 == self.head.len();
            let (segment, after) = match rest.split_once('/') {
                Some(_) if last => return false,
                None if !last => return false,
                Some(parted) => parted,
                None => (rest, ""),
            };
            if !wanted.as_deref().map_or(!segment.is_empty(), |wanted| wanted == segment) {
                return false;
            }
            rest = after;
        }
        self.tail.as_deref().is_none_or(|tail| rest.ends_with(tail))
    }
}

impl Pattern {
    /// The compiled form of a string match.
    pub fn new(from: &StringMatch) -> Self {
        match from {
            StringMatch::Present => Self::Present,
            StringMatch::Exact(text) => Self::Exact(text.as_str().into()),
            StringMatch::Prefix(text) => Self::Prefix(text.as_str().into()),
            StringMatch::Suffix(text) => Self::Suffix(text.as_str().into()),
            StringMatch::Template(template) => Self::Template(Box::new(Template::new(template))),
        }
    }

    /// The compiled form of a string match over a text that is always lower case.
    pub fn lower_case(from: &StringMatch) -> Self {
        match Self::new(from) {
            Self::Present => Self::Present,
            Self::Exact(text) => Self::Exact(text.to_ascii_lowercase().into()),
            Self::Prefix(text) => Self::Prefix(text.to_ascii_lowercase().into()),
            Self::Suffix(text) => Self::Suffix(text.to_ascii_lowercase().into()),
            Self::Template(template) => Self::Template(template),
        }
    }

    /// Whether `text` is what it must be.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Present => !text.is_empty(),
            Self::Exact(wanted) => **wanted == *text,
            Self::Prefix(wanted) => text.starts_with(&**wanted),
            Self::Suffix(wanted) => text.ends_with(&**wanted),
            Self::Template(template) => template.matches(text),
        }
    }

    /// Whether these bytes, which may be no text, are what they must be.
    pub fn matches_bytes(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Present => !bytes.is_empty(),
            Self::Exact(wanted) => wanted.as_bytes() == bytes,
            Self::Prefix(wanted) => bytes.starts_with(wanted.as_bytes()),
            Self::Suffix(wanted) => bytes.ends_with(wanted.as_bytes()),
            Self::Template(template) => std::str::from_utf8(bytes).is_ok_and(|text| template.matches(text)),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Template(template) => f.write_str(&template.written),
        }
    }
}

/// What a header's value must be, in routes.
#[derive(Debug, Clone)]
pub enum HeaderPattern {
    /// Exactly this.
    Exact(Box<str>),
    /// All of it matches.
    Regex(Regex),
}

impl HeaderPattern {
    /// Compiles a header's match; `key` names it in a complaint.
    pub(crate) fn new(from: &TextMatch, origin: &Origin, key: &str) -> Result<Self, Complaint> {
        match from {
            TextMatch::Exact(text) => Ok(Self::Exact(text.as_str().into())),
            TextMatch::Regex(text) => whole(text, origin, key).map(Self::Regex),
        }
    }

    /// Whether `value` is what it must be. A value that is not UTF-8 never is.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == value,
            Self::Regex(regex) => std::str::from_utf8(value).is_ok_and(|text| regex.is_match(text)),
        }
    }
}

/// Compiles a regular expression that must match a whole text; `key` names it in a complaint.
pub(crate) fn whole(text: &str, origin: &Origin, key: &str) -> Result<Regex, Complaint> {
    whole_match(text).map_err(|why| Complaint::at(origin, key, why, "a regular expression that matches in linear time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_expression_must_match_the_whole_text() {
        let regex = whole("a|b", &Origin::default(), "k").unwrap();
        assert!(regex.is_match("a") && regex.is_match("b"));
        assert!(!regex.is_match("ab") && !regex.is_match("xb") && !regex.is_match("a\n"));
    }

    #[test]
    fn an_expression_that_would_escape_its_anchors_is_refused() {
        assert!(whole("a)|(?:b", &Origin::default(), "k").is_err());
        assert!(whole("(?=a)", &Origin::default(), "k").is_err());
        assert!(whole("(a{1000}){1000}", &Origin::default(), "k").unwrap_err().found.contains("compiles to more"));
    }

    /// The examples of Istio's reference, and our own corners.
    #[test]
    fn a_template_leaves_places_open_as_istio_documents_them() {
        for (template, fits, misses) in [
            ("/foo/{*}", &["/foo/bar"][..], &["/foo/bar/baz", "/foo", "/foo/", "/fo/bar", "foo/bar"][..]),
            (
                "/foo/{*}/bar/{**}",
                &["/foo/buzz/bar/", "/foo/buzz/bar/baz", "/foo/b/bar/a/b"],
                &["/foo/buzz/bar", "/foo//bar/x"],
            ),
            ("/foo/{**}/", &["/foo/bar/", "/foo//"], &["/foo/bar", "/foo/"]),
            ("/{**}", &["/", "/a", "/a/b"], &["", "*"]),
            ("/{*}", &["/a"], &["/", "/a/"]),
            ("/a/{**}/z", &["/a/b/z", "/a/b/c/z"], &["/a/z", "/a/b/zz"]),
        ] {
            let pattern = Pattern::new(&StringMatch::Template(PathTemplate::parse(template).unwrap()));
            assert_eq!(pattern.to_string(), template);
            for path in fits {
                assert!(pattern.matches(path), "{template} {path}");
            }
            for path in misses {
                assert!(!pattern.matches(path), "{template} {path}");
            }
        }
        for bad in ["/*/baz/{*}", "/**/baz/{*}", "/{**}/foo/{*}", "/foo/{*}.txt", "{*}", "/a/{b}"] {
            assert!(PathTemplate::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_present_text_is_not_an_empty_one() {
        assert!(Pattern::Present.matches("x") && !Pattern::Present.matches(""));
    }
}

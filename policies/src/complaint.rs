//! A mistake, for the person who made it: where it is, what was found, what is expected, the nearest spelling. What is no
//! mistake, but hardly meant, is told in the same form, as a warning.
//!
//! Every part of this crate that refuses input refuses it with these, all of them at once. They travel through the
//! admin API unchanged, so their serde form is part of that contract.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::Origin;

/// What `expected` begins with when a thing is known, but not built yet.
pub const NOT_SUPPORTED: &str = "not supported by this version";

/// Longest source line that a snippet shows whole.
const SNIPPET_WIDTH: usize = 120;

/// One mistake in what somebody wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Complaint {
    /// The file as it was named on the command line; empty when the document came as JSON.
    #[serde(default)]
    pub file: String,
    /// The line, counted from 1; 0 when unknown.
    #[serde(default)]
    pub line: u32,
    /// The column, counted from 1 in characters; 0 when unknown.
    #[serde(default)]
    pub column: u32,
    /// The dotted path within the document, such as `spec.rules[0].backendRefs[0].name`; empty for the whole document.
    #[serde(default)]
    pub key: String,
    /// What was found there, in words; texts are quoted.
    pub found: String,
    /// What is expected there, in words; begins with [`NOT_SUPPORTED`] for what is known but not built.
    pub expected: String,
    /// The nearest spelling that would have been right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<String>,
    /// The line of the file, with a caret under the place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snippet: Option<String>,
    /// The document, such as `HTTPRoute shop/inventory`, where it could be read so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// It may be meant, and nothing is refused for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warning: bool,
}

impl Complaint {
    /// A complaint about a thing whose place is known only as far as its origin.
    pub fn at(origin: &Origin, key: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            file: origin.file.clone().unwrap_or_default(),
            line: origin.line,
            key: key.into(),
            found: found.into(),
            expected: expected.into(),
            ..Self::default()
        }
    }

    /// The same complaint, naming the document it is about.
    #[must_use]
    pub fn in_document(mut self, document: impl fmt::Display) -> Self {
        self.document = Some(document.to_string());
        self
    }

    /// The same complaint, with the nearest right spelling.
    #[must_use]
    pub fn with_nearest(mut self, nearest: Option<&str>) -> Self {
        self.nearest = nearest.map(str::to_owned);
        self
    }

    /// Whether both are about the same key of one document.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        (&self.file, &self.key) == (&other.file, &other.key)
    }

    /// Whether both say the same of the same document, wherever each read it.
    pub fn says_what(&self, other: &Self) -> bool {
        let of = |one: &Self| (one.document.clone(), one.key.clone(), one.found.clone(), one.expected.clone());
        of(self) == of(other)
    }

    /// Whether the thing found is known, and only not built yet.
    pub fn is_unsupported(&self) -> bool {
        self.expected.starts_with(NOT_SUPPORTED)
    }

    /// The complaint in one line, without the snippet.
    pub fn line(&self) -> String {
        let warning = if self.warning { "warning: " } else { "" };
        format!("{}{warning}{}", self.place(), self.sentence())
    }

    /// The same without the place: key, found and expected.
    pub fn sentence(&self) -> String {
        let mut text = String::new();
        if !self.key.is_empty() {
            text.push_str(&self.key);
            text.push_str(": ");
        }
        text.push_str("found ");
        text.push_str(&self.found);
        text.push_str(if self.is_unsupported() { ", which is " } else { ", expected " });
        text.push_str(&self.expected);
        if let Some(nearest) = &self.nearest {
            text.push_str("; did you mean ");
            text.push_str(nearest);
            text.push('?');
        }
        text
    }

    fn place(&self) -> String {
        match (self.file.as_str(), self.line, self.column, &self.document) {
            ("", 0, _, Some(document)) => format!("{document}: "),
            ("", 0, _, None) => String::new(),
            (file, 0, _, _) => format!("{file}: "),
            (file, line, 0, _) => format!("{}:{line}: ", if file.is_empty() { "-" } else { file }),
            (file, line, column, _) => format!("{}:{line}:{column}: ", if file.is_empty() { "-" } else { file }),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())?;
        if let Some(snippet) = &self.snippet {
            write!(f, "\n{snippet}")?;
        }
        Ok(())
    }
}

/// `text`, which is line `number`, with a caret of `length` characters under `column`; both counted from 1. A long line
/// is cut around the place.
pub(crate) fn snippet(text: &str, number: u32, column: u32, length: u32) -> Option<String> {
    let column = usize::try_from(column).ok()?.saturating_sub(1);
    let start = if text.len() <= SNIPPET_WIDTH { 0 } else { column.saturating_sub(SNIPPET_WIDTH / 3) };
    let shown: String =
        text.chars().skip(start).take(SNIPPET_WIDTH).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = start + shown.chars().count();
    let column = column.min(end);
    let carets = usize::try_from(length).ok()?.clamp(1, (end - column).max(1));
    let number = number.to_string();
    let margin = " ".repeat(number.len());
    let (indent, carets) = (" ".repeat(column - start), "^".repeat(carets));
    Some(format!("{margin} |\n{number} | {}\n{margin} | {indent}{carets}", shown.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_reads_as_one_sentence() {
        let complaint = Complaint {
            file: "shop.yaml".into(),
            line: 2,
            column: 9,
            key: "spec.a".into(),
            found: "\"inventry\"".into(),
            expected: "a Service of namespace shop".into(),
            nearest: Some("inventory".into()),
            snippet: snippet("  name: inventry", 2, 9, 8),
            ..Complaint::default()
        };
        let warning = Complaint { warning: true, ..complaint.clone() };
        assert!(warning.to_string().starts_with("shop.yaml:2:9: warning: spec.a: found "), "{warning}");
        assert_eq!(
            complaint.to_string(),
            "shop.yaml:2:9: spec.a: found \"inventry\", expected a Service of namespace shop; did you mean inventory?\n  \
             |\n2 |   name: inventry\n  |         ^^^^^^^^"
        );
    }

    #[test]
    fn a_snippet_of_a_long_line_shows_the_place() {
        let line = format!("{}HERE{}", "x".repeat(500), "y".repeat(500));
        let shown = snippet(&line, 1, 501, 4).unwrap();
        assert!(shown.contains("HERE") && shown.lines().all(|l| l.chars().count() < 140), "{shown}");
        assert!(snippet("short", 7, 1000, 1000).unwrap().ends_with("     ^"));
    }
}

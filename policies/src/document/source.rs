//! The text that documents were read from, kept so that a complaint can show the line it is about.

use super::node::Mark;
use crate::complaint::{Complaint, snippet};

/// A file and its text.
#[derive(Debug)]
pub(crate) struct Source {
    file: String,
    text: String,
}

impl Source {
    pub(crate) fn new(file: &str, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned() }
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// A complaint about a place of this file, its line shown.
    pub(crate) fn complaint(&self, mark: Mark, key: String, found: String, expected: String) -> Complaint {
        Complaint {
            file: self.file.clone(),
            line: mark.line,
            column: mark.column,
            key,
            found,
            expected,
            nearest: None,
            snippet: snippet(&self.text, mark.line, mark.column, mark.length),
            document: None,
        }
    }
}

//! The text that documents were read from, kept so that a complaint can show the line it is about.

use super::node::Mark;
use crate::complaint::{Complaint, snippet};

/// A file and its text.
#[derive(Debug)]
pub(crate) struct Source {
    file: String,
    text: String,
    /// Where each line begins, so that many complaints about a large file stay cheap.
    lines: Vec<usize>,
}

impl Source {
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { file: file.to_owned(), text: text.to_owned(), lines: std::iter::once(0).chain(starts).collect() }
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
            snippet: self.line(mark.line).and_then(|line| snippet(line, mark.line, mark.column, mark.length)),
            document: None,
            warning: false,
        }
    }

    fn line(&self, number: u32) -> Option<&str> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let start = *self.lines.get(index)?;
        let end = self.lines.get(index + 1).copied().unwrap_or(self.text.len());
        self.text.get(start..end).map(|line| line.trim_end_matches(['\n', '\r']))
    }
}

//! A place in a document that is being read, and the path that leads to it.
//!
//! Values of the wrong form read as nothing: the structural check has complained about them already.

use std::time::Duration;

use crate::document::node::{Node, Value};
use crate::document::shape::{Notes, join};
use crate::policy::{Origin, StringMatch, bytes, duration};

/// A value, and its path.
#[derive(Clone)]
pub(super) struct At<'d> {
    pub(super) node: &'d Node,
    pub(super) path: String,
}

impl<'d> At<'d> {
    pub(super) fn root(node: &'d Node) -> Self {
        Self { node, path: String::new() }
    }

    /// The value under `key`; null counts as none.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        Some(Self { node: self.node.get(key)?, path: join(&self.path, key) })
    }

    /// The items of the list under `key`; none if there is no list.
    pub(super) fn list(&self, key: &str) -> Vec<Self> {
        self.get(key).map(|list| list.items()).unwrap_or_default()
    }

    fn items(&self) -> Vec<Self> {
        let Value::List(items) = &self.node.value else { return Vec::new() };
        items.iter().enumerate().map(|(i, node)| Self { node, path: format!("{}[{i}]", self.path) }).collect()
    }

    /// The entries of the map under `key`; none if there is no map.
    pub(super) fn map(&self, key: &str) -> Vec<(&'d str, Self)> {
        let Some(map) = self.get(key) else { return Vec::new() };
        let Value::Map(entries) = &map.node.value else { return Vec::new() };
        entries.iter().map(|e| (&*e.key, Self { node: &e.value, path: join(&map.path, &e.key) })).collect()
    }

    pub(super) fn text(&self) -> Option<&'d str> {
        self.node.text()
    }

    pub(super) fn text_of(&self, key: &str) -> Option<&'d str> {
        self.node.get(key)?.text()
    }

    /// The texts of the list under `key`.
    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        self.list(key).iter().filter_map(|item| item.text().map(str::to_owned)).collect()
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        match self.node.get(key)?.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The whole number under `key`, if it fits.
    pub(super) fn whole<T: TryFrom<i64>>(&self, key: &str) -> Option<T> {
        self.get(key)?.number()
    }

    /// This whole number, if it is one and fits; Istio's ports as text count.
    pub(super) fn number<T: TryFrom<i64>>(&self) -> Option<T> {
        match &self.node.value {
            Value::Whole(number) => T::try_from(*number).ok(),
            Value::Text(text) => T::try_from(text.parse().ok()?).ok(),
            _ => None,
        }
    }

    pub(super) fn duration(&self, key: &str) -> Option<Duration> {
        duration(self.text_of(key)?)
    }

    /// The number of bytes under `key`, with or without a unit.
    pub(super) fn bytes(&self, key: &str) -> Option<u64> {
        self.whole(key).or_else(|| bytes(self.text_of(key)?))
    }

    pub(super) fn parse<T>(&self, key: &str) -> Option<T>
    where
        T: std::str::FromStr,
    {
        self.text_of(key)?.parse().ok()
    }

    /// Where this was written.
    pub(super) fn origin(&self, notes: &Notes<'_>) -> Origin {
        notes.document.origin_of(self.node)
    }

    pub(super) fn complain(&self, notes: &mut Notes<'_>, expected: impl Into<String>) {
        self.complain_of(notes, self.node.in_words(), expected);
    }

    pub(super) fn complain_of(&self, notes: &mut Notes<'_>, found: impl Into<String>, expected: impl Into<String>) {
        notes.complain(self.node.mark, &self.path, found, expected);
    }

    pub(super) fn complain_near(&self, notes: &mut Notes<'_>, expected: impl Into<String>, nearest: Option<&str>) {
        notes.complain(self.node.mark, &self.path, self.node.in_words(), expected).nearest = nearest.map(str::to_owned);
    }

    pub(super) fn warn_near(&self, notes: &mut Notes<'_>, expected: impl Into<String>, nearest: Option<&str>) {
        notes.warn(self.node.mark, &self.path, self.node.in_words(), expected, nearest);
    }

    pub(super) fn unsupported(&self, notes: &mut Notes<'_>, instead: &str) {
        notes.unsupported(self.node.mark, &self.path, self.node.in_words(), instead);
    }

    /// The string matches of the list under `key`, each text first seen by `each`, which may complain and refuse it.
    pub(super) fn matches(
        &self,
        key: &str,
        notes: &mut Notes<'_>,
        mut each: impl FnMut(&Self, &str, &mut Notes<'_>) -> bool,
    ) -> Vec<StringMatch> {
        let mut found = Vec::new();
        for item in self.list(key) {
            let Some(text) = item.text().filter(|text| !text.is_empty()) else { continue };
            if !each(&item, text, notes) {
                continue;
            }
            match string_match(text) {
                Some(read) => found.push(read),
                None => item.complain(notes, "a text, PREFIX*, *SUFFIX, or * alone: one star at most, at an end"),
            }
        }
        found
    }
}

/// Istio's string match; `None` where a star stands elsewhere than at one end.
fn string_match(text: &str) -> Option<StringMatch> {
    if text == "*" {
        return Some(StringMatch::Present);
    }
    let read = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (None, None) => StringMatch::Exact(text.to_owned()),
        (None, Some(prefix)) => StringMatch::Prefix(prefix.to_owned()),
        (Some(suffix), None) => StringMatch::Suffix(suffix.to_owned()),
        (Some(_), Some(_)) => return None,
    };
    let (StringMatch::Exact(rest) | StringMatch::Prefix(rest) | StringMatch::Suffix(rest)) = &read else { return None };
    (!rest.contains('*')).then_some(read)
}

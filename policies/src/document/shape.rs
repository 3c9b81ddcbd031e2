//! What a document may look like, as tables: the one source of the structural check and of the JSON Schemas.
//!
//! A table says of every key whether it must, may or may not yet stand there, and of every value which form it has.
//! The check walks a document beside its table and complains about everything that does not fit; what remains for
//! [`crate::interpret`] is meaning.

use super::Document;
use super::node::{Entry, Mark, Node, Value, quoted};
use crate::complaint::{Complaint, NOT_SUPPORTED};
use crate::names::nearest;
use crate::policy::bytes;

/// After so many complaints about one document the rest is not written down.
const MAX_COMPLAINTS: usize = 200;

/// The keys of a map.
pub(crate) struct Shape {
    pub(crate) about: &'static str,
    pub(crate) fields: &'static [Field],
}

/// One key.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) need: Need,
    pub(crate) form: Form,
    pub(crate) about: &'static str,
}

/// Whether a key stands there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Must,
    May,
    /// Known from a standard or planned: refused as such.
    Unbuilt,
    /// Harmless, and without meaning here: what a Kubernetes API server adds.
    Ignored,
}

/// What a value looks like.
pub(crate) enum Form {
    /// Whatever it is, it is not looked at.
    Anything,
    Bool,
    /// A whole number between the two, inclusive.
    Whole(i64, i64),
    /// So many bytes, inclusive: a whole number, or a text with a unit such as `64Ki`.
    Bytes(u64, u64),
    Text(&'static Text),
    Choice(&'static Choice),
    /// So many items of one form: at least, at most.
    List(&'static Form, usize, usize),
    Object(&'static Shape),
    /// Keys of the writer's choice.
    Map(&'static Text, &'static Form),
    /// A port as a number or, as Istio writes it, as a text of digits.
    PortText,
    /// A port as a number; a port's name is not supported yet.
    TargetPort,
    /// A JSON Web Key Set as JSON text, or written out as a map.
    KeySet,
}

/// A text, and which texts are right.
pub(crate) struct Text {
    pub(crate) expected: &'static str,
    /// A regular expression for editors; the check is what counts.
    pub(crate) pattern: Option<&'static str>,
    pub(crate) check: fn(&str) -> bool,
}

/// One word of a few.
pub(crate) struct Choice {
    pub(crate) built: &'static [&'static str],
    /// Known words that this version refuses.
    pub(crate) unbuilt: &'static [&'static str],
    /// What holds when nothing is written, for the schema.
    pub(crate) default: Option<&'static str>,
}

/// A key that must stand there.
pub(crate) const fn must(name: &'static str, form: Form, about: &'static str) -> Field {
    Field { name, need: Need::Must, form, about }
}

/// A key that may stand there.
pub(crate) const fn may(name: &'static str, form: Form, about: &'static str) -> Field {
    Field { name, need: Need::May, form, about }
}

/// A key that is known, and refused because it is not built.
pub(crate) const fn unbuilt(name: &'static str) -> Field {
    Field { name, need: Need::Unbuilt, form: Form::Anything, about: "Not supported by this version." }
}

/// A key that is accepted and means nothing here.
pub(crate) const fn ignored(name: &'static str) -> Field {
    Field {
        name,
        need: Need::Ignored,
        form: Form::Anything,
        about: "Accepted for Kubernetes' sake; means nothing here.",
    }
}

/// Complaints about one document, gathered while it is read.
pub(crate) struct Notes<'d> {
    pub(crate) document: &'d Document,
    pub(crate) list: Vec<Complaint>,
    /// What is no mistake, but hardly meant.
    pub(crate) warnings: Vec<Complaint>,
    rest: Complaint,
}

impl<'d> Notes<'d> {
    pub(crate) fn new(document: &'d Document) -> Self {
        Self { document, list: Vec::new(), warnings: Vec::new(), rest: Complaint::default() }
    }

    pub(crate) fn complain(
        &mut self,
        mark: Mark,
        path: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> &mut Complaint {
        if self.list.len() == MAX_COMPLAINTS {
            let found = format!("more than {MAX_COMPLAINTS} mistakes in this document");
            self.list.push(self.document.complaint(
                mark,
                String::new(),
                found,
                "fewer: the rest was not written down".into(),
            ));
        }
        if self.list.len() > MAX_COMPLAINTS {
            return &mut self.rest; // nobody reads it
        }
        self.list.push(self.document.complaint(mark, path.to_owned(), found.into(), expected.into()));
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// Tells of what is no mistake, but hardly meant.
    pub(crate) fn warn(
        &mut self,
        mark: Mark,
        path: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
        nearest: Option<&str>,
    ) {
        if self.warnings.len() < MAX_COMPLAINTS {
            let told = self.document.complaint(mark, path.to_owned(), found.into(), expected.into());
            self.warnings.push(Complaint { warning: true, ..told.with_nearest(nearest) });
        }
    }

    /// Complains about a known thing that is not built.
    pub(crate) fn unsupported(&mut self, mark: Mark, path: &str, found: impl Into<String>, instead: &str) {
        let expected =
            if instead.is_empty() { NOT_SUPPORTED.to_owned() } else { format!("{NOT_SUPPORTED}; {instead}") };
        self.complain(mark, path, found, expected);
    }
}

/// The path of `key` below `path`.
pub(crate) fn join(path: &str, key: &str) -> String {
    let simple = !key.is_empty() && key.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-'));
    match (path.is_empty(), simple) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{path}.{key}"),
        (_, false) => format!("{path}[{}]", quoted(key)),
    }
}

/// Walks a map beside its table.
pub(crate) fn check(node: &Node, shape: &Shape, path: &str, notes: &mut Notes<'_>) {
    let Value::Map(entries) = &node.value else {
        notes.complain(node.mark, path, node.in_words(), "a map");
        return;
    };
    for entry in entries {
        if notes.list.len() > MAX_COMPLAINTS {
            return;
        }
        check_entry(entry, shape, path, notes);
    }
    for field in shape.fields {
        if field.need == Need::Must && node.get(field.name).is_none() {
            let mark = node.entry(field.name).map_or(node.mark, |entry| entry.mark);
            notes.complain(mark, &join(path, field.name), "nothing", in_words(&field.form));
        }
    }
}

fn check_entry(entry: &Entry, shape: &Shape, path: &str, notes: &mut Notes<'_>) {
    let path = join(path, &entry.key);
    match shape.fields.iter().find(|field| field.name == &*entry.key) {
        None => {
            let known = || shape.fields.iter().filter(|f| f.need != Need::Ignored).map(|f| f.name);
            let built: Vec<_> =
                shape.fields.iter().filter(|f| matches!(f.need, Need::Must | Need::May)).map(|f| f.name).collect();
            let expected = if built.is_empty() { "no keys".to_owned() } else { format!("one of {}", built.join(", ")) };
            notes.complain(entry.mark, &path, format!("the unknown key {}", quoted(&entry.key)), expected).nearest =
                nearest(&entry.key, known()).map(str::to_owned);
        }
        Some(field) => match field.need {
            Need::Ignored => {}
            // A key left empty by a template must not quietly widen a policy.
            Need::May if entry.value.value == Value::Null => {
                notes.complain(
                    entry.mark,
                    &path,
                    "nothing",
                    format!("{}; leave the key out to leave it unsaid", in_words(&field.form)),
                );
            }
            Need::Must if entry.value.value == Value::Null => {} // complained about as missing
            Need::Unbuilt => notes.unsupported(entry.mark, &path, format!("the key {}", field.name), ""),
            Need::Must | Need::May => check_value(&entry.value, &field.form, &path, notes),
        },
    }
}

fn check_value(node: &Node, form: &Form, path: &str, notes: &mut Notes<'_>) {
    match (form, &node.value) {
        (Form::Anything, _) | (Form::Bool, Value::Bool(_)) | (Form::KeySet, Value::Text(_) | Value::Map(_)) => {}
        (Form::Whole(min, max), Value::Whole(number)) if (min..=max).contains(&number) => {}
        (Form::Bytes(min, max), Value::Whole(number))
            if u64::try_from(*number).is_ok_and(|n| (*min..=*max).contains(&n)) => {}
        (Form::Bytes(min, max), Value::Text(text)) if bytes(text).is_some_and(|n| (*min..=*max).contains(&n)) => {}
        (Form::Text(text), Value::Text(found)) => {
            if !(text.check)(found) {
                notes.complain(node.mark, path, quoted(found), text.expected);
            }
        }
        (Form::Choice(choice), Value::Text(found)) => check_choice(node, choice, found, path, notes),
        (Form::List(of, min, max), Value::List(items)) => {
            if items.len() < *min || items.len() > *max {
                let found = if items.is_empty() { node.in_words() } else { format!("{} items", items.len()) };
                notes.complain(node.mark, path, found, in_words(form));
            }
            for (index, item) in items.iter().enumerate().take(*max) {
                check_value(item, of, &format!("{path}[{index}]"), notes);
            }
        }
        (Form::Object(shape), Value::Map(_)) => check(node, shape, path, notes),
        (Form::Map(keys, values), Value::Map(entries)) => {
            for entry in entries {
                let path = join(path, &entry.key);
                if !(keys.check)(&entry.key) {
                    notes.complain(entry.mark, &path, format!("the key {}", quoted(&entry.key)), keys.expected);
                }
                check_value(&entry.value, values, &path, notes);
            }
        }
        (Form::PortText | Form::TargetPort, Value::Whole(port)) if (1..=65535).contains(port) => {}
        (Form::PortText, Value::Text(text)) if text.parse::<u16>().is_ok_and(|port| port != 0) => {}
        (Form::TargetPort, Value::Text(text)) => {
            notes.unsupported(node.mark, path, format!("the port name {}", quoted(text)), "write the port's number");
        }
        _ => {
            let expected = in_words(form);
            let hint = matches!(
                (form, &node.value),
                (Form::Text(_) | Form::Choice(_), Value::Whole(_) | Value::Number(_) | Value::Bool(_))
            );
            let expected = if hint { format!("{expected}, in quotes") } else { expected };
            notes.complain(node.mark, path, node.in_words(), expected);
        }
    }
}

fn check_choice(node: &Node, choice: &Choice, found: &str, path: &str, notes: &mut Notes<'_>) {
    if choice.built.contains(&found) {
        return;
    }
    if choice.unbuilt.contains(&found) {
        notes.unsupported(node.mark, path, quoted(found), &format!("it supports {}", listed(choice.built)));
        return;
    }
    let near = nearest(found, choice.built.iter().chain(choice.unbuilt).copied());
    notes.complain(node.mark, path, quoted(found), one_of(choice.built)).nearest = near.map(str::to_owned);
}

fn one_of(words: &[&str]) -> String {
    match words {
        [only] => (*only).to_owned(),
        several => format!("one of {}", listed(several)),
    }
}

fn listed(words: &[&str]) -> String {
    let shown: Vec<&str> = words.iter().map(|word| if word.is_empty() { "\"\"" } else { word }).collect();
    shown.join(", ")
}

/// The form of a value, for complaints.
fn in_words(form: &Form) -> String {
    match form {
        Form::Anything => "a value".into(),
        Form::Bool => "true or false".into(),
        Form::Whole(min, max) => format!("a whole number from {min} to {max}"),
        Form::Bytes(min, max) => {
            format!("a number of bytes such as 65536, 64Ki or 2M, from {min} to {}", with_unit(*max))
        }
        Form::Text(text) => text.expected.into(),
        Form::Choice(choice) => one_of(choice.built),
        Form::List(_, 0, max) => format!("a list of at most {max} items"),
        Form::List(_, min, max) => format!("a list of {min} to {max} items"),
        Form::Object(_) | Form::Map(..) => "a map".into(),
        Form::PortText | Form::TargetPort => "a port number from 1 to 65535".into(),
        Form::KeySet => "a JSON Web Key Set, as JSON text or as a map".into(),
    }
}

/// A number of bytes that is a power of 1024 times a whole number, in the largest unit.
fn with_unit(bytes: u64) -> String {
    match bytes {
        n if n % (1 << 30) == 0 => format!("{}Gi", n >> 30),
        n if n % (1 << 20) == 0 => format!("{}Mi", n >> 20),
        n => n.to_string(),
    }
}

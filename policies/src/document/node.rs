//! A document as a tree whose every key and value knows its line and column.
//!
//! YAML is read event by event, so that a mistake costs the reader one complaint and not the rest of the file: duplicate
//! keys, tags and odd keys are noted and stepped over, and after a syntax error reading goes on at the next document.
//! Budgets bound depth, nodes and text, aliases expanded, so that a small file cannot become a large tree.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, ScanError, Span};

use super::source::Source;
use crate::complaint::Complaint;

/// Nodes of one file, aliases expanded. A file of 1 MiB of one-letter keys stays below it.
const MAX_NODES: usize = 400_000;
/// Bytes of text in one file, aliases expanded.
const MAX_TEXT: usize = 4 * super::MAX_FILE;
/// Nested lists and maps.
const MAX_DEPTH: usize = 64;
/// After this many complaints the rest of the file is not read.
const MAX_COMPLAINTS: usize = 100;

/// A place in a file: line and column counted from 1 (0: unknown), and how many characters stand there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) length: u32,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) mark: Mark,
}

/// What YAML 1.2's core schema distinguishes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Whole(i64),
    Number(f64),
    Text(Arc<str>),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map, and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: Arc<str>,
    pub(crate) mark: Mark,
    pub(crate) value: Node,
}

impl Node {
    /// The value under `key`, if this is a map that has it and it is not null.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value).filter(|node| node.value != Value::Null)
    }

    /// The entry of `key`, if this is a map that has it.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| &*entry.key == key),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What stands here, in words: texts are quoted and cut.
    pub(crate) fn in_words(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(value) => value.to_string(),
            Value::Whole(value) => format!("the number {value}"),
            Value::Number(value) => format!("the number {value}"),
            Value::Text(text) => quoted(text),
            Value::List(items) if items.is_empty() => "an empty list".into(),
            Value::List(_) => "a list".into(),
            Value::Map(entries) if entries.is_empty() => "an empty map".into(),
            Value::Map(_) => "a map".into(),
        }
    }

    /// The same value as JSON, the keys of every map sorted.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => (*value).into(),
            Value::Whole(value) => (*value).into(),
            Value::Number(value) => (*value).into(),
            Value::Text(text) => Json::String(text.as_ref().to_owned()),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => {
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by(|a, b| a.key.cmp(&b.key));
                Json::Object(sorted.into_iter().map(|e| (e.key.as_ref().to_owned(), e.value.to_json())).collect())
            }
        }
    }

    /// A tree without places, from JSON; numbers beyond 64 bits become floating point.
    pub(crate) fn from_json(json: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => {
                number.as_i64().map_or_else(|| Value::Number(number.as_f64().unwrap_or(f64::NAN)), Value::Whole)
            }
            Json::String(text) => Value::Text(text.as_str().into()),
            Json::Array(items) => Value::List(items.iter().map(Self::from_json).collect()),
            Json::Object(map) => Value::Map(
                map.iter()
                    .map(|(key, value)| Entry {
                        key: key.as_str().into(),
                        mark: Mark::default(),
                        value: Self::from_json(value),
                    })
                    .collect(),
            ),
        };
        Self { value, mark: Mark::default() }
    }
}

/// A text in quotes, cut to a length that is safe to print, control characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(80).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// Reads all documents of a file. Empty documents are left out. `complaints` receives every mistake of syntax.
pub(crate) fn read(source: &Source, complaints: &mut Vec<Complaint>) -> Vec<Node> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut parser = Parser::new_from_str_with_options(source.text(), options);
    let mut reader = Reader {
        source,
        complaints,
        open: Vec::new(),
        anchors: HashMap::new(),
        done: None,
        nodes: 0,
        text: 0,
        told: 0,
    };
    let mut documents = Vec::new();
    while let Some(next) = parser.next_event().filter(|_| reader.told <= MAX_COMPLAINTS) {
        let step = next.map_err(Stop::Syntax).and_then(|(event, span)| reader.take(event, span));
        match step {
            Ok(finished) => documents.extend(finished.filter(|node| node.value != Value::Null)),
            Err(Stop::Budget) => break,
            Err(Stop::Syntax(error)) => {
                reader.syntax(&error);
                reader.forget();
                if !matches!(parser.proceed_next_document(), Ok(true)) {
                    break;
                }
            }
        }
    }
    documents
}

/// Why the events of a document are no longer followed.
enum Stop {
    Syntax(ScanError),
    /// Already complained about.
    Budget,
}

/// A list or map whose end has not come yet.
struct Open {
    node: Node,
    anchor: usize,
    /// In a map: the key whose value comes next. `None` where the key was refused: its value is dropped.
    key: Option<Option<(Arc<str>, Mark)>>,
    /// In a map: the keys so far.
    keys: HashSet<Arc<str>>,
}

struct Reader<'s, 'c> {
    source: &'s Source,
    complaints: &'c mut Vec<Complaint>,
    open: Vec<Open>,
    /// Finished nodes by anchor, with their own nodes and bytes of text.
    anchors: HashMap<usize, (Node, usize, usize)>,
    done: Option<Node>,
    nodes: usize,
    text: usize,
    /// Complaints so far.
    told: usize,
}

impl Reader<'_, '_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<Option<Node>, Stop> {
        let mark = mark(span);
        match event {
            Event::DocumentStart(..) => self.forget(),
            Event::DocumentEnd => return Ok(self.done.take()),
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), mark);
                let value = if style == ScalarStyle::Plain { plain(&text) } else { Value::Text(text.as_ref().into()) };
                self.spend(1, text.len(), mark)?;
                self.finish(Node { value, mark }, anchor);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), mark);
                self.begin(Value::List(Vec::new()), anchor, mark)?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), mark);
                self.begin(Value::Map(Vec::new()), anchor, mark)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.finish(open.node, open.anchor);
                }
            }
            Event::Alias(anchor) => self.alias(anchor, mark)?,
            _ => {}
        }
        Ok(None)
    }

    fn begin(&mut self, value: Value, anchor: usize, mark: Mark) -> Result<(), Stop> {
        self.spend(1, 0, mark)?;
        if self.open.len() >= MAX_DEPTH {
            self.complain(mark, "lists and maps nested deeper than this".into(), format!("at most {MAX_DEPTH} levels"));
            return Err(Stop::Budget);
        }
        self.open.push(Open {
            node: Node { value, mark: Mark { length: 1, ..mark } },
            anchor,
            key: None,
            keys: HashSet::new(),
        });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, mark: Mark) -> Result<(), Stop> {
        let Some((node, nodes, text)) =
            self.anchors.get(&anchor).map(|(node, nodes, text)| (node.clone(), *nodes, *text))
        else {
            self.complain(
                mark,
                "an alias to the list or map it stands in".into(),
                "an alias to something that ends before it".into(),
            );
            self.finish(Node { value: Value::Null, mark }, 0);
            return Ok(());
        };
        self.spend(nodes, text, mark)?;
        self.finish(Node { mark, ..node }, 0);
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) {
        if anchor != 0 {
            let (nodes, text) = size(&node);
            self.anchors.insert(anchor, (node.clone(), nodes, text));
        }
        let Some(open) = self.open.last_mut() else {
            self.done = Some(node);
            return;
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match open.key.take() {
                Some(Some((key, mark))) => entries.push(Entry { key, mark, value: node }),
                Some(None) => {}
                None => {
                    let key = self.key(&node);
                    if let Some(open) = self.open.last_mut() {
                        open.key = Some(key);
                    }
                }
            },
            _ => {}
        }
    }

    /// A key must be a text, or a number that can be taken for one, and must not stand in its map yet.
    fn key(&mut self, node: &Node) -> Option<(Arc<str>, Mark)> {
        let key: Arc<str> = match &node.value {
            Value::Text(text) => Arc::clone(text),
            Value::Whole(number) => number.to_string().into(),
            Value::Bool(value) => value.to_string().into(),
            _ => {
                self.complain(node.mark, format!("{} as a key", node.in_words()), "a text as key".into());
                return None;
            }
        };
        if let Some(open) = self.open.last_mut()
            && !open.keys.insert(Arc::clone(&key))
        {
            let line = open.node.entry(&key).map_or(0, |first| first.mark.line);
            let found = format!("the key {} a second time", quoted(&key));
            self.complain(node.mark, found, format!("each key once; the first is on line {line}"));
            return None;
        }
        Some((key, node.mark))
    }

    fn refuse_tag(&mut self, tag: Option<&granit_parser::Tag>, mark: Mark) {
        if let Some(tag) = tag {
            self.complain(mark, format!("the YAML tag {}", quoted(&tag.original())), "no tags".into());
        }
    }

    fn spend(&mut self, nodes: usize, text: usize, mark: Mark) -> Result<(), Stop> {
        self.nodes += nodes;
        self.text += text;
        if self.nodes > MAX_NODES || self.text > MAX_TEXT {
            self.complain(
                mark,
                "a file that grows beyond its budget when its aliases are expanded".into(),
                format!("at most {MAX_NODES} values and {} MiB of text in one file", MAX_TEXT >> 20),
            );
            return Err(Stop::Budget);
        }
        Ok(())
    }

    /// Drops what is left of a document that was given up.
    fn forget(&mut self) {
        self.open.clear();
        self.anchors.clear();
        self.done = None;
    }

    fn syntax(&mut self, error: &ScanError) {
        let mark = Mark { line: number(error.marker().line()), column: number(error.marker().col() + 1), length: 1 };
        self.complain(
            mark,
            format!("a mistake of YAML syntax: {}", error.info()),
            "a document of well-formed YAML or JSON".into(),
        );
    }

    fn complain(&mut self, mark: Mark, mut found: String, mut expected: String) {
        self.told += 1;
        if self.told > MAX_COMPLAINTS {
            found = format!("more than {MAX_COMPLAINTS} mistakes in this file");
            expected = "fewer: the rest was not read".into();
        }
        self.complaints.push(self.source.complaint(mark, String::new(), found, expected));
    }
}

/// How many nodes and bytes of text a tree has.
fn size(node: &Node) -> (usize, usize) {
    let add = |(a, b): (usize, usize), (c, d): (usize, usize)| (a + c, b + d);
    match &node.value {
        Value::Text(text) => (1, text.len()),
        Value::List(items) => items.iter().map(size).fold((1, 0), add),
        Value::Map(entries) => entries.iter().map(|e| add(size(&e.value), (1, e.key.len()))).fold((1, 0), add),
        _ => (1, 0),
    }
}

/// What a plain scalar means (YAML 1.2.2, section 10.3.2). A number with a leading zero stays a text, because YAML 1.1
/// read it as octal.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let looks_like_a_number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|c| c.is_ascii_digit())
        && digits.bytes().all(|c| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'-' | b'+'))
        && !(digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit()));
    if !looks_like_a_number {
        return Value::Text(text.into());
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Value::Whole(whole);
    }
    text.parse::<f64>().map_or_else(|_| Value::Text(text.into()), Value::Number)
}

fn mark(span: Span) -> Mark {
    let length = if span.start.line() == span.end.line() { span.end.col().saturating_sub(span.start.col()) } else { 1 };
    Mark { line: number(span.start.line()), column: number(span.start.col() + 1), length: number(length.max(1)) }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

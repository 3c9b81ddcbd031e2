//! Server-sent events of the admin API, read from a response as they come.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::failure::{Code, Failure};

/// The server says something at least every 10 s.
const SILENCE: Duration = Duration::from_secs(35);
/// Longest event that is read: one document of the largest size.
const LONGEST: usize = 16 * 1024 * 1024;

/// A stream of events.
pub(crate) struct Events {
    body: Incoming,
    lines: Lines,
}

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// What kind it is.
    pub(crate) name: String,
    /// What it says.
    pub(crate) data: String,
    /// From where to go on after it.
    pub(crate) id: Option<u64>,
}

impl Event {
    /// What it says, as JSON of the expected shape.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(&self.data).map_err(|error| {
            Failure::refused(format_args!(
                "the control plane sent an event {:?} that this version does not understand: {error}",
                self.name
            ))
            .hint("compare `equerry version` with the version of the control plane")
        })
    }
}

impl Events {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, lines: Lines::default() }
    }

    /// The next event; none when the control plane ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.lines.event() {
                return Ok(Some(event));
            }
            if self.lines.held.len() > LONGEST {
                return Err(cut(&format!("an event is longer than {LONGEST} bytes")));
            }
            match tokio::time::timeout(SILENCE, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => self.lines.add(&frame.into_data().unwrap_or_default()),
                Ok(Some(Err(error))) => return Err(cut(&error)),
                Err(_) => return Err(cut(&format!("nothing came for {} s", SILENCE.as_secs()))),
            }
        }
    }
}

fn cut(error: &dyn std::fmt::Display) -> Failure {
    Failure::refused(format_args!("the control plane's stream of events broke off: {error}"))
        .with_code(Code::Unreachable)
        .hint("run the command again; `equerry status` tells whether the control plane is there")
}

/// Bytes that make up lines, and lines that make up events.
#[derive(Debug, Default)]
struct Lines {
    held: Vec<u8>,
    seen: usize,
    event: Event,
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next event that is whole.
    fn event(&mut self) -> Option<Event> {
        while let Some(at) = self.held[self.seen..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.held[self.seen..self.seen + at]).into_owned();
            self.seen += at + 1;
            if line.is_empty() {
                self.held.drain(..self.seen);
                self.seen = 0;
                let event = std::mem::take(&mut self.event);
                if event.name.is_empty() && event.data.is_empty() {
                    continue;
                }
                return Some(event);
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.event.name),
                "data" => self.event.data.push_str(value),
                "id" => self.event.id = value.parse().ok(),
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut_and_comments_are_none() {
        let text = b": alive\n\nevent: added\ndata: {\"key\":\"a\"}\n\nevent: synced\nid: 7\ndata: {}\n\n";
        for step in 1..text.len() {
            let mut lines = Lines::default();
            let mut events = Vec::new();
            for part in text.chunks(step) {
                lines.add(part);
                events.extend(std::iter::from_fn(|| lines.event()));
            }
            let expected = [("added", "{\"key\":\"a\"}", None), ("synced", "{}", Some(7))];
            let expected = expected.map(|(name, data, id)| Event { name: name.to_owned(), data: data.to_owned(), id });
            assert_eq!(events, expected, "in parts of {step}");
        }
    }
}

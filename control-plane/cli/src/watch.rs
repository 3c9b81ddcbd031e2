//! `equerry get -w`: what is there, then each change of it, across restarts of the control plane.

use std::collections::BTreeMap;
use std::time::Duration;

use equerry_control_plane::serve::admin::shapes::{InstanceDetail, ProxyReply, ServiceReply};
use equerry_policies::document::Kind;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::{GetArgs, Output};
use crate::client::Client;
use crate::events::Event;
use crate::failure::{Code, Failure};
use crate::get::Query;
use crate::{out, rows};

/// The first wait before a new try, when the control plane went away; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// Documents of a kind, or of every kind.
    Documents(Option<Kind>),
    Services,
    Instances,
    Proxies,
}

/// What an event of a change says.
#[derive(Debug, Deserialize)]
struct Change {
    key: String,
    #[serde(default)]
    object: Value,
}

/// A change to be told: what happened, to whom, and what it is now.
type Told = (&'static str, String, Value);

/// What is known of the list, so that a stream that begins anew tells only what differs.
#[derive(Debug, Default)]
struct Known {
    items: BTreeMap<String, Value>,
    /// Keys of the present stream, until it is synced.
    here: Option<BTreeMap<String, ()>>,
    /// The epoch up to which everything was told.
    epoch: Option<u64>,
    name: Option<String>,
}

pub(crate) async fn run(args: &GetArgs, watched: Watched, client: &mut Client) -> Result<(), Failure> {
    let mut known = Known { name: args.name.clone(), ..Known::default() };
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = follow(args, watched, client, &mut known, &mut pause).await;
        match ended {
            Ok(()) => out::say("the control plane ended the stream; trying again"),
            Err(failure) if failure.code == Code::Unreachable && known.epoch.is_some() => {
                out::say(format_args!("{}; trying again in {} ms", failure.message, pause.as_millis()));
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One stream to its end.
async fn follow(
    args: &GetArgs,
    watched: Watched,
    client: &mut Client,
    known: &mut Known,
    pause: &mut Duration,
) -> Result<(), Failure> {
    let mut resume = known.epoch.filter(|_| matches!(watched, Watched::Documents(_)));
    let path = path_of(args, watched, resume);
    let mut events = match client.events(&path).await {
        // The control plane does not know that far back any more: it tells everything.
        Err(failure) if resume.is_some() && failure.code == Code::Refused => {
            resume = None;
            client.events(&path_of(args, watched, None)).await?
        }
        opened => opened?,
    };
    // What is resumed tells what changed; all else tells everything, and what is missing then is gone.
    known.here = resume.is_none().then(BTreeMap::new);
    let mut first = known.epoch.is_none().then(Vec::new);
    while let Some(event) = events.next().await? {
        for told in known.hear(&event)? {
            match &mut first {
                Some(first) => first.push(told),
                None => tell(args.output.output, watched, &[told], false),
            }
        }
        if event.name == "synced" {
            *pause = FIRST_PAUSE;
            if let Some(first) = first.take() {
                tell(args.output.output, watched, &first, true);
            }
        }
    }
    Ok(())
}

fn path_of(args: &GetArgs, watched: Watched, resume: Option<u64>) -> String {
    let list = match watched {
        Watched::Documents(_) => "documents",
        Watched::Services => "services",
        Watched::Instances => "instances",
        Watched::Proxies => "proxies",
    };
    let mut query = Query::new(&format!("/api/v1/{list}"));
    query.add("watch", Some("1"));
    let mut namespaced = true;
    if let Watched::Documents(Some(kind)) = watched {
        query.add("kind", Some(kind.plural()));
        namespaced = kind.namespaced();
    }
    query.add("namespace", (namespaced && !args.all_namespaces).then_some(args.namespace.as_str()));
    query.add("labelSelector", args.selector.as_deref());
    query.add("resumeAfter", resume.map(|epoch| epoch.to_string()).as_deref());
    query.path()
}

impl Known {
    /// What an event changes.
    fn hear(&mut self, event: &Event) -> Result<Vec<Told>, Failure> {
        match event.name.as_str() {
            "added" | "changed" => {
                let change: Change = event.read()?;
                if !self.wanted(&change.key) {
                    return Ok(Vec::new());
                }
                if let Some(here) = &mut self.here {
                    here.insert(change.key.clone(), ());
                }
                let before = self.items.insert(change.key.clone(), change.object.clone());
                Ok(match before {
                    None => vec![("added", change.key, change.object)],
                    Some(before) if lasting(&before) != lasting(&change.object) => {
                        vec![("changed", change.key, change.object)]
                    }
                    Some(_) => Vec::new(),
                })
            }
            "deleted" => {
                let change: Change = event.read()?;
                let gone = self.items.remove(&change.key);
                Ok(gone.map(|object| ("deleted", change.key, object)).into_iter().collect())
            }
            "synced" => {
                self.epoch = event.id.or(self.epoch);
                let Some(here) = self.here.take() else { return Ok(Vec::new()) };
                let gone: Vec<_> = self.items.keys().filter(|key| !here.contains_key(*key)).cloned().collect();
                let gone = gone.into_iter().filter_map(|key| self.items.remove_entry(&key));
                Ok(gone.map(|(key, object)| ("deleted", key, object)).collect())
            }
            "error" => {
                let problem: Value = event.read()?;
                let detail =
                    problem.get("detail").and_then(Value::as_str).unwrap_or("the control plane ended the watch");
                Err(Failure::refused(detail))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn wanted(&self, key: &str) -> bool {
        self.name.as_ref().is_none_or(|name| key.rsplit(['/', ' ']).next() == Some(name) || key == name)
    }
}

/// What of an item is no clock: what is left of a lease changes whenever it is looked at.
fn lasting(object: &Value) -> Value {
    match object {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, _)| *key != "leaseMs");
            kept.map(|(key, value)| (key.clone(), lasting(value))).collect()
        }
        Value::Array(items) => items.iter().map(lasting).collect(),
        other => other.clone(),
    }
}

/// Tells changes: one JSON object a line, documents, names, or lines of a table whose first column says what happened.
fn tell(output: Output, watched: Watched, changes: &[Told], first: bool) {
    match output {
        Output::Json => {
            for (what, key, object) in changes {
                out::data(json!({"event": what, "key": key, "object": object}));
            }
        }
        Output::Yaml => {
            for (what, key, object) in changes {
                out::data(format_args!("# {what} {key}\n{}\n---", out::yaml(object)));
            }
        }
        Output::Name => {
            for (what, key, _) in changes {
                out::data(format_args!("{what} {key}"));
            }
        }
        Output::Table | Output::Wide => {
            let (headings, rows) = rows_of(watched, output == Output::Wide, changes);
            let headings: Vec<&str> = std::iter::once("EVENT").chain(headings).collect();
            let mut rows: Vec<_> = rows;
            for (row, (what, ..)) in rows.iter_mut().zip(changes) {
                let style = match *what {
                    "added" => out::GOOD,
                    "deleted" => out::BAD,
                    _ => out::NOTE,
                };
                row.insert(0, out::styled(style, what));
            }
            let table = out::table(&headings, &rows);
            match table.split_once('\n') {
                Some((_, lines)) if !first => out::data(lines),
                _ => out::data(table),
            }
        }
    }
}

fn rows_of(watched: Watched, wide: bool, changes: &[Told]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    // An item that a newer control plane describes differently is still named by its key.
    fn read<T: serde::de::DeserializeOwned>(changes: &[Told], row: impl Fn(&T) -> Vec<String>) -> Vec<Vec<String>> {
        let of = |(_, key, object): &Told| match T::deserialize(object) {
            Ok(item) => row(&item),
            Err(_) => vec![key.clone()],
        };
        changes.iter().map(of).collect()
    }
    match watched {
        Watched::Services => {
            (rows::services_headings(wide), read::<ServiceReply>(changes, |item| rows::service_row(item, wide)))
        }
        Watched::Instances => {
            (rows::instances_headings(wide), read::<InstanceDetail>(changes, |item| rows::instance_row(item, wide)))
        }
        Watched::Proxies => {
            (rows::proxies_headings(wide), read::<ProxyReply>(changes, |item| rows::proxy_row(item, wide)))
        }
        Watched::Documents(kind) => (
            rows::documents_headings(kind.is_none(), wide),
            changes.iter().map(|(_, _, object)| rows::document_row(object, kind.is_none(), wide)).collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &Value) -> Event {
        Event { name: name.to_owned(), data: data.to_string(), id: (name == "synced").then_some(4) }
    }

    #[test]
    fn a_stream_that_begins_anew_tells_only_what_differs() {
        let mut known = Known { here: Some(BTreeMap::new()), ..Known::default() };
        let hear = |known: &mut Known, name: &str, data: Value| {
            let told = known.hear(&event(name, &data)).unwrap();
            told.into_iter().map(|(what, key, _)| format!("{what} {key}")).collect::<Vec<_>>()
        };
        assert_eq!(hear(&mut known, "added", json!({"key": "shop/a", "object": {"n": 1}})), ["added shop/a"]);
        assert_eq!(hear(&mut known, "added", json!({"key": "shop/b", "object": {"n": 1}})), ["added shop/b"]);
        assert!(hear(&mut known, "synced", json!({"epoch": 4})).is_empty());

        known.here = Some(BTreeMap::new());
        assert!(hear(&mut known, "added", json!({"key": "shop/a", "object": {"n": 1, "leaseMs": 5}})).is_empty());
        assert_eq!(hear(&mut known, "added", json!({"key": "shop/c", "object": {"n": 1}})), ["added shop/c"]);
        assert_eq!(hear(&mut known, "synced", json!({"epoch": 5})), ["deleted shop/b"]);
        assert_eq!(hear(&mut known, "changed", json!({"key": "shop/a", "object": {"n": 2}})), ["changed shop/a"]);
        assert_eq!(hear(&mut known, "deleted", json!({"key": "shop/a"})), ["deleted shop/a"]);
        assert!(known.hear(&event("error", &json!({"detail": "revoked"}))).is_err());
    }

    #[test]
    fn one_name_is_watched_among_all() {
        let known = Known { name: Some("orders".to_owned()), ..Known::default() };
        assert!(known.wanted("shop/orders") && known.wanted("HTTPRoute shop/orders") && !known.wanted("shop/orders2"));
    }
}

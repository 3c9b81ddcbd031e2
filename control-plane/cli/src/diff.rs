//! `equerry diff`: what an apply of these files would change, as text; exit code 0 nothing, 1 something, 2 it cannot be told.

use equerry_control_plane::serve::admin::shapes::{ApplyReply, ChangeReply, Problem};
use equerry_policies::document::{Document, Kind, Reading, default_namespace};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use crate::apply::name_of;
use crate::args::{DiffArgs, Output};
use crate::client::Client;
use crate::complaints;
use crate::delete::path_of;
use crate::failure::{Code, Failure};
use crate::files::{self, NamedText};
use crate::out;

/// Lines shown around a change.
const AROUND: usize = 3;

/// One document that an apply would change.
struct Differing {
    name: String,
    before: Option<Value>,
    after: Value,
}

pub(crate) async fn run(args: &DiffArgs, client: &mut Client) -> Result<(), Failure> {
    // Differences are 1, so whatever keeps them from being told is not.
    let differing = match find(args, client).await {
        Ok(differing) => differing,
        Err(failure) if failure.code == Code::Refused => return Err(failure.with_code(Code::Usage)),
        Err(failure) => return Err(failure),
    };
    match args.output.output {
        Output::Json | Output::Yaml => {
            let items: Vec<_> = differing
                .iter()
                .map(|one| json!({"document": one.name, "before": one.before, "after": one.after}))
                .collect();
            crate::get::plain(args.output.output, &json!({"items": items}));
        }
        Output::Name => differing.iter().for_each(|one| out::data(&one.name)),
        Output::Table | Output::Wide => differing.iter().for_each(|one| out::data(unified(one))),
    }
    if differing.is_empty() { Ok(()) } else { Err(Failure::silent(Code::Refused)) }
}

async fn find(args: &DiffArgs, client: &mut Client) -> Result<Vec<Differing>, Failure> {
    let files = files::collect(&args.files.files)?;
    let judged = judge(&files, client).await?;
    complaints::warn(&judged.warnings);
    let mut reading = Reading::default();
    for file in &files {
        reading.add(&file.name, &file.text, &default_namespace());
    }
    let mut differing = Vec::new();
    for change in judged.changes.iter().filter(|change| change.action != "unchanged") {
        let Some(document) = reading.documents.iter().rfind(|document| is(document, change)) else { continue };
        let before = stored(change, client).await?;
        let name = name_of(&change.kind, change.namespace.as_deref(), &change.name);
        differing.push(Differing { name, before, after: document.to_json() });
    }
    Ok(differing)
}

/// What the control plane says an apply would do: the same judgement, every mistake included.
async fn judge(files: &[NamedText], client: &mut Client) -> Result<ApplyReply, Failure> {
    let answer = client.ask(Method::POST, "/api/v1/apply?dryRun=true", Some(&json!({"files": files}))).await?;
    if answer.status == StatusCode::UNPROCESSABLE_ENTITY {
        let problem: Problem = answer.read()?;
        if !problem.complaints.is_empty() {
            return Err(complaints::show(&problem.complaints, "; an apply would change nothing", Output::Table));
        }
    }
    if answer.status.is_success() { answer.read() } else { Err(answer.failure()) }
}

fn is(document: &Document, change: &ChangeReply) -> bool {
    let key = document.key();
    key.kind.as_str() == change.kind
        && key.name.to_string() == change.name
        && key.namespace.as_ref().map(ToString::to_string) == change.namespace
}

/// The document as it is stored; none when there is none.
async fn stored(change: &ChangeReply, client: &mut Client) -> Result<Option<Value>, Failure> {
    let kind = Kind::from_word(&change.kind)
        .ok_or_else(|| Failure::refused(format_args!("this version does not know the kind {}", change.kind)))?;
    let answer =
        client.ask(Method::GET, &path_of(kind, change.namespace.as_deref(), &change.name), None::<&()>).await?;
    match answer.status {
        StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => answer.read().map(Some),
        _ => Err(answer.failure()),
    }
}

/// Lines that go and lines that come, with some around them.
fn unified(one: &Differing) -> String {
    let (before, after) = (one.before.as_ref().map(written).unwrap_or_default(), written(&one.after));
    let diff = TextDiff::from_lines(&before, &after);
    let from = if one.before.is_some() { one.name.as_str() } else { "(not there)" };
    let mut lines = vec![
        out::styled(out::HEAD, format_args!("--- stored  {from}")),
        out::styled(out::HEAD, format_args!("+++ files   {}", one.name)),
    ];
    for hunk in diff.unified_diff().context_radius(AROUND).iter_hunks() {
        lines.push(out::styled(out::DIM, hunk.header()));
        for change in hunk.iter_changes() {
            let text = change.value().trim_end_matches('\n');
            lines.push(match change.tag() {
                ChangeTag::Delete => out::styled(out::BAD, format_args!("-{text}")),
                ChangeTag::Insert => out::styled(out::GOOD, format_args!("+{text}")),
                ChangeTag::Equal => format!(" {text}"),
            });
        }
    }
    lines.join("\n")
}

/// As YAML whose keys have one order, so that only what differs shows.
fn written(document: &Value) -> String {
    fn ordered(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut pairs: Vec<_> = map.iter().collect();
                pairs.sort_by_key(|(key, _)| key.as_str());
                pairs.into_iter().map(|(key, value)| (key.clone(), ordered(value))).collect()
            }
            Value::Array(items) => items.iter().map(ordered).collect(),
            other => other.clone(),
        }
    }
    format!("{}\n", out::yaml(&ordered(document)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_shows_whatever_the_order_of_keys() {
        let one = Differing {
            name: "HTTPRoute/shop/orders".to_owned(),
            before: Some(json!({"kind": "HTTPRoute", "spec": {"weight": 90, "name": "a"}})),
            after: json!({"spec": {"name": "a", "weight": 10}, "kind": "HTTPRoute"}),
        };
        let text = anstream::adapter::strip_str(&unified(&one)).to_string();
        let changed: Vec<_> = text.lines().skip(3).filter(|line| line.starts_with(['-', '+'])).collect();
        assert_eq!(changed, ["-  weight: 90", "+  weight: 10"], "{text}");
        assert!(text.starts_with("--- stored  HTTPRoute/shop/orders\n+++ files   HTTPRoute/shop/orders\n"), "{text}");
    }

    #[test]
    fn a_document_that_is_new_comes_whole() {
        let one = Differing { name: "Tenant/acme".to_owned(), before: None, after: json!({"kind": "Tenant"}) };
        let text = anstream::adapter::strip_str(&unified(&one)).to_string();
        assert!(text.starts_with("--- stored  (not there)") && text.ends_with("+kind: Tenant"), "{text}");
    }
}

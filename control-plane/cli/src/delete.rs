//! `equerry delete`: takes documents away together, in one epoch; listed with what depends on others first.

use equerry_control_plane::serve::admin::shapes::{ApplyReply, DeleteRequest, DocumentName, Problem};
use equerry_policies::document::{DocumentKey, Kind, Reading, default_namespace};
use http::{Method, StatusCode};

use crate::apply::name_of;
use crate::args::{DeleteArgs, Output};
use crate::client::Client;
use crate::complaints;
use crate::failure::Failure;
use crate::files;
use crate::get::kind_of;
use crate::out;

/// One document to take away.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Victim {
    kind: Kind,
    namespace: Option<String>,
    name: String,
}

pub(crate) async fn run(args: &DeleteArgs, client: &mut Client) -> Result<(), Failure> {
    let victims = if args.files.is_empty() { named(args)? } else { of_files(args)? };
    let documents = victims.into_iter().map(|victim| DocumentName {
        kind: victim.kind.to_string(),
        namespace: victim.namespace,
        name: victim.name,
    });
    let request = DeleteRequest { documents: documents.collect(), ignore_not_found: args.ignore_not_found };
    let answer = client.ask(Method::POST, "/api/v1/delete", Some(&request)).await?;
    if answer.status == StatusCode::UNPROCESSABLE_ENTITY {
        let problem: Problem = answer.read()?;
        return Err(still_needed(&problem));
    }
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    let reply: ApplyReply = answer.read()?;
    complaints::warn(&reply.warnings);
    for change in &reply.changes {
        out::data(format_args!(
            "{} {}",
            name_of(&change.kind, change.namespace.as_deref(), &change.name),
            change.action
        ));
    }
    out::data(format_args!("epoch {}", reply.epoch));
    Ok(())
}

/// Who names what was to be deleted.
fn still_needed(problem: &Problem) -> Failure {
    let mut message = "what was to be deleted is still needed, so nothing was deleted:".to_owned();
    for complaint in problem.complaints.iter().filter(|complaint| !complaint.warning) {
        let document = complaint.document.as_deref().unwrap_or("a document");
        message.push_str(&format!("\n  {document} names {} at {}", complaint.found, complaint.key));
    }
    Failure::refused(message).hint("delete those documents too, or change them first")
}

fn named(args: &DeleteArgs) -> Result<Vec<Victim>, Failure> {
    let kind = kind_of(args.kind.as_deref().unwrap_or_default())?;
    let namespace = kind.namespaced().then(|| args.namespace.clone());
    Ok(args.names.iter().map(|name| Victim { kind, namespace: namespace.clone(), name: name.clone() }).collect())
}

/// The documents that the files name; what else is wrong with them does not matter for taking them away.
fn of_files(args: &DeleteArgs) -> Result<Vec<Victim>, Failure> {
    let mut reading = Reading::default();
    for file in files::collect(&args.files)? {
        reading.add(&file.name, &file.text, &default_namespace());
    }
    if !reading.complaints.is_empty() {
        return Err(complaints::show(&reading.complaints, "; nothing was deleted", Output::Table));
    }
    let victim = |key: &DocumentKey| Victim {
        kind: key.kind,
        namespace: key.namespace.as_ref().map(ToString::to_string),
        name: key.name.to_string(),
    };
    let mut victims: Vec<_> = reading.documents.iter().map(|document| victim(document.key())).collect();
    dependents_first(&mut victims);
    Ok(victims)
}

/// `Kind::ALL` names what others depend on first.
fn dependents_first(victims: &mut [Victim]) {
    victims.sort_by_key(|victim| std::cmp::Reverse(Kind::ALL.iter().position(|kind| *kind == victim.kind)));
}

/// Where one document is found in the admin API.
pub(crate) fn path_of(kind: Kind, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("/api/v1/namespaces/{}/{}/{}", escaped(namespace), kind.plural(), escaped(name)),
        None => format!("/api/v1/{}/{}", kind.plural(), escaped(name)),
    }
}

/// What a person typed, safe inside one segment of a path.
pub(crate) fn escaped(segment: &str) -> String {
    segment.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_goes_before_the_service_it_needs() {
        let victim = |kind| Victim { kind, namespace: None, name: "x".to_owned() };
        let mut victims = [Kind::Service, Kind::HttpRoute, Kind::Mesh, Kind::EndpointSlice].map(victim);
        dependents_first(&mut victims);
        assert_eq!(
            victims.map(|victim| victim.kind),
            [Kind::HttpRoute, Kind::EndpointSlice, Kind::Service, Kind::Mesh]
        );
    }

    #[test]
    fn what_a_person_typed_stays_one_segment() {
        assert_eq!(path_of(Kind::Tenant, None, "a/../b"), "/api/v1/tenants/a%2F..%2Fb");
        assert_eq!(path_of(Kind::HttpRoute, Some("shop"), "orders"), "/api/v1/namespaces/shop/httproutes/orders");
    }
}

//! `equerry get`: shows documents as they were applied, and what the control plane knows beside them.

use equerry_control_plane::serve::admin::shapes::{
    DocumentList, EpochReply, EpochState, InstanceList, ProxyList, ServiceList, ServiceReply, VersionReply,
};
use equerry_policies::document::Kind;
use equerry_policies::names::nearest;
use serde::Serialize;
use serde_json::Value;

use crate::apply::name_of;
use crate::args::{GetArgs, Output};
use crate::client::Client;
use crate::delete::{escaped, path_of};
use crate::failure::Failure;
use crate::out;
use crate::rows::{
    document_row, documents_headings, health, instance_row, instances_headings, lease, proxies_table, services_table,
    text,
};
use crate::watch::{self, Watched};

/// Words that are not kinds of documents.
const VIEWS: [&str; 7] = ["proxies", "proxy", "instances", "instance", "epochs", "epoch", "all"];

/// A path with a query.
pub(crate) struct Query(String);

impl Query {
    /// The path alone.
    pub(crate) fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    /// With a parameter, when it has a value.
    pub(crate) fn add(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.push_str(&format!("{name}={}", escaped(value)));
        }
    }

    /// All of it.
    pub(crate) fn path(self) -> String {
        self.0
    }
}

pub(crate) async fn run(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let word = args.kind.to_ascii_lowercase();
    let people = matches!(args.output.output, Output::Table | Output::Wide);
    match word.as_str() {
        "proxies" | "proxy" if args.watch => watch::run(args, Watched::Proxies, client).await,
        "proxies" | "proxy" => proxies(args, client).await,
        "instances" | "instance" if args.watch => watch::run(args, Watched::Instances, client).await,
        "instances" | "instance" => instances(args, client).await,
        "epochs" | "epoch" if args.watch => Err(Failure::usage("epochs cannot be watched")
            .hint("`equerry get proxies -w` shows who acknowledges what; `equerry apply --wait` waits for an epoch")),
        "epochs" | "epoch" => epoch(args, client).await,
        "all" if args.watch => watch::run(args, Watched::Documents(None), client).await,
        "all" => all(args, client).await,
        _ => match kind_of(&args.kind)? {
            Kind::Service if people && args.watch => watch::run(args, Watched::Services, client).await,
            kind if args.watch => watch::run(args, Watched::Documents(Some(kind)), client).await,
            Kind::Service if people => services(args, client).await,
            kind => documents(args, kind, client).await,
        },
    }
}

/// The kind that a person means.
pub(crate) fn kind_of(word: &str) -> Result<Kind, Failure> {
    Kind::from_word(word).ok_or_else(|| {
        let lower = word.to_lowercase();
        let known: Vec<String> = Kind::words().map(str::to_lowercase).collect();
        let near = nearest(&lower, known.iter().map(String::as_str).chain(VIEWS));
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.plural()).collect();
        Failure::usage(format_args!("there is no kind {word:?}{near}"))
            .hint(format_args!("kinds: {}; and instances, proxies, epochs, all", kinds.join(", ")))
    })
}

async fn documents(args: &GetArgs, kind: Kind, client: &mut Client) -> Result<(), Failure> {
    let namespace = (kind.namespaced() && !args.all_namespaces).then_some(args.namespace.as_str());
    if let Some(name) = &args.name {
        let document: Value = client.get(&path_of(kind, namespace, name)).await?;
        match args.output.output {
            Output::Json => out::data(out::json(&document)),
            Output::Yaml => out::data(out::yaml(&document)),
            Output::Table | Output::Wide | Output::Name => show(false, &[document], args.output.output),
        }
        return Ok(());
    }
    let mut query = Query::new("/api/v1/documents");
    query.add("kind", Some(kind.plural()));
    query.add("namespace", namespace);
    query.add("labelSelector", args.selector.as_deref());
    let list: DocumentList = client.get(&query.path()).await?;
    if list.items.is_empty() && matches!(args.output.output, Output::Table | Output::Wide) {
        let place = namespace
            .map_or_else(String::new, |namespace| format!(" in namespace {namespace} (-A shows every namespace)"));
        out::say(format_args!("there are no {}{place}", kind.plural()));
        return Ok(());
    }
    show(false, &list.items, args.output.output);
    Ok(())
}

async fn all(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let mut query = Query::new("/api/v1/documents");
    query.add("labelSelector", args.selector.as_deref());
    let list: DocumentList = client.get(&query.path()).await?;
    let wanted = |document: &&Value| {
        args.all_namespaces || text(document, "/metadata/namespace").is_none_or(|namespace| namespace == args.namespace)
    };
    let documents: Vec<Value> = list.items.iter().filter(wanted).cloned().collect();
    show(true, &documents, args.output.output);
    Ok(())
}

/// Documents in the form that was asked for; YAML is what `apply` reads.
fn show(kinds: bool, documents: &[Value], output: Output) {
    match output {
        Output::Json => out::data(out::json(&serde_json::json!({"items": documents}))),
        Output::Yaml => out::data(documents.iter().map(out::yaml).collect::<Vec<_>>().join("\n---\n")),
        Output::Name => {
            for document in documents {
                let part = |pointer| text(document, pointer).unwrap_or_default();
                out::data(name_of(part("/kind"), text(document, "/metadata/namespace"), part("/metadata/name")));
            }
        }
        Output::Table | Output::Wide => {
            let wide = output == Output::Wide;
            let rows: Vec<_> = documents.iter().map(|document| document_row(document, kinds, wide)).collect();
            out::data(out::table(&documents_headings(kinds, wide), &rows));
        }
    }
}

async fn services(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        let service: ServiceReply =
            client.get(&format!("/api/v1/services/{}/{}", escaped(&args.namespace), escaped(name))).await?;
        out::data(services_table(std::slice::from_ref(&service), args.output.output == Output::Wide));
        let rows: Vec<_> = service
            .members
            .iter()
            .map(|member| {
                vec![
                    member.instance.clone(),
                    member.account.clone(),
                    member.address.clone(),
                    lease(member.lease_ms),
                    health(member.healthy, &member.detail),
                ]
            })
            .collect();
        if rows.is_empty() {
            out::say("no instance has registered for it");
        } else {
            out::data(format_args!("\n{}", out::table(&["INSTANCE", "ACCOUNT", "ADDRESS", "LEASE", "HEALTH"], &rows)));
        }
        return Ok(());
    }
    let list: ServiceList = client.get(&list_path(args, "services")).await?;
    if list.items.is_empty() {
        out::say(format_args!("there are no services{}", place(args)));
        return Ok(());
    }
    out::data(services_table(&list.items, args.output.output == Output::Wide));
    Ok(())
}

/// A list with what the command line says of it.
fn list_path(args: &GetArgs, list: &str) -> String {
    let mut query = Query::new(&format!("/api/v1/{list}"));
    query.add("namespace", (!args.all_namespaces).then_some(args.namespace.as_str()));
    query.add("labelSelector", args.selector.as_deref());
    query.path()
}

fn place(args: &GetArgs) -> String {
    if args.all_namespaces {
        String::new()
    } else {
        format!(" in namespace {} (-A shows every namespace)", args.namespace)
    }
}

async fn instances(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let mut list: InstanceList = client.get(&list_path(args, "instances")).await?;
    if let Some(name) = &args.name {
        list.items.retain(|instance| instance.instance.split_once('/').is_some_and(|(_, id)| id == name));
        if list.items.is_empty() {
            return Err(Failure::refused(format_args!("there is no instance {name} in namespace {}", args.namespace))
                .hint("`equerry get instances -A` shows all"));
        }
    }
    match args.output.output {
        output if plain(output, &list) => {}
        Output::Name => list.items.iter().for_each(|instance| out::data(&instance.instance)),
        _ if list.items.is_empty() => out::say(format_args!("there are no instances{}", place(args))),
        output => {
            let wide = output == Output::Wide;
            let rows: Vec<_> = list.items.iter().map(|instance| instance_row(instance, wide)).collect();
            out::data(out::table(&instances_headings(wide), &rows));
        }
    }
    Ok(())
}

async fn proxies(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let mut query = Query::new("/api/v1/proxies");
    query.add("labelSelector", args.selector.as_deref());
    let mut list: ProxyList = client.get(&query.path()).await?;
    if let Some(name) = &args.name {
        list.items.retain(|proxy| proxy.instance == *name || proxy.instance == format!("{}/{name}", args.namespace));
        if list.items.is_empty() {
            return Err(Failure::refused(format_args!("there is no proxy of an instance {name}"))
                .hint("`equerry get proxies` shows all"));
        }
    }
    if list.items.is_empty() && matches!(args.output.output, Output::Table | Output::Wide) {
        out::say("no proxy has joined yet: `equerry token create join` lets one in");
    } else if !plain(args.output.output, &list) {
        out::data(match args.output.output {
            Output::Name => list.items.iter().map(|proxy| proxy.instance.as_str()).collect::<Vec<_>>().join("\n"),
            output => proxies_table(&list.items, output == Output::Wide),
        });
    }
    Ok(())
}

async fn epoch(args: &GetArgs, client: &mut Client) -> Result<(), Failure> {
    let number = match &args.name {
        Some(name) => {
            name.parse::<u64>().map_err(|_| Failure::usage(format_args!("{name:?} is not the number of an epoch")))?
        }
        None => client.get::<VersionReply>("/api/v1/version").await?.epoch,
    };
    let reply: EpochReply = client.get(&format!("/api/v1/epochs/{number}")).await?;
    if plain(args.output.output, &reply) {
        return Ok(());
    }
    let word = |state| match state {
        EpochState::Acked => out::styled(out::GOOD, "acknowledged"),
        EpochState::Pending => out::styled(out::NOTE, "pending"),
        EpochState::Nacked => out::styled(out::BAD, "refused"),
        EpochState::Away => out::styled(out::DIM, "away"),
    };
    let rows: Vec<_> = reply
        .proxies
        .iter()
        .map(|proxy| vec![proxy.instance.clone(), word(proxy.state), proxy.complaints.join("; ")])
        .collect();
    out::data(format_args!("epoch {}: {}", reply.epoch, if reply.complete { "complete" } else { "not complete" }));
    out::data(out::table(&["INSTANCE", "STATE", "COMPLAINTS"], &rows));
    Ok(())
}

/// Prints for programs, when that was asked for.
pub(crate) fn plain(output: Output, value: &impl Serialize) -> bool {
    match output {
        Output::Json => out::data(out::json(value)),
        Output::Yaml => out::data(out::yaml(value)),
        Output::Table | Output::Wide | Output::Name => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_known_in_every_spelling_and_a_slip_is_named() {
        for word in ["HTTPRoute", "httproutes", "HttpRoute"] {
            assert_eq!(kind_of(word), Ok(Kind::HttpRoute));
        }
        assert_eq!(kind_of("httprout").unwrap_err().message, "there is no kind \"httprout\"; did you mean httproute?");
        assert!(kind_of("proxie").unwrap_err().message.contains("did you mean"));
    }

    #[test]
    fn what_a_person_typed_stays_one_parameter() {
        let mut query = Query::new("/api/v1/services");
        query.add("labelSelector", Some("app in (a,b)&watch=1"));
        query.add("namespace", None);
        query.add("limit", Some("5"));
        assert_eq!(query.path(), "/api/v1/services?labelSelector=app%20in%20%28a%2Cb%29%26watch%3D1&limit=5");
    }
}

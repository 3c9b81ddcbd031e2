//! `equerry validate`: is it right? Reads, interprets and compiles as the mesh would, without one.

use std::collections::BTreeMap;

use equerry_policies::complaint::Complaint;
use equerry_policies::policy::Meaning;
use equerry_policies::view::{self, WorkloadFacts};
use equerry_policies::{compile, document::Document};

use crate::args::{Output, ValidateArgs};
use crate::complaints;
use crate::failure::Failure;
use crate::files;
use crate::out;

pub(crate) fn run(args: &ValidateArgs) -> Result<(), Failure> {
    let output = args.output.output;
    let files = files::collect(&args.files.files)?;
    let checked = complaints::read_all(&files).and_then(|(documents, meaning)| {
        compile_all(&meaning)?;
        Ok((documents, meaning.warnings))
    });
    let (documents, warnings) = match checked {
        Ok(checked) => checked,
        Err(mistakes) => return Err(complaints::show(&mistakes, "", output)),
    };
    match output {
        Output::Json => out::data(out::json(&warnings)),
        Output::Yaml => out::data(out::yaml(&warnings)),
        Output::Name => documents.iter().for_each(|document| out::data(document.key())),
        Output::Table | Output::Wide => {
            complaints::warn(&warnings);
            out::data(format_args!("{}: {}", out::styled(out::GOOD, "valid"), contents(&documents, files.len())));
        }
    }
    Ok(())
}

/// Compiles what every caller and every member of every Service would be told.
fn compile_all(meaning: &Meaning) -> Result<(), Vec<Complaint>> {
    let mut complaints = Vec::new();
    for service in meaning.services.values() {
        if let Some(destination) = view::destination(meaning, &service.name, &service.name.namespace) {
            complaints.extend(compile::destination(&destination).err().unwrap_or_default());
        }
        for account in &service.accounts {
            let ports = service.ports.iter().map(|port| port.target_port).collect();
            let facts = WorkloadFacts { account: account.clone(), labels: service.selector.clone(), ports };
            complaints.extend(compile::workload(&view::workload(meaning, &facts)).err().unwrap_or_default());
        }
    }
    complaints.sort();
    complaints.dedup();
    if complaints.is_empty() { Ok(()) } else { Err(complaints) }
}

/// `5 documents in 2 files: 3 Service, 2 HTTPRoute`.
fn contents(documents: &[Document], files: usize) -> String {
    let mut kinds = BTreeMap::new();
    for document in documents {
        *kinds.entry(document.key().kind).or_insert(0_usize) += 1;
    }
    let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let total = documents.len();
    format!("{total} document{} in {files} file{}: {}", plural(total), plural(files), kinds.join(", "))
}

//! What the language must bear from strangers: policy as text, views as a control plane sends them, identities, key sets.
//!
//! Bodies of fuzz targets, shared with the tests that replay their corpora.

use equerry_policies::compile::{self, keys};
use equerry_policies::complaint::Complaint;
use equerry_policies::document::{self, Document};
use equerry_policies::interpret::interpret;
use equerry_policies::names::SpiffeId;
use equerry_policies::policy::Meaning;
use equerry_policies::view::{self, DestinationView, WorkloadFacts, WorkloadView};

/// Policy as people write it: it is understood, compiles and is shown again, or is complained about in whole sentences.
pub fn policy_yaml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match document::read("stranger.yaml", text) {
        Ok(documents) => {
            match interpret(&documents) {
                Ok(meaning) => cut_and_compile(&meaning),
                Err(complaints) => {
                    let whole =
                        |c: &Complaint| !c.found.is_empty() && !c.expected.is_empty() && !c.to_string().is_empty();
                    assert!(!complaints.is_empty() && complaints.iter().all(whole));
                }
            }
            for document in documents {
                let json = document.to_json();
                if let Ok(again) = Document::from_json(&json) {
                    assert_eq!(again.to_json(), json);
                }
            }
        }
        Err(complaints) => assert!(!complaints.is_empty()),
    }
}

/// What is understood can be compiled: no proxy will refuse what the control plane has stored.
fn cut_and_compile(meaning: &Meaning) {
    for service in meaning.services.values() {
        for account in &service.accounts {
            let ports = service.ports.iter().map(|p| p.target_port).collect();
            let facts = WorkloadFacts { account: account.clone(), labels: service.selector.clone(), ports };
            assert!(compile::workload(&view::workload(meaning, &facts)).is_ok());
        }
        let cut = view::destination(meaning, &service.name, &service.name.namespace).unwrap();
        assert!(compile::destination(&cut).is_ok());
    }
}

/// Views as they come to a proxy, from a control plane that checked nothing: compiled, or complained about.
pub fn compile_views(bytes: &[u8]) {
    if let Ok(view) = serde_json::from_slice::<WorkloadView>(bytes)
        && let Err(complaints) = compile::workload(&view)
    {
        assert!(!complaints.is_empty());
    }
    if let Ok(view) = serde_json::from_slice::<DestinationView>(bytes)
        && let Err(complaints) = compile::destination(&view)
    {
        assert!(!complaints.is_empty());
    }
}

/// An identity has one spelling: what is taken for one is written exactly as it came.
pub fn spiffe_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.to_string(), text);
    }
}

/// Key sets, written down and published: what the strict reading takes, the lenient one takes too, the same keys.
pub fn key_set(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (strict, lenient) = (keys::read(text), keys::read_published(text));
    if let Ok(keys) = strict {
        let (published, passed_over) = lenient.unwrap();
        assert!(!keys.is_empty() && keys == published && passed_over.is_empty());
    }
}

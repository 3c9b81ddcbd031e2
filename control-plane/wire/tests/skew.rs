//! The protocol only grows: every service, message and field of the version before is there, under its number, of its type.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::BTreeSet;
use std::path::Path;

use protox::prost_reflect::DescriptorPool;

/// Everything of a protocol that bytes depend on, one line each.
fn lines(file: &str, folder: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let pool = DescriptorPool::from_file_descriptor_set(protox::compile([file], [folder]).unwrap()).unwrap();
    let fields = pool.all_messages().flat_map(|message| message.fields().collect::<Vec<_>>()).map(|field| {
        let of = field.containing_oneof().map(|oneof| format!(" in {}", oneof.name())).unwrap_or_default();
        format!("{} = {} {:?} {:?}{of}", field.full_name(), field.number(), field.cardinality(), field.kind())
    });
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).map(|method| {
        let (from, to) = (method.is_client_streaming(), method.is_server_streaming());
        let (input, output) = (method.input().full_name().to_owned(), method.output().full_name().to_owned());
        format!("{} {input} {from} {output} {to}", method.full_name())
    });
    fields.chain(methods).collect()
}

#[test]
fn nothing_that_the_version_before_says_or_hears_has_changed() {
    let before = lines("equerry-0.1.0.proto", "tests");
    let now = lines("equerry.proto", "proto");
    assert!(before.len() > 50, "only {} lines were found", before.len());
    let lost: Vec<_> = before.difference(&now).collect();
    assert!(lost.is_empty(), "a proxy or control plane of version 0.1.0 would misunderstand: {lost:#?}");
}

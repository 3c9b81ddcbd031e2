//! Strangers' bytes: whatever a file holds, reading it ends soon, in documents or complaints, never in a panic.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests read the files they are about, and fail by panic"
)]

use equerry_policies::document::{self, MAX_FILE};
use equerry_policies::interpret::interpret;
use proptest::prelude::*;

#[path = "../../fuzz/src/policies.rs"]
mod bodies;
#[path = "../../fuzz/src/replay.rs"]
mod replay;

const EVERY_FIELD: &str = include_str!("accepted/every_field.yaml");

/// Reads, interprets, compiles and shows everything, whatever comes of it.
fn swallow(text: &str) {
    bodies::policy_yaml(text.as_bytes());
}

#[test]
fn what_fuzzers_begin_with_is_borne() {
    replay::replay("policy_yaml", bodies::policy_yaml);
    replay::replay("compile_views", bodies::compile_views);
    replay::replay("spiffe_id", bodies::spiffe_id);
    replay::replay("key_set", bodies::key_set);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_without_panic(text in "\\PC{0,400}") {
        swallow(&text);
    }

    #[test]
    fn any_yamlish_text_is_read_without_panic(text in "[-a-c:{}\\[\\],&*!|>'\"# \n\t0-9]{0,300}") {
        swallow(&text);
    }

    #[test]
    fn a_good_file_with_a_slip_is_read_without_panic(at in 0..EVERY_FIELD.len(), length in 0..40usize, with in "[-a:{}\\[\\]\" \n0]{0,6}") {
        let start = (0..=at).rev().find(|i| EVERY_FIELD.is_char_boundary(*i)).unwrap();
        let end = (at + length..=EVERY_FIELD.len()).find(|i| EVERY_FIELD.is_char_boundary(*i)).unwrap_or(EVERY_FIELD.len());
        swallow(&format!("{}{with}{}", &EVERY_FIELD[..start], &EVERY_FIELD[end..]));
    }

    /// Deletes one line: what is left either means something else or is complained about; a second reading agrees.
    #[test]
    fn reading_twice_says_the_same(line in 0..200usize) {
        let text: String = EVERY_FIELD.lines().enumerate().filter(|(i, _)| *i != line).map(|(_, l)| format!("{l}\n")).collect();
        let once = document::read("a", &text).and_then(|d| interpret(&d));
        let again = document::read("a", &text).and_then(|d| interpret(&d));
        prop_assert_eq!(once, again);
    }
}

#[test]
fn a_file_of_ten_megabytes_is_refused_with_one_complaint() {
    let complaints = document::read("big.yaml", &"a: b\n".repeat(2 << 20)).unwrap_err();
    let words: Vec<String> = complaints.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["big.yaml: found a file of 10485760 bytes, expected at most 1048576 bytes (1 MiB) in one file"]);
}

#[test]
fn one_large_text_that_is_repeated_by_alias_is_refused_with_one_complaint() {
    let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(1000));
    let complaints = document::read("bomb.yaml", &text).unwrap_err();
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].found.contains("budget"), "{}", complaints[0]);
}

#[test]
fn a_file_full_of_small_things_is_read_within_its_budget() {
    let text = format!("[{}]", "a,".repeat(MAX_FILE / 2 - 2));
    let complaints = document::read("wide.yaml", &text).unwrap_err();
    assert_eq!(complaints.len(), 1, "{}", complaints[0]);
}

#[test]
fn nesting_beyond_any_document_is_refused_with_one_complaint() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
        let text = format!("{}{}", open.repeat(5_000), close.repeat(5_000));
        let complaints = document::read("deep.yaml", &text).unwrap_err();
        assert_eq!(complaints.len(), 1, "{open}: {:?}", complaints.iter().map(|c| c.line()).collect::<Vec<_>>());
    }
}

#[test]
fn a_secret_key_is_never_repeated_to_the_reader() {
    let secret = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI";
    for jwks in [
        format!("jwks: '{{\"keys\": [{{\"kty\": \"EC\", \"crv\": \"P-256\", \"d\": \"{secret}\"}}]}}'"),
        format!("jwks: {{keys: [{{kty: oct, k: {secret}}}]}}"),
    ] {
        let text = format!(
            "apiVersion: equerry.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: a}}\nspec:\n  jwtRules:\n  - issuer: a\n    {jwks}\n"
        );
        let complaints = interpret(&document::read("a.yaml", &text).unwrap()).unwrap_err();
        assert_eq!(complaints.len(), 1);
        let words = format!("{} {complaints:?}", complaints[0]);
        assert!(words.contains("could sign tokens") && !words.contains(secret), "{words}");
    }
}

/// A hundred thousand mistakes cost no more than the first few hundred: reading is linear in the size of the file.
#[test]
fn a_file_full_of_mistakes_is_refused_soon_and_says_that_there_are_more() {
    let keys: String = (0..80_000).map(|i| format!("k{i}: 1, ")).collect();
    let service =
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {{ports: [{{port: 80}}], {keys}}}}}");
    let many = "x\n---\n".repeat(100_000);
    let twice = format!("{{{}}}", "a: 1, ".repeat(100_000));
    let tags = format!("[{}]", "!x a, ".repeat(100_000));
    for (text, what) in [(service, "keys"), (many, "documents"), (twice, "twice"), (tags, "tags")] {
        let complaints = document::read("many.yaml", &text).and_then(|d| interpret(&d)).unwrap_err();
        assert!(complaints.len() < 300, "{what}: {}", complaints.len());
        assert!(complaints.iter().any(|c| c.found.starts_with("more than")), "{what}");
    }
}

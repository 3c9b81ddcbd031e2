//! `PolicyTest`.

use super::at::At;
use crate::document::node::Value;
use crate::document::shape::Notes;
use crate::names::PolicyName;
use crate::policy::{Expectation, PolicyTest, PolicyTestCase, Verdict};

pub(super) fn policy_test(name: &PolicyName, root: &At<'_>, notes: &mut Notes<'_>) -> Option<PolicyTest> {
    let mut cases: Vec<PolicyTestCase> = Vec::new();
    for at in root.get("spec")?.list("cases") {
        let Some(read) = case(&at, notes) else { continue };
        if let Some(again) = at.get("name").filter(|_| cases.iter().any(|one| one.name == read.name)) {
            again.complain(notes, "each name once");
        }
        cases.push(read);
    }
    Some(PolicyTest { name: name.clone(), cases, origin: root.origin(notes) })
}

fn case(at: &At<'_>, notes: &mut Notes<'_>) -> Option<PolicyTestCase> {
    let claims = at.get("claims");
    if let Some(claims) = claims.as_ref().filter(|claims| !matches!(claims.node.value, Value::Map(_))) {
        claims.complain(notes, "a map of claims");
    }
    let (request, expect) = (at.get("request")?, at.get("expect")?);
    let header = |line: &At<'_>| Some((line.text_of("name")?.to_owned(), line.text_of("value")?.to_owned()));
    Some(PolicyTestCase {
        name: at.text_of("name")?.to_owned(),
        from: at.parse("from")?,
        from_ip: at.parse("fromIp"),
        to_account: at.parse("toAccount"),
        method: request.text_of("method").unwrap_or("GET").to_owned(),
        url: request.text_of("url")?.to_owned(),
        headers: request.list("headers").iter().filter_map(header).collect(),
        claims: claims.map(|claims| claims.node.to_json().to_string()),
        expect: Expectation {
            decision: if expect.text_of("decision")? == "ALLOW" { Verdict::Allow } else { Verdict::Deny },
            reason: expect.text_of("reason").map(str::to_owned),
            route: expect.text_of("route").map(str::to_owned),
            rule: expect.text_of("rule").map(str::to_owned),
        },
        origin: at.origin(notes),
    })
}

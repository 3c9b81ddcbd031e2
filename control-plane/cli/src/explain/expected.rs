//! `equerry test`: what the `PolicyTest` documents expect, beside what would become of each request; and the same before `apply`
//! changes anything.
//!
//! A test's request goes the way of every explanation. Its token is a real one: the issuer's key set is replaced by a key made here, so that
//! no test knows a way around verification.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use equerry_control_plane::serve::admin::shapes::DocumentList;
use equerry_policies::complaint::Complaint;
use equerry_policies::document::{Document, Reading, default_namespace};
use equerry_policies::interpret::interpret;
use equerry_policies::policy::{Meaning, Origin, PolicyTestCase, Verdict};
use equerry_traffic::explain::Outcome;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{ExplainArgs, read, walk};
use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::complaints;
use crate::demo::issuer::{Issuer, Token};
use crate::failure::{Code, Failure};
use crate::files::{self, NamedText};
use crate::out;

/// `equerry test`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  equerry test policies/\n  equerry test -f policies/ -f staging.yaml -o json\n\nExits with 0 when every test came out as expected, with 1 otherwise."
)]
pub(crate) struct TestArgs {
    /// The policies and their tests: file, directory (with everything below it) or -; may be repeated
    #[arg(value_name = "FILE|DIR|-", required_unless_present = "files")]
    paths: Vec<PathBuf>,
    /// The same, as other commands name them
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// The trust domain, where no Mesh document names it
    #[arg(long, default_value = "equerry.local", value_name = "NAME")]
    trust_domain: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// How one test came out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tested {
    /// The document, `namespace/name`.
    pub(crate) test: String,
    /// The case.
    pub(crate) case: String,
    /// It came out as expected.
    pub(crate) passed: bool,
    /// Everything that did not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unexpected: Vec<String>,
    /// Where it was written.
    pub(crate) origin: Origin,
}

pub(crate) fn run(args: &TestArgs) -> Result<(), Failure> {
    let output = args.output.output;
    let paths: Vec<PathBuf> = args.paths.iter().chain(&args.files).cloned().collect();
    let files = files::collect(&paths)?;
    let refused = |mistakes: Vec<Complaint>| complaints::show(&mistakes, "; nothing was tested", output);
    let (_, meaning) = complaints::read_all(&files).map_err(refused)?;
    let tested = all(&meaning, &args.trust_domain)?;
    match output {
        Output::Json => out::data(out::json(&tested)),
        Output::Yaml => out::data(out::yaml(&tested)),
        Output::Name => tested.iter().filter(|one| !one.passed).for_each(|one| out::data(&one.case)),
        Output::Table | Output::Wide => tested.iter().for_each(|one| out::data(line(one))),
    }
    let (passed, failed): (Vec<_>, Vec<_>) = tested.iter().partition(|one| one.passed);
    if matches!(output, Output::Table | Output::Wide) {
        if tested.is_empty() {
            out::say("there are no PolicyTest documents");
        } else {
            out::data(format_args!("{} passed, {} failed", passed.len(), failed.len()));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::silent(Code::Refused)) }
}

/// Runs the tests that are stored and those in `files` on what would be true after `apply`.
///
/// # Errors
/// When one of them would not come out as expected. Documents with mistakes are the control plane's to refuse: nothing is tested.
pub(crate) async fn before_apply(client: &mut Client, files: &[NamedText]) -> Result<(), Failure> {
    let mut reading = Reading::default();
    for file in files {
        reading.add(&file.name, &file.text, &default_namespace());
    }
    let stored_tests: DocumentList = client.get("/api/v1/documents?kind=policytests").await?;
    let brought = reading.documents.iter().any(|document| document.kind().as_str() == "PolicyTest");
    if !reading.complaints.is_empty() || stored_tests.items.is_empty() && !brought {
        return Ok(());
    }
    let stored: DocumentList = client.get("/api/v1/documents").await?;
    let mut documents = reading.documents;
    for document in stored.items.iter().filter_map(|json| Document::from_json(json).ok()) {
        if !documents.iter().any(|new| new.key() == document.key()) {
            documents.push(document);
        }
    }
    let Ok(meaning) = interpret(&documents) else { return Ok(()) };
    let failed: Vec<Tested> = all(&meaning, "equerry.local")?.into_iter().filter(|one| !one.passed).collect();
    if failed.is_empty() {
        return Ok(());
    }
    failed.iter().for_each(|one| out::say(line(one)));
    let plural = if failed.len() == 1 { "test" } else { "tests" };
    Err(Failure::refused(format_args!("{} {plural} would fail; nothing was changed", failed.len()))
        .hint("correct the policy or the test, or apply with --skip-tests"))
}

fn line(one: &Tested) -> String {
    let Origin { file, line } = &one.origin;
    let place = file.as_ref().map_or_else(String::new, |file| format!("  [{file}:{line}]"));
    let mark = if one.passed { out::styled(out::GOOD, "+") } else { out::styled(out::BAD, "x") };
    let mut text = format!("{mark} {}: {}{}", one.test, one.case, out::styled(out::DIM, place));
    for unexpected in &one.unexpected {
        text.push_str("\n    ");
        text.push_str(unexpected);
    }
    text
}

/// Every case of every test.
fn all(meaning: &Meaning, trust_domain: &str) -> Result<Vec<Tested>, Failure> {
    let issuer = Issuer::stranger().map_err(|error| Failure::refused(format_args!("{error:#}")))?;
    let mut signed = meaning.clone();
    for rule in signed.tokens.values_mut().flat_map(|document| &mut document.rules) {
        // Whatever keys and place the rule names: the claims of a case stand for a token that was shown there.
        (rule.jwks, rule.fetched, rule.places) = (issuer.key_set(), None, Vec::new());
    }
    let mut tested = Vec::new();
    for (name, test) in &meaning.tests {
        for case in &test.cases {
            let unexpected = one(&signed, &issuer, case, trust_domain);
            tested.push(Tested {
                test: name.to_string(),
                case: case.name.clone(),
                passed: unexpected.is_empty(),
                unexpected,
                origin: case.origin.clone(),
            });
        }
    }
    Ok(tested)
}

/// What of one case does not come out as expected.
fn one(meaning: &Meaning, issuer: &Issuer, case: &PolicyTestCase, trust_domain: &str) -> Vec<String> {
    let asked = case
        .claims
        .as_deref()
        .map(|claims| token(meaning, issuer, claims))
        .transpose()
        .and_then(|token| read(&arguments(case, token, trust_domain)).map_err(|failure| failure.message));
    let question = match asked {
        Ok(question) => question,
        Err(why) => return vec![why],
    };
    match walk::walk(meaning, &question) {
        Ok(explanation) => compare(case, &explanation),
        Err(mistakes) => mistakes.iter().map(Complaint::line).collect(),
    }
}

/// The request as a person would write it on the command line.
fn arguments(case: &PolicyTestCase, token: Option<String>, trust_domain: &str) -> ExplainArgs {
    ExplainArgs {
        url: case.url.clone(),
        method: case.method.clone(),
        headers: case.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect(),
        from: Some(case.from.to_string()),
        proxy: None,
        token,
        at: None,
        policies: Vec::new(),
        to_account: case.to_account.as_ref().map(ToString::to_string),
        from_ip: case.from_ip.unwrap_or_else(|| [127, 0, 0, 1].into()),
        trust_domain: trust_domain.to_owned(),
        output: OutputArgs { output: Output::Table },
    }
}

/// A token with these claims, and what each token must say where they do not say it.
fn token(meaning: &Meaning, issuer: &Issuer, claims: &str) -> Result<String, String> {
    let mut claims: Map<String, Value> = serde_json::from_str(claims).map_err(|error| format!("claims: {error}"))?;
    let rules = || meaning.tokens.values().flat_map(|document| &document.rules);
    if !claims.contains_key("iss") {
        let mut issuers: Vec<&str> = rules().map(|rule| rule.issuer.as_str()).collect();
        issuers.sort_unstable();
        issuers.dedup();
        let [only] = issuers.as_slice() else {
            return Err(format!(
                "claims name no iss, and there are {} issuers: one of them must be meant",
                issuers.len()
            ));
        };
        claims.insert("iss".to_owned(), json!(only));
    }
    let of_issuer = rules().filter(|rule| claims.get("iss").and_then(Value::as_str) == Some(&*rule.issuer));
    let audiences: Vec<&str> = of_issuer.flat_map(|rule| rule.audiences.iter().map(String::as_str)).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if !audiences.is_empty() {
        claims.entry("aud").or_insert(json!(audiences));
    }
    claims.entry("exp").or_insert(json!(now + 3600));
    Ok(issuer.mint(&Token::of(claims)))
}

fn compare(case: &PolicyTestCase, explanation: &walk::Explanation) -> Vec<String> {
    let (expect, verdict) = (&case.expect, &explanation.verdict);
    let mut unexpected = Vec::new();
    let mut differ = |what: &str, expected: &str, found: &str| {
        if expected != found {
            unexpected.push(format!("{what}: expected {expected}, found {found}"));
        }
    };
    let word = |allowed: bool| if allowed { "ALLOW" } else { "DENY" };
    let because = verdict.detail.as_deref().map_or_else(String::new, |detail| format!(" ({detail})"));
    let wanted = word(expect.decision == Verdict::Allow);
    if wanted != word(verdict.allowed) {
        differ("decision", wanted, &format!("{}{because}", word(verdict.allowed)));
    }
    if let Some(reason) = &expect.reason {
        differ("reason", reason, &verdict.reason);
    }
    let decided = |stages: &[walk::Stage], name: &str| -> Option<String> {
        let stage = stages.iter().find(|stage| stage.name == name)?;
        stage.steps.iter().find(|step| step.outcome == Outcome::Decided).map(|step| step.subject.clone())
    };
    if let Some(route) = &expect.route {
        differ("route", route, &decided(&explanation.caller, "route").unwrap_or_else(|| "none".to_owned()));
    }
    let Some(rule) = &expect.rule else { return unexpected };
    match &verdict.cause {
        Some(cause) => differ("rule", rule, cause),
        None if verdict.allowed => {
            for callee in &explanation.callees {
                let by = decided(&callee.stages, "authorization").unwrap_or_else(|| "none".to_owned());
                differ("rule", rule, by.strip_prefix("ALLOW ").unwrap_or(&by));
            }
        }
        None => differ("rule", rule, &format!("none{because}")),
    }
    unexpected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tested(text: &str) -> Vec<(String, Vec<String>)> {
        let file = NamedText { name: "shop.yaml".to_owned(), text: text.to_owned() };
        let (_, meaning) = complaints::read_all(&[file]).unwrap_or_else(|bad| panic!("{bad:#?}"));
        let tested = all(&meaning, "equerry.local").unwrap();
        tested.into_iter().map(|one| (one.case, one.unexpected)).collect()
    }

    const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec: {parentRefs: [{group: "", kind: Service, name: orders}], rules: [{backendRefs: [{name: orders, port: 80}]}]}
---
apiVersion: equerry.dev/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  jwtRules:
  - issuer: https://login.example.com
    audiences: [orders]
    jwks: {keys: [{kty: OKP, crv: Ed25519, kid: k1, x: 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo}]}
---
apiVersion: equerry.dev/v1
kind: AuthorizationPolicy
metadata: {name: admins, namespace: shop}
spec:
  rules:
  - when: [{key: "request.auth.claims[role]", values: [admin]}]
    to: [{operation: {methods: [GET]}}]
---
apiVersion: equerry.dev/v1
kind: PolicyTest
metadata: {name: orders, namespace: shop}
spec:
  cases:
"#;

    #[test]
    fn a_case_goes_the_whole_way_with_a_real_token() {
        let cases = r#"
  - name: an admin reads
    from: shop/frontend
    request: {url: http://orders/}
    claims: {sub: ada, role: admin}
    expect: {decision: ALLOW, reason: ok, route: "shop/orders rules[0]", rule: "shop/admins rules[0]"}
  - name: nobody reads
    from: shop/frontend
    request: {url: http://orders/}
    expect: {decision: DENY, reason: authz_denied, rule: no rule of shop/admins matched}
  - name: a token for somebody else
    from: shop/frontend
    request: {url: http://orders/}
    claims: {sub: ada, role: admin, aud: cart}
    expect: {decision: DENY, reason: token_audience}
  - name: a token that has ended
    from: shop/frontend
    request: {url: http://orders/}
    claims: {sub: ada, role: admin, exp: 1}
    expect: {decision: DENY, reason: token_expired}
  - name: another issuer
    from: shop/frontend
    request: {url: http://orders/}
    claims: {iss: https://evil.example, role: admin}
    expect: {decision: DENY, reason: token_invalid}
"#;
        for (case, unexpected) in tested(&format!("{SHOP}{cases}")) {
            assert!(unexpected.is_empty(), "{case}: {unexpected:?}");
        }
    }

    #[test]
    fn what_does_not_come_out_as_expected_is_told_with_what_was_found() {
        let cases = r#"
  - name: wrong in every way
    from: shop/frontend
    request: {method: POST, url: http://orders/}
    claims: {role: admin}
    expect: {decision: ALLOW, reason: ok, route: "shop/orders rules[1]", rule: "shop/admins rules[0]"}
  - name: a name that nobody has
    from: shop/frontend
    request: {url: "http://nobody/"}
    expect: {decision: DENY, reason: no_service}
"#;
        let tested = tested(&format!("{SHOP}{cases}"));
        assert_eq!(
            tested[0].1,
            [
                "decision: expected ALLOW, found DENY (no rule of shop/admins matched)",
                "reason: expected ok, found authz_denied",
                "route: expected shop/orders rules[1], found shop/orders rules[0]",
                "rule: expected shop/admins rules[0], found no rule of shop/admins matched",
            ]
        );
        assert!(tested[1].1.is_empty(), "a name that nobody has is refused, as expected: {:?}", tested[1].1);
    }

    #[test]
    fn every_test_in_the_examples_comes_out_as_expected() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies/examples");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                for (case, unexpected) in tested(&std::fs::read_to_string(&path).unwrap()) {
                    assert!(unexpected.is_empty(), "{}: {case}: {unexpected:?}", path.display());
                    seen += 1;
                }
            }
        }
        assert!(seen >= 8, "only {seen} tests in the examples");
    }
}

//! Changes that are judged, over documents as people write them.

use equerry_policies::document::{Kind, read};

use super::*;

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: orders, port: 80}]}]
";

fn domain() -> TrustDomain {
    TrustDomain::parse("equerry.local").unwrap()
}

fn put(text: &str) -> Vec<Edit> {
    read("test.yaml", text).unwrap().into_iter().map(Edit::Put).collect()
}

fn key(kind: Kind, name: &str) -> DocumentKey {
    DocumentKey { kind, namespace: Some("shop".parse().unwrap()), name: name.parse().unwrap() }
}

fn shop() -> (EpochRows, Truth) {
    Truth::default().plan(put(SHOP), None, &domain()).unwrap().next.unwrap()
}

#[test]
fn one_change_is_one_epoch_and_no_change_is_none() {
    let (rows, truth) = shop();
    assert_eq!((rows.epoch, rows.written.len(), truth.epoch), (1, 2, 1));
    let again = truth.plan(put(SHOP), None, &domain()).unwrap();
    assert!(again.next.is_none());
    assert!(again.changes.iter().all(|change| change.action == Action::Unchanged));
    let changed = truth
        .plan(
            put(&SHOP
                .replace("spec: {ports: [{port: 80}]}", "spec: {ports: [{port: 80}, {port: 81, name: b}]}")
                .replace("{port: 80},", "{port: 80, name: a},")),
            None,
            &domain(),
        )
        .unwrap();
    let actions: Vec<Action> = changed.changes.iter().map(|change| change.action).collect();
    assert_eq!(actions, [Action::Configured, Action::Unchanged]);
    assert_eq!(changed.next.unwrap().0.written.len(), 1);
}

#[test]
fn what_is_restored_means_and_hashes_the_same() {
    let (rows, truth) = shop();
    let restored = Truth::restore(rows.epoch, rows.written, &domain()).unwrap();
    assert_eq!(restored.meaning, truth.meaning);
    let versions = |truth: &Truth| truth.documents.values().map(|stored| stored.version.clone()).collect::<Vec<_>>();
    assert_eq!(versions(&restored), versions(&truth));
}

#[test]
fn a_mistake_is_told_with_its_line_and_nothing_is_planned() {
    let (_, truth) = shop();
    let error = truth
        .plan(put(&SHOP.replace("kind: Service, name: orders}]", "kind: Service, name: ordrs}]")), None, &domain())
        .unwrap_err();
    let ApplyError::Invalid(complaints) = error else { panic!("{error}") };
    assert_eq!(
        (complaints[0].file.as_str(), complaints[0].line, complaints[0].nearest.as_deref()),
        ("test.yaml", 11, Some("orders"))
    );
}

#[test]
fn whoever_makes_a_change_hears_what_is_hardly_meant_in_it_or_since_it_and_nothing_else() {
    const STOCK: &str = "
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {ports: [{port: 80}]}
";
    let (_, truth) = shop();
    let routed = SHOP.replace(
        "rules: [{backendRefs: [{name: orders, port: 80}]}]",
        "rules: [{backendRefs: [{name: stock, port: 80}]}]",
    );
    let told = |truth: &Truth, edits: Vec<Edit>| {
        let plan = truth.plan(edits, None, &domain()).unwrap();
        let places = plan.warnings.iter().map(|one| (one.line, one.document.clone().unwrap())).collect::<Vec<_>>();
        assert!(plan.warnings.iter().all(|one| one.warning && one.found == "\"stock\""), "{:?}", plan.warnings);
        (places, plan.next.map_or_else(|| truth.clone(), |(_, next)| next))
    };
    let route = "HTTPRoute shop/orders".to_owned();
    let (warned, truth) = told(&truth, put(&routed));
    assert_eq!(warned, [(12, route.clone())], "what is written now, with its line");
    let (warned, truth) = told(&truth, put(&STOCK.replace("name: stock", "name: other")));
    assert_eq!(warned, [], "what was so before, and is not touched");
    assert_eq!(told(&truth, put(&routed)).0, [(12, route.clone())], "written again, it is said again");
    let (warned, truth) = told(&truth, put(STOCK));
    assert_eq!((warned, truth.meaning.warnings.len()), (vec![], 0), "it came");
    let (warned, truth) = told(&truth, vec![Edit::Delete(key(Kind::Service, "stock"))]);
    assert_eq!(warned, [(0, route)], "and is gone: of a document that is kept, no line is known");
    assert_eq!(truth.meaning.warnings.len(), 1);
}

#[test]
fn what_something_else_still_names_cannot_be_deleted() {
    let (_, truth) = shop();
    let delete = |keys: Vec<DocumentKey>| truth.plan(keys.into_iter().map(Edit::Delete).collect(), None, &domain());
    assert!(matches!(delete(vec![key(Kind::Service, "orders")]), Err(ApplyError::Invalid(_))));
    let both = delete(vec![key(Kind::Service, "orders"), key(Kind::HttpRoute, "orders")]).unwrap();
    assert!(both.next.unwrap().1.documents.is_empty());
    let missing = delete(vec![key(Kind::Service, "nobody")]).unwrap_err();
    assert_eq!(missing.to_string(), "not found: Service shop/nobody");
}

#[test]
fn a_belief_that_does_not_hold_is_a_conflict() {
    let (_, truth) = shop();
    let service = key(Kind::Service, "orders");
    let version = truth.documents[&service].version.clone();
    let plan = |precondition| truth.plan(put(SHOP), Some(&(service.clone(), precondition)), &domain());
    assert!(plan(Precondition::Version(version)).is_ok());
    assert!(plan(Precondition::Present).is_ok());
    for wrong in [Precondition::Version("old".into()), Precondition::Absent] {
        assert!(matches!(plan(wrong), Err(ApplyError::Conflict { found: Some(_), .. })));
    }
    assert!(Truth::default().plan(put(SHOP), Some(&(service.clone(), Precondition::Present)), &domain()).is_err());
}

#[test]
fn a_mesh_that_names_another_trust_domain_is_refused_naming_both() {
    let mesh =
        "{apiVersion: equerry.dev/v1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: other.example}}";
    let Err(ApplyError::Invalid(complaints)) = Truth::default().plan(put(mesh), None, &domain()) else {
        panic!("accepted")
    };
    let text = complaints[0].to_string();
    assert!(text.contains("other.example") && text.contains("equerry.local"), "{text}");
}

//! What browsers send, and what pages of other sites make them send.

use equerry_policies::names::AccountName;
use equerry_policies::view::{self, WorkloadFacts};
use equerry_policies::{compile, document, interpret};
use http::HeaderValue;

use super::*;

fn workload(spec: &str) -> CompiledWorkload {
    let text = format!(
        "apiVersion: equerry.dev/v1\nkind: CsrfPolicy\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
    );
    let meaning = interpret::interpret(&document::read("csrf.yaml", &text).unwrap()).unwrap();
    let account = AccountName::parse("shop/web").unwrap();
    compile::workload(&view::workload(&meaning, &WorkloadFacts { account, labels: [].into(), ports: vec![80] }))
        .unwrap()
}

fn passes(workload: &CompiledWorkload, method: &Method, lines: &[(&'static str, &'static str)]) -> bool {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    check(workload, method, "shop.example.com", &headers, 80).is_ok()
}

#[test]
fn what_a_page_of_another_site_makes_a_browser_send_is_refused() {
    let workload = workload("{allowedOrigins: [https://app.example.com, 'https://*.partner.example']}");
    let site = "sec-fetch-site";
    for (yes, lines) in [
        (true, &[][..]),
        (true, &[(site, "same-origin")]),
        (true, &[(site, "none")]),
        (false, &[(site, "cross-site")]),
        (false, &[(site, "same-site")]),
        (false, &[(site, "SAME-ORIGIN ")]),
        (false, &[(site, "same-origin"), (site, "cross-site")]),
        (true, &[(site, "cross-site"), ("origin", "https://app.example.com")]),
        (true, &[(site, "cross-site"), ("origin", "https://one.partner.example")]),
        (false, &[(site, "cross-site"), ("origin", "http://app.example.com")]),
        (false, &[(site, "cross-site"), ("origin", "https://shop.example.com")]),
        (true, &[("origin", "https://shop.example.com")]),
        (true, &[("origin", "https://Shop.Example.com:443")]),
        (true, &[("origin", "http://shop.example.com:80")]),
        (false, &[("origin", "https://shop.example.com:8443")]),
        (false, &[("origin", "https://evil.example")]),
        (false, &[("origin", "https://shop.example.com.evil.example")]),
        (false, &[("origin", "https://evil-app.example.com")]),
        (false, &[("origin", "null")]),
        (false, &[("origin", "")]),
        (false, &[("origin", "https://app.example.com"), ("origin", "https://evil.example")]),
    ] {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert_eq!(passes(&workload, &method, lines), yes, "{method} {lines:?}");
        }
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            assert!(passes(&workload, &method, lines), "{method} changes nothing: {lines:?}");
        }
    }
    let upgrade = [("upgrade", "websocket"), ("origin", "https://evil.example")];
    assert!(!passes(&workload, &Method::GET, &upgrade), "a socket of another site's page");
}

#[test]
fn a_refusal_names_its_policy_and_nothing_is_refused_where_none_holds() {
    let mut headers = HeaderMap::new();
    headers.insert(SEC_FETCH_SITE, HeaderValue::from_static("cross-site"));
    let post = |workload: &CompiledWorkload| check(workload, &Method::POST, "shop", &headers, 80);
    let refusal = post(&workload("{}")).unwrap_err();
    assert_eq!((refusal.cause(), refusal.status().as_u16()), (Some("CsrfPolicy shop/web"), 403));
    assert!(post(&workload("{selector: {matchLabels: {app: other}}}")).is_ok());
}

//! What one proxy is told: exactly what concerns it, in the scope it was written for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panic")]

use equerry_policies::document;
use equerry_policies::interpret::interpret;
use equerry_policies::names::{AccountName, InstanceId, Namespace, ServiceName};
use equerry_policies::policy::{Labels, Meaning, MtlsMode};
use equerry_policies::view::{self, EndpointAddress, InstanceFacts, WorkloadFacts};

fn meaning(text: &str) -> Meaning {
    let documents = document::read("test.yaml", text).unwrap_or_else(|c| panic!("{c:?}"));
    interpret(&documents).unwrap_or_else(|c| panic!("{}", c.iter().map(|c| format!("{c}\n")).collect::<String>()))
}

fn labels(text: &str) -> Labels {
    text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn facts(account: &str, own: &str) -> WorkloadFacts {
    WorkloadFacts { account: AccountName::parse(account).unwrap(), labels: labels(own), ports: vec![8080] }
}

fn service(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

fn namespace(text: &str) -> Namespace {
    Namespace::parse(text).unwrap()
}

fn instance(id: &str, account: &str, own: &str, healthy: bool) -> InstanceFacts {
    InstanceFacts {
        id: InstanceId::parse(id).unwrap(),
        account: AccountName::parse(account).unwrap(),
        labels: labels(own),
        inbound: "10.0.0.1:15006".parse().unwrap(),
        ports: vec![8080],
        healthy,
        health_detail: if healthy { String::new() } else { format!("{id} answers 503") },
    }
}

const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: canary, namespace: shop, annotations: {equerry.dev/accounts: "orders, canary"}}
spec: {selector: {app: orders, version: v2}, ports: [{port: 90, targetPort: 9090}]}
"#;

fn policy(kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "\n---\napiVersion: equerry.dev/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_policy_holds_in_the_scope_it_was_written_for() {
    let authz = |name: &str, target: &str| policy("AuthorizationPolicy", name, &format!("{{{target}}}"));
    let text = [
        SHOP.to_owned(),
        authz("equerry-system/mesh", ""),
        authz("shop/namespace", ""),
        authz("bank/elsewhere", ""),
        authz("shop/v2", "selector: {matchLabels: {version: v2}}"),
        authz("bank/v2", "selector: {matchLabels: {version: v2}}"),
        authz("shop/orders", "targetRefs: [{kind: Service, name: orders}]"),
        authz("shop/both", "targetRefs: [{kind: Service, name: orders}, {kind: Service, name: canary}]"),
    ]
    .concat();
    let meaning = meaning(&text);
    let told = |account: &str, own: &str| -> Vec<String> {
        let view = view::workload(&meaning, &facts(account, own));
        view.authorization.iter().map(|scoped| format!("{} {:?}", scoped.policy.name, scoped.ports)).collect()
    };
    assert_eq!(
        told("shop/orders", "app=orders"),
        [
            "equerry-system/mesh None",
            "shop/both Some([8080, 8081])",
            "shop/namespace None",
            "shop/orders Some([8080, 8081])",
        ]
    );
    assert_eq!(
        told("shop/orders", "app=orders,version=v2"),
        [
            "equerry-system/mesh None",
            "shop/both Some([8080, 8081, 9090])",
            "shop/namespace None",
            "shop/orders Some([8080, 8081])",
            "shop/v2 None",
        ]
    );
    assert_eq!(
        told("bank/teller", "app=orders,version=v2"),
        ["bank/elsewhere None", "bank/v2 None", "equerry-system/mesh None"]
    );
}

#[test]
fn an_account_that_a_service_does_not_list_is_refused_by_name_and_left_out_of_views() {
    let meaning = meaning(SHOP);
    let listed = facts("shop/orders", "app=orders,version=v2");
    let names: Vec<String> = view::services_of(&meaning, &listed).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["shop/canary", "shop/orders"]);
    let stranger = facts("shop/canary", "app=orders,version=v2");
    let refused = view::services_of(&meaning, &stranger).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Service shop/orders selects this instance but does not list its account shop/canary in equerry.dev/accounts"
    );
    let view = view::workload(&meaning, &stranger);
    assert_eq!(view.services.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["shop/canary"]);
    assert!(view::services_of(&meaning, &facts("bank/orders", "app=orders")).unwrap().is_empty());
}

#[test]
fn the_narrowest_peer_mode_holds_and_the_stricter_of_equals() {
    let peer = |name: &str, spec: &str| policy("PeerAuthentication", name, spec);
    let with = |more: &[String]| {
        let meaning = meaning(&format!("{SHOP}{}", more.concat()));
        let view = view::workload(&meaning, &facts("shop/orders", "app=orders"));
        (view.peer, view.peer_ports)
    };
    let (strict, permissive) = (MtlsMode::Strict, MtlsMode::Permissive);
    assert_eq!(with(&[]), (strict, vec![]));
    let mesh = peer("equerry-system/mesh", "{mtls: {mode: PERMISSIVE}}");
    assert_eq!(with(std::slice::from_ref(&mesh)).0, permissive);
    let shop = peer("shop/all", "{mtls: {mode: STRICT}}");
    assert_eq!(with(&[mesh.clone(), shop.clone()]).0, strict);
    let unset = peer(
        "shop/unset",
        "{selector: {matchLabels: {app: orders}}, mtls: {mode: UNSET}, portLevelMtls: {8081: {mode: PERMISSIVE}}}",
    );
    assert_eq!(with(&[mesh, shop.clone(), unset.clone()]), (strict, vec![(8081, permissive)]));
    let one = peer("shop/one", "{selector: {matchLabels: {app: orders}}, mtls: {mode: PERMISSIVE}}");
    assert_eq!(with(&[shop, one.clone()]).0, permissive);
    let two = peer(
        "shop/two",
        "{selector: {matchLabels: {app: orders}}, mtls: {mode: STRICT}, portLevelMtls: {8081: {mode: STRICT}}}",
    );
    assert_eq!(with(&[one, two, unset]), (strict, vec![(8081, strict)]));
    assert_eq!(with(&[peer("bank/all", "{mtls: {mode: PERMISSIVE}}")]).0, strict);
}

#[test]
fn where_nothing_but_plain_text_is_taken_sidecars_are_told_in_words_that_those_of_before_understand_too() {
    let peer = |name: &str, spec: &str| policy("PeerAuthentication", name, spec);
    let told = |more: &[String]| {
        let meaning = meaning(&format!("{SHOP}{}", more.concat()));
        let view = view::workload(&meaning, &facts("shop/orders", "app=orders"));
        let instances = [instance("o1", "shop/orders", "app=orders", true)];
        let mut endpoints = view::endpoints(&meaning, &service("shop/orders"), instances.iter()).endpoints;
        assert_eq!(meaning.warnings.len(), more.concat().matches("DISABLE").count(), "{:?}", meaning.warnings);
        let text = serde_json::to_string(&(&view, &endpoints)).unwrap();
        assert!(!text.contains("DISABLE"), "a sidecar of before would refuse all of it: {text}");
        let again: view::WorkloadView = serde_json::from_str(&serde_json::to_string(&view).unwrap()).unwrap();
        let compiled = equerry_policies::compile::workload(&again).unwrap();
        (compiled.mtls(8080), compiled.mtls(8081), endpoints.remove(0))
    };
    let (strict, permissive, disable) = (MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disable);
    let at = "10.0.0.1:15006".parse().unwrap();

    let mesh = peer("equerry-system/mesh", "{mtls: {mode: DISABLE}}");
    let (one, other, all) = told(std::slice::from_ref(&mesh));
    assert_eq!((one, other), (disable, disable));
    assert_eq!((all.address, all.open), (EndpointAddress::Plain(vec![(80, at), (81, at)]), vec![80, 81]));

    let port = "{selector: {matchLabels: {app: orders}}, portLevelMtls: {8081: {mode: DISABLE}}}";
    let (one, other, some) = told(&[peer("shop/port", port)]);
    assert_eq!((one, other), (strict, disable));
    assert_eq!((some.address, some.open), (EndpointAddress::Mesh(at), vec![81]));

    let (one, other, none) = told(&[mesh, peer("shop/all", "{mtls: {mode: STRICT}}")]);
    assert_eq!((one, other, none.open), (strict, strict, vec![]), "the narrower scope holds");
    let two = ["DISABLE", "PERMISSIVE"].map(|mode| {
        let spec = format!("{{selector: {{matchLabels: {{app: orders}}}}, mtls: {{mode: {mode}}}}}");
        peer(&format!("shop/{}", mode.to_lowercase()), &spec)
    });
    let (one, _, none) = told(&two);
    assert_eq!((one, none.open), (permissive, vec![]), "of equals the stricter");
    let spec = "mtls: {mode: DISABLE}";
    let (one, ..) = told(&[format!(
        "\n---\napiVersion: equerry.dev/v1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{{spec}}}\n"
    )]);
    assert_eq!(one, disable, "the mesh's own word");
}

fn route(name: &str, parents: &str, backend: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{parentRefs: {parents}, rules: [{{backendRefs: [{backend}]}}]}}\n"
    )
}

#[test]
fn a_consumer_route_takes_the_place_of_producer_routes_on_its_ports_for_its_namespace_alone() {
    let text = [
        SHOP.to_owned(),
        route("shop/producer", r#"[{group: "", kind: Service, name: orders}]"#, "{name: canary, port: 90}"),
        route(
            "bank/consumer",
            r#"[{group: "", kind: Service, name: orders, namespace: shop, port: 80}]"#,
            "{name: orders, namespace: shop, port: 81}",
        ),
    ]
    .concat();
    let meaning = meaning(&text);
    let told = |caller: &str| -> Vec<String> {
        let view = view::destination(&meaning, &service("shop/orders"), &namespace(caller)).unwrap();
        view.routes
            .iter()
            .map(|r| format!("{} {:?}", r.name, r.parents.iter().map(|(_, port)| *port).collect::<Vec<_>>()))
            .collect()
    };
    assert_eq!(told("shop"), ["shop/producer [None]"]);
    assert_eq!(told("other"), ["shop/producer [None]"]);
    assert_eq!(told("bank"), ["bank/consumer [Some(80)]", "shop/producer [Some(81)]"]);
    let view = view::destination(&meaning, &service("shop/orders"), &namespace("bank")).unwrap();
    assert_eq!(view.backends, [service("shop/canary"), service("shop/orders")]);
    let alone = view::destination(&meaning, &service("shop/canary"), &namespace("bank")).unwrap();
    assert_eq!((alone.routes.len(), alone.backends), (0, vec![service("shop/canary")]));
    assert!(view::destination(&meaning, &service("shop/nobody"), &namespace("bank")).is_none());
}

#[test]
fn a_consumer_route_takes_the_place_of_every_kind_of_route_and_copies_and_faults_are_told() {
    let other = |kind: &str, name: &str, parents: &str, rule: &str| {
        route(name, parents, "").replace("HTTPRoute", kind).replace("backendRefs: []", rule)
    };
    let mirror = "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: canary}}}]";
    let text = [
        SHOP.to_owned(),
        other("GRPCRoute", "shop/calls", r#"[{group: "", kind: Service, name: orders, port: 80}]"#, mirror),
        other(
            "TCPRoute",
            "shop/bytes",
            r#"[{group: "", kind: Service, name: orders, sectionName: admin}]"#,
            "backendRefs: [{name: canary}]",
        ),
        route(
            "bank/own",
            r#"[{group: "", kind: Service, name: orders, namespace: shop}]"#,
            "{name: orders, namespace: shop, port: 80}",
        ),
        policy(
            "FaultInjection",
            "shop/faults",
            "{targetRefs: [{kind: Service, name: orders}], abort: {httpStatus: 503}}",
        ),
    ]
    .concat();
    let meaning = meaning(&text);
    let cut = |caller: &str| view::destination(&meaning, &service("shop/orders"), &namespace(caller)).unwrap();
    let names = |caller: &str| -> Vec<String> {
        let view = cut(caller);
        let http = view.routes.iter().map(|r| format!("{} {}", r.kind.as_str(), r.name));
        http.chain(view.tcp_routes.iter().map(|r| format!("TCPRoute {} {:?}", r.name, r.parents[0].1))).collect()
    };
    assert_eq!(names("shop"), ["GRPCRoute shop/calls", "TCPRoute shop/bytes Some(81)"]);
    assert_eq!(names("bank"), ["HTTPRoute bank/own"]);
    assert_eq!(cut("shop").backends, [service("shop/canary"), service("shop/orders")]);
    assert_eq!(cut("bank").backends, [service("shop/orders")]);
    assert_eq!((cut("shop").faults.len(), cut("bank").faults.len()), (1, 1));
    let canary = view::destination(&meaning, &service("shop/canary"), &namespace("shop")).unwrap();
    assert!(canary.faults.is_empty() && canary.routes.is_empty());
    let callers: Vec<String> =
        view::callers(&meaning, &service("shop/orders")).iter().map(ToString::to_string).collect();
    assert_eq!(callers, ["bank", "shop"]);
}

#[test]
fn endpoints_are_healthy_members_by_id_and_written_addresses() {
    let slice = |name: &str, address: &str, ports: &str| {
        format!(
            "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: \
             {{kubernetes.io/service-name: orders}}}}\naddressType: {}\nendpoints: [{{addresses: [\"{address}\"]}}]\nports: [{ports}]\n",
            if address.contains(':') { "IPv6" } else { "IPv4" }
        )
    };
    let text = [
        SHOP.to_owned(),
        slice("b", "127.0.0.1", "{name: admin, port: 7001}, {name: http, port: 7000}"),
        slice("a", "127.0.0.1", "{name: http, port: 8000}"),
        slice("six", "::1", "{name: http, port: 9000}"),
    ]
    .concat();
    let meaning = meaning(&text);
    let instances = [
        instance("o2", "shop/orders", "app=orders", true),
        instance("o1", "shop/orders", "app=orders,version=v1,equerry.dev/weight=3", true),
        instance("sick", "shop/orders", "app=orders", false),
        instance("stranger", "shop/canary", "app=orders", true),
        instance("other", "shop/orders", "app=other", true),
        instance("elsewhere", "bank/orders", "app=orders", true),
    ];
    let told = view::endpoints(&meaning, &service("shop/orders"), instances.iter());
    let ids: Vec<&str> = told.endpoints.iter().map(|e| e.instance.as_str()).collect();
    let six = "static-0000-0000-0000-0000-0000-0000-0000-0001-9000";
    assert_eq!(ids, ["o1", "o2", six, "static-127.0.0.1-7001", "static-127.0.0.1-8000"]);
    let unwell: Vec<(&str, &str)> =
        told.unwell.iter().map(|one| (one.instance.as_str(), one.detail.as_str())).collect();
    assert_eq!(unwell, [("sick", "sick answers 503")], "told, and given no traffic");
    let weights: Vec<u32> = told.endpoints.iter().map(|e| e.weight).collect();
    assert_eq!(weights, [3, 1, 1, 1, 1], "as its label says");
    assert_eq!(
        told.endpoints[3].address,
        EndpointAddress::Plain(vec![(81, "127.0.0.1:7001".parse().unwrap()), (80, "127.0.0.1:7000".parse().unwrap())])
    );
    let members: Vec<&str> =
        view::members(&meaning, &service("shop/orders"), instances.iter()).iter().map(|i| i.id.as_str()).collect();
    assert_eq!(members, ["o2", "o1", "sick"]);
    assert!(view::endpoints(&meaning, &service("shop/nobody"), instances.iter()).endpoints.is_empty());
}

#[test]
fn an_external_name_is_told_to_its_callers_and_what_the_dns_says_of_it_becomes_its_endpoints() {
    let external = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: payments, namespace: shop}\nspec: {type: ExternalName, \
                    externalName: pay.example.com, ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 81}]}\n";
    let meaning = meaning(&format!("{SHOP}{external}"));
    let told = view::destination(&meaning, &service("shop/payments"), &namespace("bank")).unwrap();
    assert_eq!(told.external.as_ref().map(ToString::to_string).as_deref(), Some("pay.example.com"));
    assert!(view::endpoints(&meaning, &service("shop/payments"), [].iter()).endpoints.is_empty());

    let addresses = ["2001:db8::1", "192.0.2.2", "192.0.2.1", "::ffff:192.0.2.2"].map(|a| a.parse().unwrap());
    let endpoints = view::resolved(&told.ports, &addresses);
    let ids: Vec<&str> = endpoints.iter().map(|e| e.instance.as_str()).collect();
    let six = "dns-2001-0db8-0000-0000-0000-0000-0000-0001";
    assert_eq!(ids, ["dns-192.0.2.1", "dns-192.0.2.2", six], "each address once, in one order");
    assert_eq!(
        endpoints[0].address,
        EndpointAddress::Plain(vec![(80, "192.0.2.1:8080".parse().unwrap()), (81, "192.0.2.1:81".parse().unwrap())])
    );

    let plain = view::destination(&meaning, &service("shop/orders"), &namespace("shop")).unwrap();
    let bytes = serde_json::to_string(&plain).unwrap();
    assert!(!bytes.contains("external"), "a Service of the mesh is told in the words that older proxies know");
}

#[test]
fn every_tenant_is_told_with_the_quotas_that_are_counted_there() {
    let tenant = |name: &str, quotas: &str| {
        format!(
            "\n---\napiVersion: equerry.dev/v1\nkind: Tenant\nmetadata: {{name: {name}}}\nspec: {{match: [{{claim: {{name: tenant, value: \
             {name}}}}}], quotas: [{quotas}]}}\n"
        )
    };
    let quotas = "{services: [shop/orders], requests: 5, window: 1s}, {services: [shop/canary, shop/orders], requests: 9, window: 1m}";
    let meaning = meaning(&[SHOP.to_owned(), tenant("acme", quotas), tenant("globex", "")].concat());
    let told = |account: &str, own: &str| -> Vec<String> {
        let view = view::workload(&meaning, &facts(account, own));
        let quotas = |t: &view::TenantView| {
            t.quotas.iter().map(|q| format!("{}{:?}", q.policy.id, q.ports.as_ref().unwrap())).collect::<Vec<_>>()
        };
        view.tenants.iter().map(|t| format!("{} {}", t.tenant.name, quotas(t).join(" "))).collect()
    };
    assert_eq!(told("shop/orders", "app=orders"), ["acme acme/0[8080, 8081] acme/1[8080, 8081]", "globex "]);
    assert_eq!(told("shop/canary", "app=orders,version=v2"), ["acme acme/1[9090]", "globex "]);
    assert_eq!(told("bank/teller", ""), ["acme ", "globex "]);
}

#[test]
fn the_same_meaning_makes_the_same_bytes() {
    let text = format!("{SHOP}{}", policy("AuthorizationPolicy", "shop/a", "{}"));
    let mut backwards: Vec<&str> = text.split("\n---\n").collect();
    backwards.reverse();
    let bytes = |text: &str| {
        let documents: Vec<_> = document::read("x", text).unwrap();
        let stored: Vec<_> = documents.iter().map(|d| document::Document::from_json(&d.to_json()).unwrap()).collect();
        let meaning = interpret(&stored).unwrap();
        let workload = view::workload(&meaning, &facts("shop/orders", "version=v2,app=orders"));
        let destination = view::destination(&meaning, &service("shop/orders"), &namespace("shop")).unwrap();
        (serde_json::to_string(&workload).unwrap(), serde_json::to_string(&destination).unwrap())
    };
    assert_eq!(bytes(&text), bytes(&backwards.join("\n---\n")));
}

#[test]
fn a_service_that_does_not_exist_has_a_nearest_name() {
    let meaning = meaning(SHOP);
    let near = |text: &str| view::nearest_service(&meaning, &service(text)).map(ToString::to_string);
    assert_eq!(near("shop/ordres").as_deref(), Some("shop/orders"));
    assert_eq!(near("bank/orders").as_deref(), Some("shop/orders"));
    assert_eq!(near("shp/orders").as_deref(), Some("shop/orders"));
    assert_eq!(near("shop/zzz"), None);
}

#[test]
fn pages_and_trusted_hops_are_told_where_they_hold() {
    let proxied = SHOP.replacen(
        "equerry.dev/accounts: orders}",
        "equerry.dev/accounts: orders, equerry.dev/trusted-hops: '2'}",
        1,
    );
    let text = [
        proxied,
        policy("Mesh", "none/default", "{trustedHops: 1}").replace(", namespace: none", ""),
        policy("CsrfPolicy", "shop/web", "{targetRefs: [{kind: Service, name: canary}]}"),
        policy("CsrfPolicy", "bank/all", "{allowedOrigins: [https://bank.example]}"),
    ]
    .concat();
    let meaning = meaning(&text);
    let told = |account: &str, own: &str| {
        let view = view::workload(&meaning, &facts(account, own));
        let csrf: Vec<String> = view.csrf.iter().map(|c| format!("{} {:?}", c.policy.name, c.ports)).collect();
        let compiled = equerry_policies::compile::workload(&view).unwrap();
        (csrf, [8080, 9090].map(|port| compiled.trusted_hops(port)))
    };
    assert_eq!(told("shop/orders", "app=orders"), (vec![], [2, 1]), "the Service's own word, else the mesh's");
    assert_eq!(told("shop/canary", "app=orders,version=v2"), (vec!["shop/web Some([9090])".to_owned()], [1, 1]));
    assert_eq!(told("bank/teller", ""), (vec!["bank/all None".to_owned()], [1, 1]));
}

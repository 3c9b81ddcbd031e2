//! The index and the predicates against a plain model of Istio's semantics, and the examples of Istio's documentation.

use equerry_policies::policy::{
    Action, Attribute, AuthorizationPolicy, AuthorizationRule, Condition, IpBlock, Operation, PathTemplate, Source,
    StringMatch, Target,
};
use proptest::prelude::*;

use super::*;

/// One thing that is asked, as Istio's generator makes it: what is there, whether only HTTP has it, values and excluded values
/// as tests over plain texts.
struct Plain {
    http: bool,
    there: Vec<String>,
    values: Vec<Test>,
    excluded: Vec<Test>,
}

/// Whether a text is a value.
type Test = Box<dyn Fn(&str) -> bool>;

impl Plain {
    fn new(http: bool, there: Vec<String>, values: Vec<Test>, excluded: Vec<Test>) -> Option<Self> {
        (!values.is_empty() || !excluded.is_empty()).then_some(Self { http, there, values, excluded })
    }

    fn holds(&self) -> bool {
        let any = |tests: &[Test]| tests.iter().any(|test| self.there.iter().any(|text| test(text)));
        (self.values.is_empty() || any(&self.values)) && !any(&self.excluded)
    }
}

/// A piece of a pattern.
#[derive(Clone)]
enum Piece {
    Text(String),
    /// So many characters at least, of which `/` may be one or not.
    Open {
        at_least: usize,
        slashes: bool,
    },
}

const ANYTHING: Piece = Piece::Open { at_least: 0, slashes: true };
const SOMETHING: Piece = Piece::Open { at_least: 1, slashes: true };

/// Whether pieces make a text: every way of cutting it is tried, which is another way than the one under test.
fn made_of(pieces: &[Piece], text: &str) -> bool {
    match pieces {
        [] => text.is_empty(),
        [Piece::Text(wanted), rest @ ..] => text.strip_prefix(wanted.as_str()).is_some_and(|left| made_of(rest, left)),
        [Piece::Open { at_least, slashes }, rest @ ..] => (*at_least..=text.len()).any(|length| {
            let (filled, left) = text.split_at(length);
            (*slashes || !filled.contains('/')) && made_of(rest, left)
        }),
    }
}

fn test(pieces: Vec<Piece>) -> Test {
    Box::new(move |text| made_of(&pieces, text))
}

fn template(text: &str) -> Vec<Piece> {
    let tail = text.split_once("{**}");
    let (head, rest) = tail.map_or((text, None), |(head, rest)| (head, Some(rest)));
    let mut pieces = vec![];
    for (number, part) in head.split("{*}").enumerate() {
        if number > 0 {
            pieces.push(Piece::Open { at_least: 1, slashes: false });
        }
        pieces.push(Piece::Text(part.to_owned()));
    }
    pieces.extend(rest.into_iter().flat_map(|rest| [ANYTHING, Piece::Text(rest.to_owned())]));
    pieces
}

fn tests(from: &[StringMatch], lower: bool, empty_is_there: bool) -> Vec<Test> {
    let text = |text: &str| Piece::Text(if lower { text.to_lowercase() } else { text.to_owned() });
    let one = |one: &StringMatch| match one {
        StringMatch::Present => test(vec![if empty_is_there { ANYTHING } else { SOMETHING }]),
        StringMatch::Exact(exact) => test(vec![text(exact)]),
        StringMatch::Prefix(prefix) => test(vec![text(prefix), ANYTHING]),
        StringMatch::Suffix(suffix) => test(vec![ANYTHING, text(suffix)]),
        StringMatch::Template(path) => test(template(path.as_str())),
    };
    from.iter().map(one).collect()
}

/// Networks as lists of bits.
fn networks(from: &[IpBlock]) -> Vec<Test> {
    fn bits(address: IpAddr) -> String {
        match address.to_canonical() {
            IpAddr::V4(v4) => format!("4 {:032b}", u32::from(v4)),
            IpAddr::V6(v6) => format!("6 {:0128b}", u128::from(v6)),
        }
    }
    let one = |(network, length): &IpBlock| -> Test {
        let wanted = bits(*network)[..2 + usize::from(*length)].to_owned();
        Box::new(move |text| bits(text.parse().unwrap()).starts_with(&wanted))
    };
    from.iter().map(one).collect()
}

/// Istio's `requestPrincipals`: issuer and subject each for itself, here as one text with a separator that neither has.
fn request_principals(from: &[StringMatch]) -> Vec<Test> {
    let text = |text: &str| Piece::Text(text.to_owned());
    let between = || text("\n");
    let one = |one: &StringMatch| match one {
        StringMatch::Present | StringMatch::Template(_) => test(vec![SOMETHING, between(), SOMETHING]),
        StringMatch::Exact(exact) => {
            let (issuer, subject) = exact.rsplit_once('/').unwrap();
            test(vec![text(issuer), between(), text(subject)])
        }
        StringMatch::Prefix(prefix) => match prefix.rsplit_once('/') {
            Some((issuer, "")) => test(vec![text(issuer), between(), SOMETHING]),
            Some((issuer, subject)) => test(vec![text(issuer), between(), text(subject), ANYTHING]),
            None => test(vec![text(prefix), ANYTHING, between(), SOMETHING]),
        },
        StringMatch::Suffix(suffix) => match suffix.rsplit_once('/') {
            Some(("", subject)) => test(vec![SOMETHING, between(), text(subject)]),
            Some((issuer, subject)) => test(vec![ANYTHING, text(issuer), between(), text(subject)]),
            None => test(vec![SOMETHING, between(), ANYTHING, text(suffix)]),
        },
    };
    from.iter().map(one).collect()
}

fn accounts(from: &[AccountName]) -> Vec<Test> {
    let one = |one: &AccountName| -> Test {
        let wanted = one.to_string();
        Box::new(move |text| text == wanted)
    };
    from.iter().map(one).collect()
}

fn ports(from: &[u16]) -> Vec<Test> {
    let one = |one: &u16| -> Test {
        let wanted = one.to_string();
        Box::new(move |text| text == wanted)
    };
    from.iter().map(one).collect()
}

impl Request {
    fn part_of_peer(&self, place: usize) -> Vec<String> {
        self.peer.and_then(|peer| peer.split('/').nth(place)).map(str::to_owned).into_iter().collect()
    }

    fn claim(&self, name: &str) -> Vec<String> {
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => Some(text.clone()),
            _ => None,
        };
        match self.claims.as_ref().and_then(|claims| claims.get(name)) {
            Some(serde_json::Value::Array(members)) => members.iter().filter_map(text).collect(),
            Some(value) => text(value).into_iter().collect(),
            None => vec![],
        }
    }

    fn source(&self, source: &Source) -> Vec<Plain> {
        let subject = self.claim("sub");
        let token = subject.iter().map(|subject| format!("https://issuer\n{subject}")).collect();
        let account =
            self.part_of_peer(2).iter().zip(self.part_of_peer(4)).map(|(ns, sa)| format!("{ns}/{sa}")).collect();
        let t = |from: &[StringMatch]| tests(from, false, false);
        let all = [
            Plain::new(
                false,
                self.peer.map(str::to_owned).into_iter().collect(),
                t(&source.principals),
                t(&source.not_principals),
            ),
            Plain::new(false, self.part_of_peer(2), t(&source.namespaces), t(&source.not_namespaces)),
            Plain::new(false, account, accounts(&source.service_accounts), accounts(&source.not_service_accounts)),
            Plain::new(false, self.part_of_peer(0), t(&source.trust_domains), t(&source.not_trust_domains)),
            Plain::new(
                true,
                token,
                request_principals(&source.request_principals),
                request_principals(&source.not_request_principals),
            ),
            Plain::new(false, vec![PEER.to_string()], networks(&source.ip_blocks), networks(&source.not_ip_blocks)),
            Plain::new(
                false,
                vec![PEER.to_string()],
                networks(&source.remote_ip_blocks),
                networks(&source.not_remote_ip_blocks),
            ),
        ];
        all.into_iter().flatten().collect()
    }

    fn operation(&self, operation: &Operation) -> Vec<Plain> {
        let t = |from: &[StringMatch]| tests(from, false, false);
        let hosts = |from: &[StringMatch]| tests(from, true, false);
        let authority = vec![self.authority.to_owned(), self.authority.split(':').next().unwrap().to_owned()];
        let all = [
            Plain::new(true, authority, hosts(&operation.hosts), hosts(&operation.not_hosts)),
            Plain::new(true, vec![self.method.to_string()], t(&operation.methods), t(&operation.not_methods)),
            Plain::new(true, vec![self.path.to_owned()], t(&operation.paths), t(&operation.not_paths)),
            Plain::new(false, vec![self.port.to_string()], ports(&operation.ports), ports(&operation.not_ports)),
        ];
        all.into_iter().flatten().collect()
    }

    fn condition(&self, condition: &Condition) -> Vec<Plain> {
        match condition {
            Condition::Source(source) => self.source(source),
            Condition::Operation(operation) => self.operation(operation),
            Condition::DestinationIp { values, not_values } => {
                let there = self.local_ip.iter().map(ToString::to_string).collect();
                Plain::new(false, there, networks(values), networks(not_values)).into_iter().collect()
            }
            Condition::Text { of, values, not_values } => {
                let (http, empty, there) = match of {
                    Attribute::Header(name) => {
                        let values = self.headers.get_all(name).iter();
                        (true, true, values.map(|value| value.to_str().unwrap().to_owned()).collect())
                    }
                    Attribute::Claim(path) => (true, false, self.claim(&path[0])),
                    Attribute::Audiences => (true, false, self.claim("aud")),
                    Attribute::Presenter => (true, false, self.claim("azp")),
                    Attribute::Sni => (false, false, self.sni.map(str::to_owned).into_iter().collect()),
                };
                Plain::new(http, there, tests(values, false, empty), tests(not_values, false, empty))
                    .into_iter()
                    .collect()
            }
        }
    }

    /// Whether a rule matches, as Istio's documentation says it. `tcp`: nobody looks for requests.
    fn plainly(&self, rule: &AuthorizationRule, action: Action, tcp: bool) -> bool {
        let from: Vec<Vec<Plain>> = rule.from.iter().map(|source| self.source(source)).collect();
        let to: Vec<Vec<Plain>> = rule.to.iter().map(|operation| self.operation(operation)).collect();
        let when: Vec<Plain> = rule.when.iter().flat_map(|condition| self.condition(condition)).collect();
        let asks_http = from.iter().chain(&to).flatten().chain(&when).any(|plain| plain.http);
        if tcp && action == Action::Allow && asks_http {
            return false;
        }
        let all = |part: &[Plain]| part.iter().all(|plain| tcp && plain.http || plain.holds());
        let any = |parts: &[Vec<Plain>]| parts.is_empty() || parts.iter().any(|part| all(part));
        any(&from) && any(&to) && all(&when)
    }

    /// What Istio's order of asking comes to.
    fn model(&self, policies: &[AuthorizationPolicy], tcp: bool) -> Result<String, String> {
        let first = |action: Action| {
            let mut of_action = policies.iter().filter(|policy| policy.action == action && !policy.shadow);
            of_action.find_map(|policy| {
                let number = policy.rules.iter().position(|rule| self.plainly(rule, action, tcp))?;
                Some(format!("{} rules[{number}]", policy.name))
            })
        };
        let allows: Vec<String> = policies
            .iter()
            .filter(|policy| policy.action == Action::Allow && !policy.shadow)
            .map(|policy| policy.name.to_string())
            .collect();
        match (first(Action::Deny), first(Action::Allow)) {
            (Some(denied), _) => Err(denied),
            (None, Some(allowed)) => Ok(allowed),
            (None, None) if allows.is_empty() => Ok(DEFAULT.to_owned()),
            (None, None) => Err(format!("no rule of {} matched", allows.join(", "))),
        }
    }
}

const PRINCIPALS: &[&str] =
    &[ORDERS, FRONTEND, "equerry.local/ns/bank/sa/orders", "other.local/ns/shop/sa/orders", "not a principal"];
const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/ab", "/b/a", "/b/a/c"];
const TEMPLATES: &[&str] = &["/{*}", "/a/{*}", "/{*}/a", "/{**}", "/b/{**}", "/b/{**}/c", "/{*}/{*}/c"];
const TOKENS: &[&str] = &["https://issuer/ada", "https://issuer/bob", "other/ada"];
const GROUPS: &[&[&str]] = &[&["dev"], &["ops", "dev"], &[]];
const ROLES: &[&[&str]] = &[&[], &["user"], &["user", "admin"], &["user,admin"], &[""]];
const BLOCKS: &[(IpAddr, u8)] = &[
    (IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), 32),
    (IpAddr::V4(Ipv4Addr::new(10, 9, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 0),
];

fn pattern(values: &'static [&'static str]) -> impl Strategy<Value = StringMatch> {
    (prop::sample::select(values), 0_u8..7).prop_map(|(text, form)| match form {
        0 => StringMatch::Present,
        1 => StringMatch::Prefix(text[..text.len() / 2].to_owned()),
        2 => StringMatch::Suffix(text[text.len() / 2..].to_owned()),
        _ => StringMatch::Exact(text.to_owned()),
    })
}

/// Mostly nothing, so that rules ask for few things and often match.
fn few<T: fmt::Debug + Clone>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![4 => Just(vec![]), 2 => prop::collection::vec(of, 1..3)]
}

fn patterns(values: &'static [&'static str]) -> impl Strategy<Value = Vec<StringMatch>> {
    few(pattern(values))
}

fn path_patterns() -> impl Strategy<Value = Vec<StringMatch>> {
    let template =
        prop::sample::select(TEMPLATES).prop_map(|text| StringMatch::Template(PathTemplate::parse(text).unwrap()));
    few(prop_oneof![3 => pattern(PATHS).boxed(), 1 => template.boxed()])
}

fn blocks() -> impl Strategy<Value = Vec<IpBlock>> {
    few(prop::sample::select(BLOCKS))
}

fn account_names() -> impl Strategy<Value = Vec<AccountName>> {
    few(prop::sample::select(&["shop/orders", "bank/orders", "shop/frontend"][..])
        .prop_map(|text| AccountName::parse(text).unwrap()))
}

prop_compose! {
    fn any_source()(
        (principals, not_principals) in (patterns(PRINCIPALS), patterns(PRINCIPALS)),
        (namespaces, not_namespaces) in (patterns(&["shop", "bank"]), patterns(&["shop", "bank"])),
        (request_principals, not_request_principals) in (patterns(TOKENS), patterns(TOKENS)),
        (ip_blocks, not_ip_blocks, remote_ip_blocks, not_remote_ip_blocks) in (blocks(), blocks(), blocks(), blocks()),
        (service_accounts, not_service_accounts) in (account_names(), account_names()),
        (trust_domains, not_trust_domains) in (patterns(&["equerry.local", "other.local"]), patterns(&["equerry.local", "other.local"])),
    ) -> Source {
        Source {
            principals, namespaces, request_principals, ip_blocks, service_accounts, trust_domains, remote_ip_blocks, not_principals,
            not_namespaces, not_request_principals, not_ip_blocks, not_service_accounts, not_trust_domains, not_remote_ip_blocks,
        }
    }
}

prop_compose! {
    fn any_operation()(
        (hosts, not_hosts) in (patterns(&["inventory.shop", "Inventory.shop:8080", "other"]), patterns(&["inventory.shop", "other"])),
        (methods, not_methods) in (patterns(&["GET", "POST"]), patterns(&["GET", "POST"])),
        (paths, not_paths) in (path_patterns(), path_patterns()),
        (ports, not_ports) in (few(prop::sample::select(&[8080_u16, 9090][..])), few(prop::sample::select(&[8080_u16, 9090][..]))),
    ) -> Operation {
        Operation { hosts, methods, paths, ports, not_hosts, not_methods, not_paths, not_ports }
    }
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let text = |of: Attribute, values: &'static [&'static str]| {
        (patterns(values), patterns(values))
            .prop_map(move |(values, not_values)| Condition::Text { of: of.clone(), values, not_values })
            .boxed()
    };
    prop_oneof![
        any_source().prop_map(|source| Condition::Source(Box::new(source))),
        (few(prop::sample::select(&[8080_u16, 9090][..])), few(prop::sample::select(&[8080_u16, 9090][..]))).prop_map(
            |(ports, not_ports)| Condition::Operation(Box::new(Operation { ports, not_ports, ..Operation::default() }))
        ),
        (blocks(), blocks()).prop_map(|(values, not_values)| Condition::DestinationIp { values, not_values }),
        text(Attribute::Header("x-role".to_owned()), &["user", "admin", "user,admin"]),
        text(Attribute::Claim(vec!["groups".to_owned()]), &["dev", "ops"]),
        text(Attribute::Audiences, &["orders", "cart"]),
        text(Attribute::Presenter, &["web"]),
        text(Attribute::Sni, &["p8080.inventory.shop.mesh", "other"]),
    ]
}

prop_compose! {
    fn any_rule()(
        from in prop::collection::vec(any_source(), 0..3),
        to in prop::collection::vec(any_operation(), 0..3),
        when in prop::collection::vec(any_condition(), 0..2),
    ) -> AuthorizationRule {
        AuthorizationRule { from, to, when, origin: Origin::default() }
    }
}

prop_compose! {
    fn any_request()(
        peer in prop::option::of(prop::sample::select(&PRINCIPALS[..4])),
        subject in prop::option::of(prop::sample::select(&["ada", "bob"][..])),
        groups in prop::sample::select(GROUPS),
        method in prop::sample::select(&[Method::GET, Method::POST][..]),
        path in prop::sample::select(PATHS),
        roles in prop::sample::select(ROLES),
        sni in prop::option::of(Just("p8080.inventory.shop.mesh")),
        port in prop::sample::select(&[8080_u16, 9090][..]),
    ) -> Request {
        let claims = subject.map(|subject| json!({"sub": subject, "groups": groups, "aud": "orders", "azp": "web"}));
        let lines: Vec<(&str, &str)> = roles.iter().map(|role| ("x-role", *role)).collect();
        Request { peer, claims, method, path, sni, port, ..Request::default() }.headers(&lines)
    }
}

fn compiled(policies: &[AuthorizationPolicy]) -> CompiledWorkload {
    let nothing = equerry_policies::policy::Meaning::default();
    let account = AccountName::parse("shop/inventory").unwrap();
    let mut view = view::workload(&nothing, &WorkloadFacts { account, labels: [].into(), ports: vec![] });
    view.authorization = policies.iter().map(|policy| Scoped { ports: None, policy: policy.clone() }).collect();
    // As a proxy gets it.
    let sent = serde_json::to_string(&view).unwrap();
    compile::workload(&serde_json::from_str(&sent).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_is_that_of_a_plain_model_of_istios_semantics(
        rules in prop::collection::vec((0_u8..6, prop::collection::vec(any_rule(), 0..4)), 0..5),
        requests in prop::collection::vec(any_request(), 4),
    ) {
        let policies: Vec<AuthorizationPolicy> = rules.into_iter().enumerate().map(|(number, (kind, rules))| AuthorizationPolicy {
            name: PolicyName::parse(&format!("shop/p{number}")).unwrap(),
            target: Target::Namespace,
            action: match kind { 0 | 1 => Action::Deny, 2 => Action::Audit, _ => Action::Allow },
            shadow: kind == 5 || kind == 1,
            rules,
            origin: Origin::default(),
        }).collect();
        let workload = compiled(&policies);
        let mut enforced = policies.clone();
        enforced.iter_mut().for_each(|policy| policy.shadow &= policy.action == Action::Audit);
        for request in requests {
            let decided = request.model(&policies, false);
            prop_assert_eq!(request.at(&workload), decided.clone());
            prop_assert_eq!(request.connects(&workload), request.model(&policies, true));
            let would = request.model(&enforced, false);
            let instead = request.noted(&workload).and_then(|noted| noted.instead.map(|(would, _)| would));
            let expected = match (decided.is_ok(), would.is_ok()) {
                (true, false) => Some(Would::Deny),
                (false, true) => Some(Would::Allow),
                _ => None,
            };
            prop_assert_eq!(instead, expected);
        }
    }
}

//! Collectors by HTTPS: who is believed, what is said to people of those who are not, and keys that are told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use equerry_certs::{pem, tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::tests::{Sink, sent_to, status};
use super::{Collector, Headers};

/// An authority, and a directory where its root stands.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::new(Vec::new()).unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let root = params.self_signed(&key).unwrap().der().clone();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), pem::certificates(std::slice::from_ref(&root))).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a server shows that this authority gave a certificate to.
    fn server(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        acceptor(leaf, &key)
    }
}

fn acceptor(leaf: CertificateDer<'static>, key: &KeyPair) -> TlsAcceptor {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(tls::provider());
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    TlsAcceptor::from(Arc::new(config.with_single_cert(vec![leaf], key).unwrap()))
}

fn collector(host: &str, port: u16, ca: Option<&Path>) -> Collector {
    let endpoint = format!("https://{host}:{port}").parse().unwrap();
    Collector { endpoint, ca: ca.map(Path::to_owned), headers: Headers::None }
}

/// Why there is no connection; it must be for good.
async fn unreached(to: &Collector) -> String {
    let unreached = to.connect().await.err().expect("it is believed");
    assert!(!unreached.again, "another try would change nothing: {}", unreached.why);
    unreached.why
}

#[tokio::test]
async fn spans_go_by_https_to_whoever_a_root_vouches_for_by_name_and_by_address() {
    let authority = Authority::new("ours");
    let ca = authority.file("ca.pem");
    let server = authority.server(&["localhost", "127.0.0.1"], |_| {});
    let sink = Sink::open(vec![status(503)], Some(server)).await;
    for (host, asked) in [("127.0.0.1", 2), ("localhost", 3)] {
        assert_eq!(sent_to(&sink, collector(host, sink.port, Some(&ca)), asked).await, ([3, 0, 0], asked));
    }
    assert_eq!(sink.header("host")[2].as_deref(), Some(format!("localhost:{}", sink.port).as_str()));
}

#[tokio::test]
async fn who_is_not_vouched_for_hears_nothing_and_people_what_to_do() {
    let (authority, other, namesake) = (Authority::new("ours"), Authority::new("theirs"), Authority::new("ours"));
    let [ca, wrong, anew] = [&authority, &other, &namesake].map(|one| one.file("ca.pem"));
    let good = || authority.server(&["127.0.0.1"], |_| {});
    let own_key = KeyPair::generate().unwrap();
    let mut own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = own.self_signed(&own_key).unwrap().der().clone();
    let own_file = authority.file("own.pem");
    std::fs::write(&own_file, pem::certificates(std::slice::from_ref(&own))).unwrap();
    for (server, believed, words) in [
        (good(), Some(&wrong), "leads to no root of --otlp-ca"),
        (good(), Some(&anew), "leads to no root of --otlp-ca"),
        (good(), None, "name the root that issued it by --otlp-ca FILE"),
        (
            authority.server(&["127.0.0.1"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)),
            Some(&ca),
            "has expired: have it renewed",
        ),
        (
            authority.server(&["127.0.0.1"], |params| params.not_before = rcgen::date_time_ymd(2200, 1, 1)),
            Some(&ca),
            "not valid yet: look at this machine's clock",
        ),
        (
            authority.server(&["otlp.test", "collector.test"], |_| {}),
            Some(&ca),
            "not for 127.0.0.1 but for otlp.test, collector.test: write that name in --otlp-endpoint",
        ),
        (acceptor(own, &own_key), Some(&own_file), "an authority's own, which may not stand for a server"),
    ] {
        let sink = Sink::open(Vec::new(), Some(server)).await;
        let to = collector("127.0.0.1", sink.port, believed.map(PathBuf::as_path));
        let why = unreached(&to).await;
        assert!(why.contains(words), "expected {words:?}: {why}");
        // Nobody is asked, and what is lost is counted at once.
        assert_eq!(sent_to(&sink, to, 0).await, ([0, 0, 3], 0), "{words}");
    }
    let plain = Sink::open(Vec::new(), None).await;
    let why = unreached(&collector("127.0.0.1", plain.port, Some(&ca))).await;
    assert!(why.contains("does not speak TLS there: write http://"), "{why}");
}

#[tokio::test]
async fn a_collector_is_told_the_headers_given_for_it_and_of_a_new_key_without_a_restart() {
    let authority = Authority::new("ours");
    let (ca, keys) = (authority.file("ca.pem"), authority.file("headers"));
    let server = authority.server(&["127.0.0.1"], |_| {});
    let sink = Sink::open(vec![status(200), status(401)], Some(server)).await;
    let given = ["x-key=a%2Cb%3D".to_owned(), "x-tenant=shop".to_owned()];
    let given = Headers::of_pairs(&given).unwrap();
    assert!(!format!("{given:?}").contains("a,b"), "{given:?}");
    let to = Collector { headers: given, ..collector("127.0.0.1", sink.port, Some(&ca)) };
    assert_eq!(sent_to(&sink, to, 1).await, ([3, 0, 0], 1));
    assert_eq!((&sink.header("x-key")[..], sink.header("x-tenant").len()), (&[Some("a,b=".to_owned())][..], 1));

    std::fs::write(&keys, "x-key: old\n").unwrap();
    let to = || Collector { headers: Headers::File(keys.clone()), ..collector("127.0.0.1", sink.port, Some(&ca)) };
    let ((tracer, spans), counted) = (super::Tracer::new(1.0, super::Forms::default()), super::tests::outcomes());
    let running = super::Exporter::new(to(), spans, counted.clone(), &[]).start();
    let send = async |asked: u64| {
        let headers = &mut http::HeaderMap::new();
        let trace = tracer.begin(super::Direction::Inbound, headers, std::time::SystemTime::now()).0.unwrap();
        tracer.finished(&trace, &super::super::tests::an_exchange());
        let all = async {
            while counted.with_label_values(&["failed"]).get() + counted.with_label_values(&["sent"]).get() < asked {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), all).await.unwrap();
    };
    send(1).await;
    std::fs::write(&keys, "x-key: new\n").unwrap();
    send(2).await;
    running.finish(std::time::Duration::from_secs(5)).await;
    assert_eq!(sink.header("x-key")[1..], [Some("old".to_owned()), Some("new".to_owned())]);
    assert_eq!(counted.with_label_values(&["sent"]).get(), 1, "the one that was refused is counted as failed");
    assert!(to().about_keys().contains("--otlp-headers-file"));
}

//! Tests only: an issuer's web server over real sockets, with a certificate of its own CA, that says whatever a test makes
//! it say and counts who asks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use equerry_certs::tls;
use equerry_policies::compile::KeySource;
use equerry_policies::policy::KeyUrl;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What is said to who asks.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// 200 with this body.
    Body(String),
    /// These bytes, whatever they are, and then the end.
    Raw(Vec<u8>),
    /// A head that promises 200 MB, and then a megabyte after the other.
    Endless,
    /// Nothing, for ever.
    Nothing,
    /// The connection ends at once, without TLS.
    Closed,
    /// A handshake that never comes.
    NoHandshake,
}

/// The server; it ends with the runtime of its test.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    pub(crate) address: SocketAddr,
    ca: Vec<u8>,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    /// One for `login.test` and 127.0.0.1.
    pub(crate) async fn start(says: Says) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_der = ca.self_signed(&ca_key).unwrap().der().to_vec();
        let signer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["login.test".to_owned(), "127.0.0.1".to_owned()];
        let leaf = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &signer).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let issuer = Self {
            address: listener.local_addr().unwrap(),
            ca: ca_der,
            says: Arc::new(Mutex::new(says)),
            asked: Arc::default(),
        };
        let (serving, acceptor) = (issuer.clone(), TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serving.clone().answer(stream, acceptor.clone()));
            }
        });
        issuer
    }

    /// What is said from now on.
    pub(crate) fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    /// How often somebody came.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Where its keys are, at `host`.
    pub(crate) fn source_at(&self, host: &str) -> Arc<KeySource> {
        Arc::new(KeySource {
            issuer: format!("https://issuer-{}", self.address.port()).into(),
            url: KeyUrl::parse(&format!("https://{host}:{}/keys", self.address.port())).unwrap(),
            ca: Some(vec![self.ca.clone()]),
            timeout: Duration::from_millis(500),
        })
    }

    /// Where its keys are.
    pub(crate) fn source(&self) -> Arc<KeySource> {
        self.source_at("127.0.0.1")
    }

    /// Its CA, as a policy holds it.
    pub(crate) fn ca_pem(&self) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.ca);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    async fn answer(self, stream: TcpStream, acceptor: TlsAcceptor) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let says = self.says.lock().unwrap().clone();
        match says {
            Says::Closed => return,
            Says::NoHandshake => return std::future::pending().await,
            _ => {}
        }
        let Ok(mut stream) = acceptor.accept(stream).await else { return };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let bytes = match says {
            Says::Body(body) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes(),
            Says::Raw(bytes) => bytes,
            Says::Endless => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 200000000\r\n\r\n").await;
                while stream.write_all(&[b' '; 1 << 20]).await.is_ok() {}
                return;
            }
            _ => return std::future::pending().await,
        };
        // Whoever asked may have left.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
    }
}

/// A key set of Ed25519 keys with these ids.
pub(crate) fn set(ids: &[&str]) -> String {
    let key = |id: &&str| json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    json!({"keys": ids.iter().map(key).collect::<Vec<_>>()}).to_string()
}

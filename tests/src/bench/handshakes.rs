//! Full mutual-TLS handshakes: a connection, one request, the end; no ticket is ever used.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;

use super::load::Sample;
use super::machine;
use super::peers::Site;
use super::tools;

/// How to call a server: as whom, and by what name.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Call {
    /// As this configuration says, by `name`, with no tickets.
    ///
    /// # Errors
    /// When the name is none.
    pub(crate) fn new(mut config: ClientConfig, name: &str) -> Result<Self> {
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), name: ServerName::try_from(name.to_owned())? })
    }

    /// With the certificates of the peers.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn peers(site: &Site) -> Result<Self> {
        let file = |name: &str| site.dir.join(name);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_file(file("ca.pem"))?)?;
        let chain = vec![rustls_pki_types::CertificateDer::from_pem_file(file("client.pem"))?];
        let key = rustls_pki_types::PrivateKeyDer::from_pem_file(file("client.pem"))?;
        let config = ClientConfig::builder_with_provider(equerry_certs::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Self::new(config, "server.mesh")
    }

    /// One handshake, one request, one answer.
    fn once(&self, port: u16) -> Result<()> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())?;
        let mut stream = StreamOwned::new(connection, stream);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")?;
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).context("reading the answer")?;
        if !answer[..read].starts_with(b"HTTP/1.1 200") {
            bail!("answered {:?}", String::from_utf8_lossy(&answer[..read.min(200)]));
        }
        Ok(())
    }
}

/// Makes handshakes one after the other for a time. `proxies` are the processes whose time counts.
///
/// # Errors
/// When one fails.
pub(crate) fn put(call: &Call, port: u16, time: Duration, proxies: &[u32]) -> Result<Sample> {
    let (before, began) = (machine::ran(proxies), Instant::now());
    let mut micros = Vec::new();
    while began.elapsed() < time {
        let one = Instant::now();
        call.once(port)?;
        micros.push(one.elapsed().as_secs_f64() * 1e6);
    }
    let took = began.elapsed();
    let ran = machine::ran(proxies) - before;
    micros.sort_by(f64::total_cmp);
    let requests = micros.len() as u64;
    Ok(Sample {
        requests,
        per_second: requests as f64 / took.as_secs_f64(),
        cpu_micros: ran as f64 / 1e3 / requests.max(1) as f64,
        p50: tools::at(&micros, 0.5),
        p99: tools::at(&micros, 0.99),
        p999: tools::at(&micros, 0.999),
        resident_mib: machine::resident(proxies) as f64 / 1024.0,
        ..Sample::default()
    })
}

/// Opens mutual-TLS connections, asks once on each, and keeps them.
///
/// # Errors
/// When one fails.
pub(crate) fn hold(call: &Call, port: u16, connections: usize) -> Result<Vec<impl Sized>> {
    (0..connections)
        .map(|_| {
            let stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let connection = ClientConnection::new(Arc::clone(&call.config), call.name.clone())?;
            let mut stream = StreamOwned::new(connection, stream);
            stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")?;
            let mut answer = [0; 4096];
            let read = stream.read(&mut answer)?;
            if !answer[..read].starts_with(b"HTTP/1.1 200") {
                bail!("answered {:?}", String::from_utf8_lossy(&answer[..read.min(200)]));
            }
            Ok(stream)
        })
        .collect()
}

//! What all scenarios of a run stand on: the application, the certificates of the peers, the control plane.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use equerry::demo::ports::HeldPort;

use super::machine::LOAD;
use super::measure::Target;
use super::mesh::{ISSUER, Mesh};
use super::peers::{Site, Standing};
use super::say;
use super::server::Server;

/// Everything a scenario needs.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Programs, certificates, configurations.
    pub(crate) site: Site,
    /// Our control plane.
    pub(crate) mesh: Mesh,
    /// The application's port.
    pub(crate) app: u16,
    /// The port of an application that reads whatever it is sent.
    pub(crate) sink: u16,
    /// How often a scenario measures each target.
    pub(crate) rounds: usize,
    /// For how long.
    pub(crate) time: Duration,
    application: [Server; 2],
    missing: RefCell<BTreeSet<&'static str>>,
}

impl Ground {
    /// Starts applications and control plane.
    ///
    /// # Errors
    /// When something does not come up.
    pub(crate) fn prepare(
        dir: &Path,
        proxy: &Path,
        variables: &[(String, String)],
        rounds: usize,
        time: Duration,
        peers: &[String],
    ) -> Result<Self> {
        std::fs::create_dir_all(dir.join("files"))?;
        std::fs::write(dir.join("files/10m"), vec![b'x'; 10 << 20])?;
        let mut site = Site::new(dir.to_owned(), |peer| peers.is_empty() || peers.iter().any(|wanted| wanted == peer));
        for (name, of) in [
            ("nginx", "the application behind every proxy"),
            ("wrk", "load"),
            ("taskset", "pinning"),
            ("setpriv", "ending children"),
        ] {
            site.program(name).with_context(|| {
                format!("{name} is needed for {of}: apt-get install nginx wrk nghttp2-client haproxy util-linux")
            })?;
        }
        certificates(dir)?;
        site.words.insert("DIR".into(), dir.display().to_string());
        site.words.insert("KIB".into(), "x".repeat(1024));
        let (application, app) = site.one("nginx", "app.nginx.conf", LOAD, None).context("starting the application")?;
        site.words.insert("APP".into(), app.to_string());
        let (drain, sink) = tool(dir, "sink").context("starting the sink")?;
        let mesh = Mesh::start(dir, proxy, variables.to_vec()).context("starting the control plane")?;
        site.words.insert("ISSUER".into(), ISSUER.into());
        site.words.insert("JWKS".into(), mesh.key_set());
        Ok(Self { site, mesh, app, sink, rounds, time, application: [application, drain], missing: RefCell::default() })
    }

    /// The application's processes.
    pub(crate) fn application(&self) -> Vec<u32> {
        self.application.iter().flat_map(Server::family).collect()
    }

    /// Adds a peer, or says that it is missing.
    ///
    /// # Errors
    /// When it is there and does not come up.
    pub(crate) fn peer(
        &self,
        to: &mut Vec<Target>,
        name: &'static str,
        program: &'static str,
        start: impl FnOnce(&Site) -> Result<Standing>,
    ) -> Result<()> {
        if !self.site.wants(program) {
            return Ok(());
        }
        if self.site.program(program).is_none() {
            if self.missing.borrow_mut().insert(program) {
                say(&format!("  {program} is not installed: left out"));
            }
            return Ok(());
        }
        to.push(Target::peer(name, start(&self.site).with_context(|| name)?));
        Ok(())
    }

    /// Programs that were wanted and not found.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.missing.borrow().iter().copied().collect()
    }
}

/// This program as another one that listens on a port (its first argument), on the application's core.
fn tool(dir: &Path, name: &str) -> Result<(Server, u16)> {
    let held = HeldPort::take()?;
    let port = held.number();
    held.release();
    let words = [name.to_owned(), format!("127.0.0.1:{port}")];
    Ok((Server::start(name, LOAD, &std::env::current_exe()?, &words, dir)?.listens_on(port)?, port))
}

/// An authority, a server and a client certificate for the peers: ECDSA P-256, as the mesh's own are.
fn certificates(dir: &Path) -> Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::new(Vec::new())?;
    // A leaf with the name of its issuer would pass for self-signed.
    authority.distinguished_name.push(DnType::CommonName, "bench authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key)?;
    std::fs::write(dir.join("ca.pem"), root.pem())?;
    let issuer = Issuer::new(authority, authority_key);
    for (name, purpose) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(vec![format!("{name}.mesh")])?;
        leaf.distinguished_name.push(DnType::CommonName, name);
        leaf.extended_key_usages = vec![purpose];
        let signed = leaf.signed_by(&key, &issuer)?;
        std::fs::write(dir.join(format!("{name}.pem")), format!("{}{}", signed.pem(), key.serialize_pem()))?;
    }
    Ok(())
}

//! Our side: a control plane for the run, and sidecars of the build under test with the policies of a scenario.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use equerry::demo::issuer::{Issuer, Token};
use equerry::demo::ports::HeldPort;
use equerry::demo::town::{Town, write_secret};
use equerry_certs::tls;
use equerry_certs::{Identity, JoinToken, Request, TrustBundle};
use equerry_policies::names::SpiffeId;
use equerry_wire::proto::SignRequest;
use equerry_wire::proto::identity_client::IdentityClient;
use tokio::runtime::Runtime;

use super::handshakes::Call;
use super::machine::PROXIES;
use super::server::Server;

/// The issuer of the tokens that policies ask for.
pub(crate) const ISSUER: &str = "https://bench.example.com";
/// Rules of the authorization policy; only the last allows what is asked.
const RULES: usize = 100;
/// How long a sidecar may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// The control plane of a run, and what its sidecars need.
#[derive(Debug)]
pub(crate) struct Mesh {
    town: Town,
    issuer: Issuer,
    proxy: PathBuf,
    variables: Vec<(String, String)>,
    dir: PathBuf,
    runtime: Runtime,
}

/// A sidecar under test.
#[derive(Debug)]
pub(crate) struct Sidecar {
    /// Its process.
    pub(crate) server: Server,
    /// Where its application calls.
    pub(crate) outbound: u16,
    /// Where the mesh calls.
    pub(crate) inbound: u16,
    /// Its access log, when it writes one.
    pub(crate) access_log: Option<PathBuf>,
}

impl Mesh {
    /// Starts the control plane, on no core in particular: it rests while load runs. Sidecars will run `proxy` with these
    /// environment variables.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn start(dir: &Path, proxy: &Path, variables: Vec<(String, String)>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let dir = dir.join("mesh");
        std::fs::create_dir_all(&dir)?;
        let issuer = Issuer::create(&dir.join("issuer.key"))?;
        let town = Town::plan(&std::env::current_exe()?, &dir, &[])?;
        runtime.block_on(town.start_control_plane(&[]))?;
        Ok(Self { town, issuer, proxy: proxy.to_owned(), variables, dir, runtime })
    }

    /// The issuer's key set, as JSON on one line.
    pub(crate) fn key_set(&self) -> String {
        self.issuer.key_set()
    }

    /// A token that the policies accept, of tenant `acme`.
    pub(crate) fn token(&self) -> String {
        let tenant = ["tenant".to_owned()];
        self.issuer.mint(&Token::new(ISSUER, Some("bench"), "load").tenant((&tenant, "acme")))
    }

    /// Calls to instances of the Service `to`, as `account`, with a certificate of this mesh.
    ///
    /// # Errors
    /// When the control plane gives none.
    pub(crate) fn call(&self, account: &str, to: &str) -> Result<Call> {
        let chain_and_roots = async {
            let token = JoinToken::parse(&self.town.join_token(account, "10m").await?)?;
            let request = Request::new()?;
            let channel = equerry_tests::grpc::without_certificate(&self.town, token.pin()).await?;
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
            let join_token = token.credential().to_string();
            let asked = SignRequest { csr_der: request.csr_der, join_token, now_unix_ms: u64::try_from(now)? };
            let signed = IdentityClient::new(channel).sign(asked).await?.into_inner();
            let chain = signed.chain_der.into_iter().map(Into::into).collect();
            let roots = signed.roots_der.into_iter().map(Into::into).collect();
            let identity = Identity::new(request.key, chain)?;
            let trust_domain = identity.id().trust_domain.clone();
            let expected = SpiffeId::parse(&format!("spiffe://{trust_domain}/ns/shop/sa/{to}"))?;
            let bundle = TrustBundle::new(trust_domain, roots)?;
            anyhow::Ok(tls::client_config(Some(&identity), &bundle, vec![expected], &[tls::ALPN_H1])?)
        };
        Call::new(self.runtime.block_on(chain_and_roots)?, &format!("p8080.{to}.shop.mesh"))
    }

    /// Applies documents.
    ///
    /// # Errors
    /// When they are refused.
    pub(crate) fn apply(&self, name: &str, text: &str) -> Result<()> {
        let file = self.dir.join(format!("{name}.yaml"));
        std::fs::write(&file, text)?;
        self.runtime
            .block_on(self.town.equerry(&["apply", "-f", &file.display().to_string()]))?
            .succeeded()
            .with_context(|| format!("applying {name}"))?;
        Ok(())
    }

    /// Starts the sidecar `name` (its instance, account and label `app`) beside the application on `app`, and waits until it
    /// is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn sidecar(&self, name: &str, app: u16, access_log: bool) -> Result<Sidecar> {
        self.sidecar_with(name, app, access_log, &[])
    }

    /// The same with more words on its command line.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn sidecar_with(&self, name: &str, app: u16, access_log: bool, more: &[&str]) -> Result<Sidecar> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        write_secret(&dir.join("join-token"), &self.runtime.block_on(self.town.join_token(name, "10m"))?)?;
        let held = [HeldPort::take()?, HeldPort::take()?, HeldPort::take()?, HeldPort::take()?];
        let [outbound, inbound, admin, telemetry] = [0, 1, 2, 3].map(|n: usize| held[n].number());
        let text = |path: PathBuf| path.display().to_string();
        let at = |port: u16| format!("127.0.0.1:{port}");
        let access_log = access_log.then(|| dir.join("access.log"));
        let log = access_log.clone().map_or_else(|| "off".to_owned(), text);
        let args = [
            ("--control-plane", self.town.grpc.address()),
            ("--join-token-file", text(dir.join("join-token"))),
            ("--instance", name.to_owned()),
            ("--label", format!("app={name}")),
            ("--app-port", format!("8080={app}")),
            ("--state-dir", text(dir.join("state"))),
            ("--outbound", at(outbound)),
            ("--inbound", at(inbound)),
            ("--advertise", at(inbound)),
            ("--admin", at(admin)),
            ("--telemetry", at(telemetry)),
            ("--access-log", log),
            ("--workers", "1".to_owned()),
            ("--drain-timeout", "1s".to_owned()),
            ("--log", "warn".to_owned()),
        ];
        let mut words = vec!["run".to_owned()];
        words.extend(args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        words.extend(more.iter().map(|word| (*word).to_owned()));
        held.iter().for_each(HeldPort::release);
        let server = Server::start_with(name, PROXIES, &self.proxy, &words, &self.variables, &self.dir)?;
        let server = server.listens_on(telemetry)?;
        ready(telemetry).with_context(|| format!("{name}:\n{}", server.log_tail()))?;
        Ok(Sidecar { server, outbound, inbound, access_log })
    }

    /// Whether the proxy under test has a flag.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub(crate) fn proxy_knows(&self, flag: &str) -> Result<bool> {
        let said =
            std::process::Command::new(&self.proxy).args(["run", "--help"]).output().context("asking for help")?;
        Ok(String::from_utf8_lossy(&said.stdout).contains(flag))
    }

    /// A Service with this name whose instances are sidecars of the same name.
    pub(crate) fn service(name: &str, mtls: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, annotations: {{equerry.dev/accounts: {name}}}}}\n\
             spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n\
             apiVersion: equerry.dev/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: {name}}}}}, mtls: {{mode: {mtls}}}}}\n"
        )
    }

    /// A Service with this name that is the application itself, without a sidecar.
    pub(crate) fn application(name: &str, app: u16) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nendpoints: [{{addresses: [127.0.0.1]}}]\nports: [{{name: http, port: {app}}}]\n"
        )
    }

    /// Everything the inbound side can be asked for: a token, 100 rules of which the last allows, a tenant with a quota.
    pub(crate) fn inbound_policy(&self, name: &str) -> String {
        let rules: String = (0..RULES)
            .map(|n| if n + 1 < RULES { format!("/part-{n}/*") } else { "/*".to_owned() })
            .map(|path| format!("  - to: [{{operation: {{methods: [GET], paths: [\"{path}\"]}}}}]\n"))
            .collect();
        format!(
            "---\napiVersion: equerry.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Service, name: {name}}}]\n  \
             jwtRules:\n  - issuer: {ISSUER}\n    audiences: [bench]\n    required: true\n    claimsToHeaders: [{{claim: sub, header: x-user}}]\n    jwks: {}\n\
             ---\napiVersion: equerry.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Service, name: {name}}}]\n  rules:\n{rules}",
            self.key_set()
        )
    }

    /// The tenant that the token names, with a quota nobody reaches, counted at these Services.
    pub(crate) fn tenant(services: &[&str]) -> String {
        let services: Vec<String> = services.iter().map(|name| format!("shop/{name}")).collect();
        format!(
            "---\napiVersion: equerry.dev/v1\nkind: Tenant\nmetadata: {{name: acme}}\nspec:\n  match: [{{claim: {{name: tenant, value: acme}}}}]\n  \
             quotas: [{{services: [{}], requests: 1000000000, window: 1m}}]\n",
            services.join(", ")
        )
    }

    /// Everything the outbound side can be asked for: a route with timeouts and retries, a retry budget, a breaker.
    pub(crate) fn outbound_policy(name: &str) -> String {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             parentRefs: [{{group: \"\", kind: Service, name: {name}}}]\n  rules:\n  - matches: [{{path: {{type: PathPrefix, value: /}}, method: GET}}]\n    \
             backendRefs: [{{name: {name}, port: 80}}]\n    timeouts: {{request: 15s, backendRequest: 5s}}\n    retry: {{codes: [502, 503, 504], attempts: 2, backoff: 25ms}}\n\
             ---\napiVersion: equerry.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Service, name: {name}}}]\n  \
             retryBudget: {{percent: 20, minPerSecond: 10}}\n  breaker: {{consecutiveFailures: 5, penalty: {{min: 1s, max: 60s}}}}\n"
        )
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.runtime.block_on(self.town.stop());
    }
}

/// Waits until `/healthz/ready` answers 200.
fn ready(telemetry: u16) -> Result<()> {
    let deadline = Instant::now() + READY;
    loop {
        let (status, said) = super::tools::get(telemetry, "/healthz/ready", &[]).unwrap_or_default();
        if status == 200 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not ready after {READY:?}: {status} {said}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

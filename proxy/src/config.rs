//! What the operator says: flags, `EQUERRY_*` variables and a YAML file, in that order of precedence, read once.
//!
//! One list of settings serves flags, variables and the file, so that none can know a setting the others do not.

mod addresses;
mod health;
mod ports;
mod shown;
mod traces;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use equerry_policies::names::InstanceId;
use equerry_policies::policy::{Ask, Labels};
use serde::Deserialize;
use tracing_subscriber::filter::{LevelFilter, Targets};

pub use addresses::AddressBlock;
use health::GivenHealth;
use ports::NameServer;
pub use ports::{AppPort, TcpPort};
pub use shown::{Sources, Written};
pub use traces::Traces;
use traces::{GivenTraces, HeadersFrom};

use crate::observe::{AccessLogTarget, B3Form};

/// Data workers unless asked otherwise: a sidecar should not outgrow its application.
const MOST_WORKERS: usize = 2;
/// Longest configuration file.
const MAX_FILE: u64 = 1 << 20;

/// The sidecar of the Equerry mesh.
#[derive(Debug, Parser)]
#[command(name = "equerry-proxy", version, propagate_version = true, max_term_width = 120)]
pub struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Who said which of its settings.
    #[arg(skip)]
    pub(crate) sources: Sources,
    /// Itself, as it was written.
    #[arg(skip)]
    pub(crate) written: Written,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the sidecar beside one instance of an application.
    ///
    /// The first start needs a join token, made with `equerry token create join --namespace NS --account A`; from then on
    /// the certificate in the state directory is renewed by itself. Namespace and account come from the certificate.
    ///
    /// The application sends its calls to the outbound address (as an HTTP proxy, or with the Host header naming the
    /// Service); other sidecars call the inbound address, and allowed requests reach the application on 127.0.0.1.
    #[command(
        after_help = "Every setting is also a variable EQUERRY_NAME_WITH_UNDERSCORES and a key of the --config file; \
        a flag wins over a variable, a variable over the file.\n\nSignals: TERM and INT drain and exit, USR1 opens the access log again, \
        HUP does that too and takes up `log` from the file."
    )]
    Run(Box<Given>),
    /// Waits until the sidecar is ready, and says what is missing when it is not in time.
    Wait(WaitFor),
}

/// `equerry-proxy wait`.
#[derive(Debug, Args)]
pub(crate) struct WaitFor {
    /// Telemetry address of the sidecar.
    #[arg(long, env = "EQUERRY_TELEMETRY", default_value = "127.0.0.1:15090", value_name = "IP:PORT")]
    pub(crate) telemetry: SocketAddr,
    /// How long to wait.
    #[arg(long, env = "EQUERRY_TIMEOUT", default_value = "60s", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// Settings as they were given in one place. Anything may be missing.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Given {
    /// YAML file with any of these settings, its keys named like the flags.
    #[arg(long, env = "EQUERRY_CONFIG_FILE", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// The control plane's gRPC address (required).
    #[arg(long, env = "EQUERRY_CONTROL_PLANE", value_name = "HOST:PORT")]
    control_plane: Option<String>,
    /// One-time token for the first start; better in a file, where other users do not see it.
    #[arg(
        long,
        env = "EQUERRY_JOIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "join_token_file"
    )]
    join_token: Option<String>,
    /// File that holds the one-time token; read again at each try.
    #[arg(long, env = "EQUERRY_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// Name of this instance, unique in its namespace [default: the host's name].
    #[arg(long, env = "EQUERRY_INSTANCE", value_name = "ID")]
    instance: Option<String>,
    /// Label of this instance, which Services select by; may be repeated.
    #[arg(long, env = "EQUERRY_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    label: Option<Vec<String>>,
    /// Port of the application as the mesh knows it; it listens there, or on LOCAL, at 127.0.0.1. May be repeated. Only
    /// these are ever forwarded to; the first is probed.
    #[arg(long, env = "EQUERRY_APP_PORT", value_name = "PORT[=LOCAL]", value_delimiter = ',')]
    app_port: Option<Vec<AppPort>>,
    /// Local port that leads to a Service port, as plain TCP, or as requests where HTTP comes and the port declares nothing: the
    /// application connects to 127.0.0.1 there, such as `5432=db.shop` or `6380=cache:6379`. May be repeated.
    #[arg(long, env = "EQUERRY_TCP", value_name = "LOCAL=SERVICE[.NS][:PORT]", value_delimiter = ',')]
    tcp: Option<Vec<TcpPort>>,
    /// Directory for the identity and the last good configuration [default: /var/lib/equerry-proxy].
    #[arg(long, env = "EQUERRY_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where the application sends its calls [default: 127.0.0.1:15001].
    #[arg(long, env = "EQUERRY_OUTBOUND", value_name = "IP:PORT")]
    outbound: Option<SocketAddr>,
    /// Where other sidecars call [default: 0.0.0.0:15006].
    #[arg(long, env = "EQUERRY_INBOUND", value_name = "IP:PORT")]
    inbound: Option<SocketAddr>,
    /// Address that other sidecars are told [default: the inbound port at this host's address toward the control plane].
    #[arg(long, env = "EQUERRY_ADVERTISE", value_name = "IP:PORT")]
    advertise: Option<SocketAddr>,
    /// Admin address, for people on this machine [default: 127.0.0.1:15000].
    #[arg(long, env = "EQUERRY_ADMIN", value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
    /// Metrics and health, for scrapers and kubelets [default: 0.0.0.0:15090].
    #[arg(long, env = "EQUERRY_TELEMETRY", value_name = "IP:PORT")]
    telemetry: Option<SocketAddr>,
    /// Name server for names outside the mesh, port 53 unless said; may be repeated [default: those of /etc/resolv.conf].
    #[arg(long, env = "EQUERRY_DNS", value_name = "IP[:PORT]", value_delimiter = ',')]
    dns: Option<Vec<NameServer>>,
    /// Addresses that issuers' keys may be fetched from although nobody is usually asked there: loopback, link-local and metadata
    /// services; may be repeated.
    #[arg(long, env = "EQUERRY_JWKS_ALLOW", value_name = "IP[/BITS]", value_delimiter = ',')]
    jwks_allow: Option<Vec<AddressBlock>>,
    /// What is spoken to other sidecars: HTTP/2 but for upgrades and large bodies (auto), or HTTP/1.1 [default: auto].
    #[arg(long, env = "EQUERRY_MESH_PROTOCOL", value_name = "auto|http1")]
    mesh_protocol: Option<MeshProtocol>,
    /// Data threads [default: 2, or the CPU quota when that is less].
    #[arg(long, env = "EQUERRY_WORKERS", value_name = "N")]
    workers: Option<usize>,
    /// Connections of callers held at once, in and out together; beyond them callers are told 503 [default: 16384, or as many
    /// as the file descriptors carry, two for each].
    #[arg(long, env = "EQUERRY_MAX_CONNECTIONS", value_name = "N")]
    max_connections: Option<usize>,
    /// Access log: `-` for standard output, `off`, or a file [default: -].
    #[arg(long, env = "EQUERRY_ACCESS_LOG", value_name = "-|off|PATH")]
    access_log: Option<String>,
    /// Collector that spans are sent to by OTLP over HTTP or HTTPS, such as `http://127.0.0.1:4318` or
    /// `https://otlp.example.com`; without it there are none.
    #[arg(long, env = "EQUERRY_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// PEM file of the roots that vouch for an https collector [default: those this machine trusts].
    #[arg(long, env = "EQUERRY_OTLP_CA", value_name = "FILE")]
    otlp_ca: Option<PathBuf>,
    /// Header the collector is told with each request, such as its key, VALUE percent-encoded as in OTEL_EXPORTER_OTLP_HEADERS; may be
    /// repeated. Better in a file, where other users do not see it.
    #[arg(
        long,
        env = "EQUERRY_OTLP_HEADERS",
        value_name = "NAME=VALUE",
        value_delimiter = ',',
        hide_env_values = true,
        conflicts_with = "otlp_headers_file"
    )]
    otlp_headers: Option<Vec<String>>,
    /// File of such headers, lines NAME: VALUE; read again with each connection.
    #[arg(long, env = "EQUERRY_OTLP_HEADERS_FILE", value_name = "FILE")]
    otlp_headers_file: Option<PathBuf>,
    /// Share, 0 to 1, of the traces that begin at this sidecar of which spans are kept; a caller's decision is followed [default: 1].
    #[arg(long, env = "EQUERRY_TRACE_SAMPLING", value_name = "SHARE")]
    trace_sampling: Option<f64>,
    /// Form of B3 that the next hop is told the trace in, beside W3C's and the forms it came in; may be repeated.
    #[arg(long, env = "EQUERRY_TRACE_HEADERS", value_name = "b3|b3multi", value_delimiter = ',')]
    trace_headers: Option<Vec<B3Form>>,
    /// Path the application answers with 2xx while healthy; without it, accepting a connection is enough.
    #[arg(long, env = "EQUERRY_HEALTH_PATH", value_name = "PATH")]
    health_path: Option<String>,
    /// Statuses that --health-path is answered with while healthy, such as 200 or 200-399; may be repeated [default: 200-299].
    #[arg(long, env = "EQUERRY_HEALTH_STATUS", value_name = "STATUS[-STATUS]", value_delimiter = ',')]
    health_status: Option<Vec<String>>,
    /// Ask the application's grpc.health.v1 service instead; for one service by name, else for the server as a whole.
    #[arg(long, env = "EQUERRY_HEALTH_GRPC", value_name = "SERVICE", num_args = 0..=1, default_missing_value = "")]
    health_grpc: Option<String>,
    /// Port of the application that is asked, at 127.0.0.1 [default: where the first --app-port leads].
    #[arg(long, env = "EQUERRY_HEALTH_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    health_port: Option<u16>,
    /// How long to wait for exchanges in flight when stopping, and at the end of a rotation of the root [default: 30s].
    #[arg(long, env = "EQUERRY_DRAIN_TIMEOUT", value_name = "DURATION")]
    drain_timeout: Option<String>,
    /// What to log to standard error: error, warn, info, debug, trace, or a filter [default: info].
    #[arg(long, env = "EQUERRY_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Print every setting in force and who said it, secrets masked, and end.
    #[arg(long)]
    #[serde(skip)]
    print_config: bool,
    /// End when standard input closes, so that a supervisor's death takes its children along.
    #[arg(long, hide = true)]
    #[serde(skip)]
    exit_with_stdin: bool,
}

/// What is spoken to other sidecars.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeshProtocol {
    /// HTTP/2, which all exchanges of a worker with one sidecar share a connection of; upgrades, which it does not know, take
    /// HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1: one exchange at a time on a connection.
    Http1,
}

/// Settings, checked and complete.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `HOST:PORT` of the control plane's gRPC listener.
    pub control_plane: String,
    /// Where a join token comes from, if it was given.
    pub join_token: Option<JoinTokenFrom>,
    /// This instance.
    pub instance: InstanceId,
    /// Its labels.
    pub labels: Labels,
    /// Ports of the application; the only ones forwarded to.
    pub app_ports: Vec<AppPort>,
    /// Local ports that lead to Services as plain TCP.
    pub tcp: Vec<TcpPort>,
    /// Where identity and last good configuration are kept.
    pub state_dir: PathBuf,
    /// The application's way into the mesh.
    pub outbound: SocketAddr,
    /// The mesh's way to the application.
    pub inbound: SocketAddr,
    /// What other sidecars are told, when the operator says it.
    pub advertise: Option<SocketAddr>,
    /// For people on this machine.
    pub admin: SocketAddr,
    /// For scrapers and kubelets.
    pub telemetry: SocketAddr,
    /// Name servers for names outside the mesh; none: those of this machine.
    pub dns: Vec<SocketAddr>,
    /// Blocked addresses that issuers' keys may be fetched from.
    pub jwks_allow: Vec<AddressBlock>,
    /// What is spoken to other sidecars.
    pub mesh_protocol: MeshProtocol,
    /// Data threads; at least 1.
    pub workers: usize,
    /// Connections of callers held at once; `None`: as many as the process can carry.
    pub max_connections: Option<usize>,
    /// Where access log lines go.
    pub access_log: AccessLogTarget,
    /// Where spans go; `None`: nowhere.
    pub traces: Option<Traces>,
    /// What the application is asked to see whether it is well.
    pub health: Ask,
    /// Where, at 127.0.0.1; `None`: on its first port.
    pub health_port: Option<u16>,
    /// Longest wait for exchanges in flight when stopping, and over connections whose root is believed no more.
    pub drain_timeout: Duration,
    /// `tracing` filter.
    pub log: String,
    /// End when standard input closes.
    pub exit_with_stdin: bool,
    /// Who said what.
    pub sources: Sources,
    /// The command line it was read from, to be read again.
    pub line: Written,
}

/// Where a join token comes from.
#[derive(Clone)]
pub enum JoinTokenFrom {
    /// Given as it is.
    Text(String),
    /// Read from this file at each try.
    File(PathBuf),
}

impl std::fmt::Debug for JoinTokenFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(...)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// A setting that cannot be used: which, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadSettings(String);

fn bad(text: impl Into<String>) -> BadSettings {
    BadSettings(text.into())
}

impl Given {
    /// Adds what the file says where neither flag nor variable spoke, then defaults, then checks everything.
    ///
    /// # Errors
    /// [`BadSettings`] names the setting and what is expected.
    pub fn complete(self) -> Result<Settings, BadSettings> {
        self.complete_from(Sources::default())
    }

    /// Whether the settings are only to be printed.
    pub(crate) fn only_printed(&self) -> bool {
        self.print_config
    }

    /// The same, where it is known who `said` what was given.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn complete_from(self, said: Sources) -> Result<Settings, BadSettings> {
        let (file, sources) = match &self.config {
            Some(path) => {
                let (file, keys) = read_file(path)?;
                (file, said.or_file(path, keys))
            }
            None => (Self::default(), said),
        };
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let join_token = match (self.join_token, self.join_token_file) {
            (Some(text), _) => Some(JoinTokenFrom::Text(text)),
            (None, Some(path)) => Some(JoinTokenFrom::File(path)),
            (None, None) => file.join_token.map(JoinTokenFrom::Text).or(file.join_token_file.map(JoinTokenFrom::File)),
        };
        let drain_timeout = self.drain_timeout.or(file.drain_timeout);
        let app_ports = self.app_port.or(file.app_port).unwrap_or_default();
        if let Some(twice) =
            app_ports.iter().enumerate().find_map(|(n, one)| app_ports[..n].iter().find(|other| other.port == one.port))
        {
            return Err(bad(format!("--app-port {}: given twice", twice.port)));
        }
        let tcp = self.tcp.or(file.tcp).unwrap_or_default();
        if let Some(twice) =
            tcp.iter().enumerate().find_map(|(n, one)| tcp[..n].iter().find(|other| other.local == one.local))
        {
            return Err(bad(format!("--tcp {}: given twice", twice.local)));
        }
        let traces = GivenTraces {
            endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            ca: self.otlp_ca.or(file.otlp_ca),
            told: HeadersFrom::either(self.otlp_headers, self.otlp_headers_file)
                .or(HeadersFrom::either(file.otlp_headers, file.otlp_headers_file)),
            sampling: self.trace_sampling.or(file.trace_sampling),
            headers: self.trace_headers.or(file.trace_headers),
        };
        let health = GivenHealth {
            path: self.health_path.or(file.health_path),
            status: self.health_status.or(file.health_status),
            grpc: self.health_grpc.or(file.health_grpc),
        };
        Ok(Settings {
            control_plane: host_and_port(self.control_plane.or(file.control_plane))?,
            join_token,
            instance: instance(self.instance.or(file.instance))?,
            labels: labels(self.label.or(file.label).unwrap_or_default())?,
            app_ports,
            tcp,
            state_dir: self.state_dir.or(file.state_dir).unwrap_or_else(|| "/var/lib/equerry-proxy".into()),
            outbound: self.outbound.or(file.outbound).unwrap_or_else(|| local(15_001)),
            inbound: self.inbound.or(file.inbound).unwrap_or_else(|| any(15_006)),
            advertise: advertise(self.advertise.or(file.advertise))?,
            admin: self.admin.or(file.admin).unwrap_or_else(|| local(15_000)),
            telemetry: self.telemetry.or(file.telemetry).unwrap_or_else(|| any(15_090)),
            mesh_protocol: self.mesh_protocol.or(file.mesh_protocol).unwrap_or_default(),
            dns: self.dns.or(file.dns).unwrap_or_default().into_iter().map(|server| server.0).collect(),
            jwks_allow: self.jwks_allow.or(file.jwks_allow).unwrap_or_default(),
            workers: workers(self.workers.or(file.workers))?,
            max_connections: at_least_one("--max-connections", self.max_connections.or(file.max_connections))?,
            access_log: match self.access_log.or(file.access_log).as_deref() {
                None | Some("-") => AccessLogTarget::Stdout,
                Some("off") => AccessLogTarget::Off,
                Some(path) => AccessLogTarget::File(path.into()),
            },
            traces: traces.complete()?,
            health: health.complete()?,
            health_port: self.health_port.or(file.health_port),
            drain_timeout: match drain_timeout {
                Some(text) => duration(&text).map_err(|error| bad(format!("--drain-timeout {text:?}: {error}")))?,
                None => Duration::from_secs(30),
            },
            log: log_filter(self.log.or(file.log))?,
            exit_with_stdin: self.exit_with_stdin,
            sources,
            line: Written::default(),
        })
    }
}

/// What a file says, and of which settings.
fn read_file(path: &Path) -> Result<(Given, BTreeSet<String>), BadSettings> {
    let said = |error: &dyn std::fmt::Display| bad(format!("--config {}: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| said(&error))?.len();
    if size > MAX_FILE {
        return Err(said(&format!("{size} bytes, at most {MAX_FILE} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| said(&error))?;
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    if !text.lines().any(says_something) {
        return Ok((Given::default(), BTreeSet::new()));
    }
    let given = serde_saphyr::from_str(&text).map_err(|error| said(&error))?;
    let keys: BTreeMap<String, serde_json::Value> = serde_saphyr::from_str(&text).map_err(|error| said(&error))?;
    Ok((given, keys.into_keys().collect()))
}

fn host_and_port(given: Option<String>) -> Result<String, BadSettings> {
    let Some(text) = given else {
        return Err(bad(
            "--control-plane is missing: say where the control plane's gRPC listener is, such as mesh.example.com:15012",
        ));
    };
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => Ok(text),
        _ => Err(bad(format!("--control-plane {text:?}: expected HOST:PORT, such as mesh.example.com:15012"))),
    }
}

fn instance(given: Option<String>) -> Result<InstanceId, BadSettings> {
    match given {
        Some(text) => InstanceId::parse(&text).map_err(|error| bad(format!("--instance: {error}"))),
        None => {
            let host =
                std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase();
            InstanceId::parse(&host).map_err(|_| {
                bad("--instance is missing, and the host's name cannot stand in for it: name this instance")
            })
        }
    }
}

fn labels(given: Vec<String>) -> Result<Labels, BadSettings> {
    let mut labels = Labels::new();
    for text in given {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => (key.to_owned(), value.to_owned()),
            _ => return Err(bad(format!("--label {text:?}: expected KEY=VALUE"))),
        };
        if labels.insert(key, value).is_some() {
            return Err(bad(format!("--label {text:?}: its key is given twice")));
        }
    }
    Ok(labels)
}

fn advertise(given: Option<SocketAddr>) -> Result<Option<SocketAddr>, BadSettings> {
    match given {
        Some(address) if address.ip().is_unspecified() || address.port() == 0 => {
            Err(bad(format!("--advertise {address}: expected an address others can connect to")))
        }
        given => Ok(given),
    }
}

fn workers(given: Option<usize>) -> Result<usize, BadSettings> {
    let usual = || std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_WORKERS));
    Ok(at_least_one("--workers", given)?.unwrap_or_else(usual))
}

fn at_least_one(setting: &str, given: Option<usize>) -> Result<Option<usize>, BadSettings> {
    if given == Some(0) { Err(bad(format!("{setting} 0: expected at least 1"))) } else { Ok(given) }
}

pub(crate) fn log_filter(given: Option<String>) -> Result<String, BadSettings> {
    let text = given.unwrap_or_else(|| "info".to_owned());
    let expected = "expected error, warn, info, debug, trace, or MODULE=LEVEL,...";
    // A word alone would be taken for a module, of which everything is logged, and of all others nothing.
    let stray = text.split(',').map(str::trim).find(|part| !part.contains('=') && part.parse::<LevelFilter>().is_err());
    match (stray, text.parse::<Targets>()) {
        (Some(word), _) => Err(bad(format!("--log {text:?}: {word:?} is no level; {expected}"))),
        (None, Ok(_)) => Ok(text),
        (None, Err(error)) => Err(bad(format!("--log {text:?}: {error}; {expected}"))),
    }
}

/// Reads `250ms`, `30s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("expected a number and a unit: ms, s, m or h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number and a unit: ms, s, m or h".to_owned())?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

impl Settings {
    /// Where the application listens for what the mesh calls `port`; `None`: it registered no such port.
    pub fn local_port(&self, port: u16) -> Option<u16> {
        self.app_ports.iter().find(|known| known.port == port).map(|known| known.local)
    }

    /// What other sidecars are told: as the operator said, else the inbound listener's own address, else (when that is
    /// any address) the address of this host that faces the control plane.
    pub fn advertised(&self, inbound: SocketAddr) -> SocketAddr {
        if let Some(address) = self.advertise {
            return address;
        }
        if inbound.ip().is_unspecified() {
            SocketAddr::new(facing(&self.control_plane).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), inbound.port())
        } else {
            inbound
        }
    }
}

/// The local address packets toward `peer` leave from. Connecting a datagram socket sends nothing.
fn facing(peer: &str) -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Reads the command line; help and mistakes are printed by the caller.
pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, clap::Error> {
    let written: Vec<OsString> = args.into_iter().collect();
    let matches = CommandLine::command().try_get_matches_from(&written)?;
    let mut line = CommandLine::from_arg_matches(&matches)?;
    line.sources = matches.subcommand().map(|(_, matches)| Sources::of_line(matches)).unwrap_or_default();
    line.written = Written(written);
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Given {
        let line = read(["equerry-proxy", "run"].iter().chain(args).map(OsString::from)).unwrap();
        match line.command {
            Command::Run(given) => *given,
            Command::Wait(_) => unreachable!("run was asked for"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, "control-plane: file:1\ninstance: from-file\napp-port: [8080, 9090=40123]\nlabel: [app=orders]\ndrain-timeout: 5s\n").unwrap();
        let settings = given(&["--config", path.to_str().unwrap(), "--instance", "from-flag"]).complete().unwrap();
        assert_eq!(settings.instance.as_str(), "from-flag");
        assert_eq!(settings.control_plane, "file:1");
        assert_eq!(
            (settings.local_port(8080), settings.local_port(9090), settings.local_port(1)),
            (Some(8080), Some(40_123), None)
        );
        assert_eq!(settings.drain_timeout, Duration::from_secs(5));
        assert_eq!(settings.labels["app"], "orders");
        assert_eq!(settings.outbound.port(), 15_001);
        assert!(settings.outbound.ip().is_loopback());
    }

    #[test]
    fn what_may_be_repeated_is_a_list_with_commas_too() {
        let ready = ["--control-plane", "x:1", "--instance", "a", "--tcp", "1=a,2=b.shop:9", "--tcp", "3=c"];
        assert_eq!(given(&ready).complete().unwrap().tcp.len(), 3);
        let settings = given(&["--control-plane", "x:1", "--instance", "a", "--dns", "10.0.0.1,10.0.0.2:5353"]);
        assert_eq!(settings.complete().unwrap().dns.len(), 2);
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, "control-plane: x:1\nworkerz: 3\n").unwrap();
        let error = given(&["--config", path.to_str().unwrap()]).complete().unwrap_err().to_string();
        assert!(error.contains("workerz") && error.contains("proxy.yaml"), "{error}");
    }

    #[test]
    fn each_setting_that_cannot_be_used_is_named() {
        for (args, named) in [
            (&["--instance", "a"][..], "--control-plane"),
            (&["--control-plane", "no-port"], "--control-plane"),
            (&["--control-plane", "x:1", "--instance", "Not Valid"], "--instance"),
            (&["--control-plane", "x:1", "--instance", "a", "--label", "app"], "--label"),
            (&["--control-plane", "x:1", "--instance", "a", "--drain-timeout", "soon"], "--drain-timeout"),
            (&["--control-plane", "x:1", "--instance", "a", "--workers", "0"], "--workers"),
            (&["--control-plane", "x:1", "--instance", "a", "--max-connections", "0"], "--max-connections"),
            (&["--control-plane", "x:1", "--instance", "a", "--app-port", "80", "--app-port", "80=81"], "--app-port"),
            (&["--control-plane", "x:1", "--instance", "a", "--tcp", "80=a", "--tcp", "80=b"], "--tcp"),
            (&["--control-plane", "x:1", "--instance", "a", "--advertise", "0.0.0.0:1"], "--advertise"),
            (&["--control-plane", "x:1", "--instance", "a", "--health-path", "healthz"], "--health-path"),
            (&["--control-plane", "x:1", "--instance", "a", "--log", "equerry=louder"], "--log"),
            (&["--control-plane", "x:1", "--instance", "a", "--log", "verbose"], "--log"),
        ] {
            let error = given(args).complete().unwrap_err().to_string();
            assert!(error.contains(named), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_join_token_is_never_shown() {
        let settings =
            given(&["--control-plane", "x:1", "--instance", "a", "--join-token", "eqj1.SECRET"]).complete().unwrap();
        assert!(!format!("{settings:?}").contains("SECRET"));
    }
}

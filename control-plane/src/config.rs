//! What the operator says: flags, `EQUERRY_*` variables and a YAML file, in that order of precedence, read once.
//!
//! One list of settings serves flags, variables and the file, so that none can know a setting the others do not.

mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use equerry_certs::Zeroizing;
use equerry_policies::names::TrustDomain;
use serde::Deserialize;
use tracing_subscriber::filter::{LevelFilter, Targets};

pub use shown::{Setting, Sources};

use crate::authority::BroughtFiles;
use crate::store;

/// Longest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Certificates live no shorter: a sidecar renews at two thirds and must have time to try again ...
const SHORTEST_LIFE: Duration = Duration::from_secs(5 * 60);
/// ... and no longer: nothing revokes them but their end.
/// Nobody should lose today's entries by a slip of the pen.
const SHORTEST_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The control plane of the Equerry mesh.
#[derive(Debug, Parser)]
#[command(name = "equerry-control-plane", version, propagate_version = true, max_term_width = 120)]
pub struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Who said which of its settings.
    #[arg(skip)]
    pub(crate) sources: Sources,
}

/// Reads the command line; help and mistakes are printed by the caller.
pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, clap::Error> {
    let matches = CommandLine::command().try_get_matches_from(args)?;
    let mut line = CommandLine::from_arg_matches(&matches)?;
    line.sources = matches.subcommand().map(|(_, matches)| Sources::of_line(matches)).unwrap_or_default();
    Ok(line)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the control plane.
    ///
    /// The first start makes a certificate authority, an admin token and a store in the state directory, and prints where
    /// they are. Let people in with `equerry context add URL --ca STATE/ca.pem --token-file STATE/admin.token`, and
    /// workloads with `equerry token create join --namespace NS --account A`.
    #[command(
        after_help = "Every setting is also a variable EQUERRY_NAME_WITH_UNDERSCORES and a key of the --config file; \
        a flag wins over a variable, a variable over the file.\n\nSignals: TERM and INT stop, sidecars go on with what they know; \
        HUP takes up `log` from the file."
    )]
    Serve(Box<Given>),
    /// Writes a backup: store, authority and its keys, sealed with a passphrase. The control plane may be running.
    #[command(
        after_help = "Whoever has the file and the passphrase is the mesh's authority: keep them apart.\n\nExample:\n  \
        equerry-control-plane backup --to /backup/mesh-2026-11-21 --passphrase-file /etc/equerry/backup.passphrase"
    )]
    Backup {
        /// Directory of the control plane's state [default: /var/lib/equerry].
        #[arg(
            long,
            env = "EQUERRY_STATE_DIR",
            value_name = "DIR",
            default_value = "/var/lib/equerry",
            hide_default_value = true
        )]
        state_dir: PathBuf,
        /// Where documents and instances are kept [default: sqlite:STATE_DIR/equerry.db].
        #[arg(long, env = "EQUERRY_STORE", value_name = "sqlite:PATH", value_parser = store::parse_location)]
        store: Option<PathBuf>,
        /// The new file.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Makes a state directory from a backup. It must not be there yet, or be empty.
    ///
    /// Workloads that had joined go on as before; join tokens made after the backup are unknown, and what was applied after
    /// it must be applied again.
    Restore {
        /// The backup.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// The directory to be made [default: /var/lib/equerry].
        #[arg(
            long,
            env = "EQUERRY_STATE_DIR",
            value_name = "DIR",
            default_value = "/var/lib/equerry",
            hide_default_value = true
        )]
        state_dir: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
    },
}

/// Where a passphrase comes from: never from the command line, which others can see.
#[derive(Debug, Args)]
pub(crate) struct Passphrase {
    /// File with the passphrase in its first line, readable by its owner alone; or the variable EQUERRY_BACKUP_PASSPHRASE.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    /// The passphrase.
    ///
    /// # Errors
    /// When there is none, or others can read its file.
    pub(crate) fn read(&self) -> Result<Zeroizing<String>, BadSettings> {
        let Some(path) = &self.passphrase_file else {
            let missing = |_| bad("no passphrase: give --passphrase-file FILE, or set EQUERRY_BACKUP_PASSPHRASE");
            return std::env::var("EQUERRY_BACKUP_PASSPHRASE").map(Zeroizing::new).map_err(missing);
        };
        let said = |error: &dyn std::fmt::Display| bad(format!("--passphrase-file {}: {error}", path.display()));
        let mode = std::fs::metadata(path).map_err(|error| said(&error))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(said(&format!("others can read it (mode {mode:04o}): chmod 600 {}", path.display())));
        }
        let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| said(&error))?;
        Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
    }
}

/// Settings as they were given in one place. Anything may be missing.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Given {
    /// YAML file with any of these settings, its keys named like the flags.
    #[arg(long, env = "EQUERRY_CONFIG_FILE", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Directory for the authority's keys, the admin token and the store [default: /var/lib/equerry].
    #[arg(long, env = "EQUERRY_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where documents and instances are kept [default: sqlite:STATE_DIR/equerry.db].
    #[arg(long, env = "EQUERRY_STORE", value_name = "sqlite:PATH")]
    store: Option<String>,
    /// Where sidecars connect [default: 127.0.0.1:15012].
    #[arg(long, env = "EQUERRY_GRPC", value_name = "IP:PORT")]
    grpc: Option<SocketAddr>,
    /// Where people and programs connect, HTTPS [default: 127.0.0.1:15014].
    #[arg(long, env = "EQUERRY_ADMIN", value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
    /// DNS names and addresses, beside localhost, by which people reach the admin API: they go into its certificate.
    #[arg(long, env = "EQUERRY_ADVERTISE", value_name = "NAME,IP,...", value_delimiter = ',')]
    advertise: Option<Vec<String>>,
    /// Name of the mesh in every identity; fixed at first start [default: equerry.local].
    #[arg(long, env = "EQUERRY_TRUST_DOMAIN", value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// How long workload certificates live, 5m to 30d; they are renewed at two thirds [default: 24h].
    #[arg(long, env = "EQUERRY_CERTIFICATE_LIFETIME", value_name = "DURATION")]
    certificate_lifetime: Option<String>,
    /// Let certificates live shorter than 5m, for tests of what happens when they end.
    #[arg(long, hide = true)]
    #[serde(skip)]
    short_lived: bool,
    /// PEM of somebody else's root, under which --issuer-cert issues; instead of a root that is made here.
    #[arg(long, env = "EQUERRY_ROOT", value_name = "FILE")]
    root: Option<PathBuf>,
    /// PEM of the issuing certificate that was brought, then of those between it and --root.
    #[arg(long, env = "EQUERRY_ISSUER_CERT", value_name = "FILE")]
    issuer_cert: Option<PathBuf>,
    /// PEM of that certificate's key (PKCS#8), readable by its owner alone.
    #[arg(long, env = "EQUERRY_ISSUER_KEY", value_name = "FILE")]
    issuer_key: Option<PathBuf>,
    /// How long entries of the audit log are kept, 1d at least [default: 400d].
    #[arg(long, env = "EQUERRY_AUDIT_RETENTION", value_name = "DURATION")]
    audit_retention: Option<String>,
    /// What to log to standard error: error, warn, info, debug, trace, or a filter [default: info].
    #[arg(long, env = "EQUERRY_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// The most pages of 4 KiB the store may have; beyond that it is full, and refuses changes [default: as many as the disk holds].
    #[arg(long, env = "EQUERRY_MAX_PAGES", value_name = "N")]
    max_pages: Option<u32>,
    /// Print every setting in force and who said it, and end.
    #[arg(long)]
    #[serde(skip)]
    print_config: bool,
    /// End when standard input closes, so that a supervisor's death takes its children along.
    #[arg(long, hide = true)]
    #[serde(skip)]
    exit_with_stdin: bool,
}

/// Settings, checked and complete.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Keys, tokens and the lock.
    pub state_dir: PathBuf,
    /// The SQLite file.
    pub store: PathBuf,
    /// Its greatest size in pages.
    pub max_pages: Option<u32>,
    /// Where sidecars connect.
    pub grpc: SocketAddr,
    /// Where people connect.
    pub admin: SocketAddr,
    /// Names in the admin API's certificate.
    pub advertise: Vec<String>,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// How long workload certificates live.
    pub certificate_lifetime: Duration,
    /// Where an authority is that was brought.
    pub brought: Option<BroughtFiles>,
    /// How long entries of the audit log are kept.
    pub audit_retention: Duration,
    /// `tracing` filter.
    pub log: String,
    /// End when standard input closes.
    pub exit_with_stdin: bool,
    /// Who said what.
    pub sources: Sources,
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
        let state_dir = self.state_dir.or(file.state_dir).unwrap_or_else(|| "/var/lib/equerry".into());
        let store = match self.store.or(file.store) {
            Some(text) => store::parse_location(&text).map_err(|error| bad(format!("--store: {error}")))?,
            None => state_dir.join("equerry.db"),
        };
        let trust_domain = self.trust_domain.or(file.trust_domain).unwrap_or_else(|| "equerry.local".to_owned());
        let lifetime = self.certificate_lifetime.or(file.certificate_lifetime).unwrap_or_else(|| "24h".to_owned());
        Ok(Settings {
            store,
            state_dir,
            max_pages: self.max_pages.or(file.max_pages),
            grpc: self.grpc.or(file.grpc).unwrap_or_else(|| local(15_012)),
            admin: self.admin.or(file.admin).unwrap_or_else(|| local(15_014)),
            advertise: self.advertise.or(file.advertise).unwrap_or_default(),
            trust_domain: TrustDomain::parse(&trust_domain).map_err(|error| bad(format!("--trust-domain: {error}")))?,
            certificate_lifetime: lifetime_of(&lifetime, self.short_lived)?,
            brought: brought_of(
                self.root.or(file.root),
                self.issuer_cert.or(file.issuer_cert),
                self.issuer_key.or(file.issuer_key),
            )?,
            audit_retention: retention_of(self.audit_retention.or(file.audit_retention).as_deref())?,
            log: log_filter(self.log.or(file.log))?,
            exit_with_stdin: self.exit_with_stdin,
            sources,
        })
    }
}

/// What is to be logged.
///
/// # Errors
/// When it is no filter.
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

fn brought_of(
    root: Option<PathBuf>,
    issuer: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<BroughtFiles>, BadSettings> {
    match (root, issuer, key) {
        (Some(root), Some(issuer), Some(key)) => Ok(Some(BroughtFiles { root, issuer, key })),
        (None, None, None) => Ok(None),
        (root, issuer, key) => {
            let given = [("--root", root), ("--issuer-cert", issuer), ("--issuer-key", key)];
            let missing: Vec<_> = given.iter().filter(|(_, path)| path.is_none()).map(|(flag, _)| *flag).collect();
            let missing = missing.join(" and ");
            Err(bad(format!("{missing} missing: a root, an issuing certificate and its key are brought together")))
        }
    }
}

fn lifetime_of(text: &str, short_lived: bool) -> Result<Duration, BadSettings> {
    let lifetime = duration(text)
        .ok_or_else(|| bad(format!("--certificate-lifetime {text:?}: expected a duration such as 24h, 90m or 7d")))?;
    let shortest = if short_lived { Duration::from_secs(10) } else { SHORTEST_LIFE };
    if !(shortest..=LONGEST_LIFE).contains(&lifetime) {
        return Err(bad(format!("--certificate-lifetime {text:?}: expected 5m to 30d")));
    }
    Ok(lifetime)
}

fn retention_of(text: Option<&str>) -> Result<Duration, BadSettings> {
    let text = text.unwrap_or("400d");
    duration(text)
        .filter(|kept| *kept >= SHORTEST_RETENTION)
        .ok_or_else(|| bad(format!("--audit-retention {text:?}: expected a duration of 1d at least, such as 90d")))
}

/// Reads a duration such as `24h`, `90m`, `30s` or `1h30m`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let seconds = match &rest[digits..unit] {
            "d" => 24 * 60 * 60,
            "h" => 60 * 60,
            "m" => 60,
            "s" => 1,
            _ => return None,
        };
        total = total.checked_add(Duration::from_secs(number.checked_mul(seconds)?))?;
        rest = &rest[unit..];
    }
    (!total.is_zero()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(args: &[&str]) -> Result<Settings, BadSettings> {
        let args = ["equerry-control-plane", "serve"].iter().chain(args);
        match CommandLine::try_parse_from(args).unwrap().command {
            Command::Serve(given) => given.complete(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("serve.yaml");
        std::fs::write(&file, "grpc: 127.0.0.1:1\nadmin: 127.0.0.1:2\nadvertise: [mesh.example.com, 10.0.0.1]\n")
            .unwrap();
        let settings = complete(&["--config", file.to_str().unwrap(), "--grpc", "127.0.0.1:3"]).unwrap();
        assert_eq!((settings.grpc.port(), settings.admin.port()), (3, 2));
        assert_eq!(settings.advertise, ["mesh.example.com", "10.0.0.1"]);
        assert_eq!(settings.trust_domain.as_str(), "equerry.local");
        assert_eq!(settings.store, Path::new("/var/lib/equerry/equerry.db"));
    }

    #[test]
    fn an_unknown_key_of_the_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("serve.yaml");
        std::fs::write(&file, "grpcs: 127.0.0.1:1\n").unwrap();
        let error = complete(&["--config", file.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("grpcs") && error.contains("serve.yaml"), "{error}");
    }

    #[test]
    fn a_setting_that_cannot_be_used_is_named() {
        for (flag, value, word) in [
            ("--store", "postgres://x", "not supported by this version"),
            ("--trust-domain", "Shop!", "trust domain"),
            ("--certificate-lifetime", "1m", "5m to 30d"),
            ("--certificate-lifetime", "soon", "expected a duration"),
            ("--audit-retention", "1h", "1d at least"),
            ("--log", "verbose", "is no level"),
        ] {
            let error = complete(&[flag, value]).unwrap_err().to_string();
            assert!(error.starts_with(flag) && error.contains(word), "{error}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("7d"), Some(Duration::from_secs(604_800)));
        for wrong in ["", "h", "10", "5x", "0s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}

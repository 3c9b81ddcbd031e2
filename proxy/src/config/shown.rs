//! The settings in force, and who said each: what `--print-config` prints and `/config` shows. Secrets are masked.
//!
//! What is printed is a YAML file that `--config` takes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;
use equerry_policies::policy::Ask;
use serde_json::{Value, json};

use super::{JoinTokenFrom, MeshProtocol, Settings};
use crate::observe::AccessLogTarget;
use crate::observe::trace::Headers;

/// Stands for a secret.
const MASKED: &str = "***";

/// Who said a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nobody.
    Default,
    /// The command line.
    Flag,
    /// A variable of this name.
    Variable(String),
    /// A file.
    File(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Who said which setting; what is not in it nobody did.
#[derive(Debug, Clone, Default)]
pub struct Sources(BTreeMap<String, Source>);

impl Sources {
    /// Of flags and variables.
    pub(super) fn of_line(matches: &ArgMatches) -> Self {
        let said = |id: &clap::Id| {
            let name = id.as_str().replace('_', "-");
            let variable = || format!("EQUERRY_{}", id.as_str().to_uppercase());
            match matches.value_source(id.as_str())? {
                ValueSource::CommandLine => Some((name, Source::Flag)),
                ValueSource::EnvVariable => Some((name, Source::Variable(variable()))),
                _ => None,
            }
        };
        Self(matches.ids().filter_map(said).collect())
    }

    /// These, and where they say nothing, a file with these keys.
    pub(super) fn or_file(mut self, path: &Path, keys: BTreeSet<String>) -> Self {
        for key in keys {
            self.0.entry(key).or_insert_with(|| Source::File(path.to_owned()));
        }
        self
    }

    pub(crate) fn of(&self, setting: &str) -> Source {
        self.0.get(setting).cloned().unwrap_or(Source::Default)
    }
}

/// A command line as it was written. It may hold a secret, so it is never shown.
#[derive(Clone, Default)]
pub struct Written(pub(crate) Vec<OsString>);

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Written(...)")
    }
}

impl Settings {
    /// Every setting by its name, as it is in force; null: not set.
    pub(crate) fn shown(&self) -> Vec<(&'static str, Value)> {
        let (path, statuses, grpc) = match &self.health {
            Ask::Http { path, statuses, .. } => {
                let written = |(from, to): &(u16, u16)| {
                    if from == to { json!(from.to_string()) } else { json!(format!("{from}-{to}")) }
                };
                (json!(path), statuses.iter().map(written).collect(), Value::Null)
            }
            Ask::Grpc { service } => (Value::Null, Value::Null, json!(service)),
            Ask::Tcp {} => (Value::Null, Value::Null, Value::Null),
        };
        let token = self.join_token.as_ref();
        let traces = self.traces.as_ref();
        let forms = traces.map(|traces| {
            [("b3", traces.forms.single), ("b3multi", traces.forms.multi)]
                .into_iter()
                .filter(|form| form.1)
                .map(|form| form.0)
        });
        let told = match traces.map(|traces| &traces.to.headers) {
            Some(Headers::Given(headers)) => Some(headers.keys().map(|name| format!("{name}={MASKED}"))),
            _ => None,
        };
        let ports = self.app_ports.iter().map(|port| format!("{}={}", port.port, port.local));
        let tcp = self.tcp.iter().map(|port| format!("{}={}", port.local, port.service));
        vec![
            ("control-plane", json!(self.control_plane)),
            ("join-token", json!(matches!(token, Some(JoinTokenFrom::Text(_))).then_some(MASKED))),
            (
                "join-token-file",
                token
                    .and_then(|token| if let JoinTokenFrom::File(path) = token { Some(json!(path)) } else { None })
                    .into(),
            ),
            ("instance", json!(self.instance)),
            ("label", self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect()),
            ("app-port", ports.collect()),
            ("tcp", tcp.collect()),
            ("state-dir", json!(self.state_dir)),
            ("outbound", json!(self.outbound)),
            ("inbound", json!(self.inbound)),
            ("advertise", json!(self.advertise)),
            ("admin", json!(self.admin)),
            ("telemetry", json!(self.telemetry)),
            ("dns", self.dns.iter().map(ToString::to_string).collect()),
            ("jwks-allow", self.jwks_allow.iter().map(ToString::to_string).collect()),
            ("mesh-protocol", json!(if self.mesh_protocol == MeshProtocol::Auto { "auto" } else { "http1" })),
            ("workers", json!(self.workers)),
            ("max-connections", json!(self.max_connections)),
            (
                "access-log",
                match &self.access_log {
                    AccessLogTarget::Off => json!("off"),
                    AccessLogTarget::Stdout => json!("-"),
                    AccessLogTarget::File(path) => json!(path),
                },
            ),
            ("otlp-endpoint", json!(traces.map(|traces| traces.to.endpoint.to_string()))),
            ("otlp-ca", json!(traces.and_then(|traces| traces.to.ca.as_ref()))),
            ("otlp-headers", told.map(|told| told.collect::<Value>()).into()),
            (
                "otlp-headers-file",
                match traces.map(|traces| &traces.to.headers) {
                    Some(Headers::File(path)) => json!(path),
                    _ => Value::Null,
                },
            ),
            ("trace-sampling", json!(traces.map(|traces| traces.sampling))),
            ("trace-headers", forms.map(|forms| forms.collect::<Value>()).into()),
            ("health-path", path),
            ("health-status", statuses),
            ("health-grpc", grpc),
            ("health-port", json!(self.health_port)),
            ("drain-timeout", json!(format!("{}ms", self.drain_timeout.as_millis()))),
            ("log", json!(self.log)),
        ]
    }

    /// Every setting with who said it, one a line, as YAML.
    pub(crate) fn print(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.shown() {
            let (source, unset) = (self.sources.of(name), if value.is_null() { "# " } else { "" });
            // YAML takes JSON. Writing into a String does not fail.
            let _ = writeln!(text, "{:<59} # {source}", format!("{unset}{name}: {value}"));
        }
        text
    }

    /// The same for programs.
    pub(crate) fn as_json(&self) -> Value {
        let each = self.shown().into_iter().map(|(name, value)| {
            (name.to_owned(), json!({"value": value, "source": self.sources.of(name).to_string()}))
        });
        Value::Object(each.collect())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::{Command, CommandLine, read};
    use super::*;

    /// Of a control surface, not of a setting.
    const NO_SETTINGS: [&str; 5] = ["help", "version", "exit_with_stdin", "print_config", "config"];

    fn settings(args: &[&str]) -> Settings {
        let line = read(["equerry-proxy", "run"].iter().chain(args).map(OsString::from)).unwrap();
        let sources = line.sources;
        match line.command {
            Command::Run(given) => given.complete_from(sources).unwrap(),
            Command::Wait(_) => unreachable!("run was asked for"),
        }
    }

    fn names() -> Vec<String> {
        let line = CommandLine::command();
        let run = line.find_subcommand("run").unwrap();
        let ids = run.get_arguments().map(|arg| arg.get_id().as_str().to_owned());
        ids.filter(|id| !NO_SETTINGS.contains(&id.as_str())).collect()
    }

    #[test]
    fn every_setting_is_a_flag_a_variable_a_key_and_is_shown() {
        let line = CommandLine::command();
        let run = line.find_subcommand("run").unwrap();
        let shown = settings(&["--control-plane", "x:1", "--instance", "a"]).shown();
        let ids = names();
        assert_eq!(ids.len(), shown.len(), "as many are shown as there are");
        for id in ids {
            let arg = run.get_arguments().find(|arg| arg.get_id() == id.as_str()).unwrap();
            let name = id.replace('_', "-");
            assert_eq!(arg.get_long(), Some(name.as_str()));
            let variable = arg.get_env().unwrap_or_else(|| panic!("{id} has no variable"));
            assert_eq!(variable, OsString::from(format!("EQUERRY_{}", id.to_uppercase())).as_os_str());
            assert!(shown.iter().any(|(shown, _)| *shown == name), "{name} is not shown");
            let key = serde_saphyr::from_str::<super::super::Given>(&format!("{name}: null\n"));
            assert!(key.is_ok(), "{name} is no key of the file: {key:?}");
        }
    }

    #[test]
    fn each_says_who_said_it_and_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy.yaml");
        std::fs::write(&file, "control-plane: file:1\ninstance: from-file\njoin-token: eqj1.SECRET\notlp-endpoint: http://a\notlp-headers: [x-key=SECRET, x-tenant=SECRET]\n").unwrap();
        let settings =
            settings(&["--config", file.to_str().unwrap(), "--instance", "from-flag", "--app-port", "8080,9090=1"]);
        let printed = settings.print();
        let source = |name: &str| {
            let line =
                printed.lines().find(|line| line.trim_start_matches("# ").starts_with(&format!("{name}: "))).unwrap();
            line.rsplit(" # ").next().unwrap().to_owned()
        };
        assert_eq!((source("instance"), source("control-plane")), ("flag".to_owned(), file.display().to_string()));
        assert_eq!((source("workers"), source("app-port")), ("default".to_owned(), "flag".to_owned()));
        assert!(printed.contains(r#"otlp-headers: ["x-key=***","x-tenant=***"]"#), "{printed}");
        assert!(printed.contains("join-token: \"***\"") && !printed.contains("SECRET"), "{printed}");
        assert!(!settings.as_json().to_string().contains("SECRET"));
    }

    #[test]
    fn what_is_printed_is_a_file_that_means_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy.yaml");
        let all = [
            "--control-plane",
            "x:1",
            "--instance",
            "a",
            "--label",
            "app=a,v=1",
            "--app-port",
            "8080,9090=1",
            "--tcp",
            "5432=db",
            "--dns",
            "10.0.0.1",
            "--health-path",
            "/healthz",
            "--health-status",
            "200,301-399",
            "--drain-timeout",
            "1500ms",
            "--otlp-endpoint",
            "https://127.0.0.1:4318",
            "--otlp-ca",
            "/ca.pem",
            "--otlp-headers-file",
            "/headers",
            "--trace-sampling",
            "0.5",
            "--trace-headers",
            "b3,b3multi",
            "--access-log",
            "off",
            "--advertise",
            "10.0.0.1:15006",
            "--max-connections",
            "10",
            "--log",
            "warn",
            "--join-token-file",
            "/token",
            "--mesh-protocol",
            "http1",
            "--health-port",
            "81",
        ];
        let first = settings(&all);
        std::fs::write(&file, first.print()).unwrap();
        let again = settings(&["--config", file.to_str().unwrap()]);
        assert_eq!(first.shown(), again.shown());
        let unset = ["join-token", "health-grpc", "otlp-headers"];
        assert!(
            first.shown().iter().all(|(name, value)| value.is_null() == unset.contains(name)),
            "{:?}",
            first.shown()
        );
    }
}

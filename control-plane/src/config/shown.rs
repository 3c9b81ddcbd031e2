//! The settings in force, and who said each: what `--print-config` prints. No setting is a secret; files that hold one are named.
//!
//! What is printed is a YAML file that `--config` takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde_json::{Value, json};

use super::Settings;

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

/// A setting as it is told to whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As in the file.
    pub name: &'static str,
    /// Null: not set.
    pub value: Value,
    /// Who said it: `default`, `flag`, a variable or a file.
    pub said: String,
}

impl Settings {
    /// Every setting that is in force, with who said it.
    pub(crate) fn told(&self) -> Vec<Setting> {
        let told = |(name, value)| Setting { name, value, said: self.sources.of(name).to_string() };
        self.shown().into_iter().map(told).collect()
    }

    /// Every setting by its name, as it is in force; null: not set.
    pub(crate) fn shown(&self) -> Vec<(&'static str, Value)> {
        let brought = self.brought.as_ref();
        vec![
            ("state-dir", json!(self.state_dir)),
            ("store", json!(format!("sqlite:{}", self.store.display()))),
            ("grpc", json!(self.grpc)),
            ("admin", json!(self.admin)),
            ("advertise", json!(self.advertise)),
            ("trust-domain", json!(self.trust_domain)),
            ("certificate-lifetime", json!(format!("{}s", self.certificate_lifetime.as_secs()))),
            ("root", json!(brought.map(|files| &files.root))),
            ("issuer-cert", json!(brought.map(|files| &files.issuer))),
            ("issuer-key", json!(brought.map(|files| &files.key))),
            ("audit-retention", json!(format!("{}s", self.audit_retention.as_secs()))),
            ("max-pages", json!(self.max_pages)),
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
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::CommandFactory as _;

    use super::super::{Command, CommandLine, Given, read};
    use super::*;

    /// Of a control surface, or of tests, not of a setting.
    const NO_SETTINGS: [&str; 6] = ["help", "version", "exit_with_stdin", "print_config", "config", "short_lived"];

    fn settings(args: &[&str]) -> Settings {
        let line = read(["equerry-control-plane", "serve"].iter().chain(args).map(OsString::from)).unwrap();
        match line.command {
            Command::Serve(given) => given.complete_from(line.sources).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_setting_is_a_flag_a_variable_a_key_and_is_shown() {
        let line = CommandLine::command();
        let serve = line.find_subcommand("serve").unwrap();
        let shown = settings(&[]).shown();
        let ids = serve.get_arguments().map(|arg| arg.get_id().as_str());
        let ids: Vec<&str> = ids.filter(|id| !NO_SETTINGS.contains(id)).collect();
        assert_eq!(ids.len(), shown.len(), "as many are shown as there are");
        for id in ids {
            let arg = serve.get_arguments().find(|arg| arg.get_id() == id).unwrap();
            let name = id.replace('_', "-");
            assert_eq!(arg.get_long(), Some(name.as_str()));
            let variable = arg.get_env().unwrap_or_else(|| panic!("{id} has no variable"));
            assert_eq!(variable, OsString::from(format!("EQUERRY_{}", id.to_uppercase())).as_os_str());
            assert!(shown.iter().any(|(shown, _)| *shown == name), "{name} is not shown");
            let key = serde_saphyr::from_str::<Given>(&format!("{name}: null\n"));
            assert!(key.is_ok(), "{name} is no key of the file: {key:?}");
        }
    }

    #[test]
    fn what_is_printed_says_who_said_it_and_is_a_file_that_means_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("serve.yaml");
        std::fs::write(&file, "grpc: 127.0.0.1:1\nadvertise: [mesh.example.com, 10.0.0.1]\n").unwrap();
        let args =
            ["--config", file.to_str().unwrap(), "--log", "warn", "--certificate-lifetime", "7d", "--max-pages", "9"];
        let first = settings(&args);
        let printed = first.print();
        let source = |name: &str| {
            let line =
                printed.lines().find(|line| line.trim_start_matches("# ").starts_with(&format!("{name}: "))).unwrap();
            line.rsplit(" # ").next().unwrap().to_owned()
        };
        assert_eq!((source("log"), source("grpc")), ("flag".to_owned(), file.display().to_string()));
        assert_eq!((source("admin"), source("root")), ("default".to_owned(), "default".to_owned()));
        let again = dir.path().join("again.yaml");
        std::fs::write(&again, &printed).unwrap();
        assert_eq!(first.shown(), settings(&["--config", again.to_str().unwrap()]).shown());
    }
}

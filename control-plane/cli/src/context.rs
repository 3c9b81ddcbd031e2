//! Where the control plane is: flag, then `EQUERRY_*` variable, then the current context of the config file.
//!
//! The config file holds paths, never a secret: the token stays in a file of its own, which must be readable by its
//! owner only.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http::Uri;
use serde::{Deserialize, Serialize};

use crate::args::{Output, OutputArgs};
use crate::failure::Failure;
use crate::get::plain;
use crate::out;

/// Flags that say where the control plane is.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServerArgs {
    /// The control plane's admin address, such as https://127.0.0.1:15014
    #[arg(long, global = true, env = "EQUERRY_SERVER", value_name = "URL", help_heading = "Control plane")]
    server: Option<String>,
    /// Certificates that vouch for it: STATE-DIR/ca.pem
    #[arg(long, global = true, env = "EQUERRY_CA", value_name = "FILE", help_heading = "Control plane")]
    ca: Option<PathBuf>,
    /// File with an admin token: STATE-DIR/admin.token
    #[arg(long, global = true, env = "EQUERRY_TOKEN_FILE", value_name = "FILE", help_heading = "Control plane")]
    token_file: Option<PathBuf>,
    /// A context of the config file, instead of the current one
    #[arg(long, global = true, env = "EQUERRY_CONTEXT", value_name = "NAME", help_heading = "Control plane")]
    context: Option<String>,
}

/// `equerry context ...`
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ContextCommand {
    /// Remember a control plane and make it the current one
    Add {
        /// Its admin address, such as https://127.0.0.1:15014
        url: String,
        /// What to call it; its host by default
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Write over the context that has this name already
        #[arg(long)]
        replace: bool,
    },
    /// Show the contexts; the current one has a star
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a context the current one
    Use {
        /// Its name
        name: String,
    },
}

/// One control plane, as the config file remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Context {
    /// `https://HOST:PORT`
    pub(crate) server: String,
    /// Absolute path of the certificates that vouch for it.
    pub(crate) ca: PathBuf,
    /// Absolute path of the file with the admin token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// What a client needs, read and checked.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Host to connect to and to check the certificate against.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// PEM certificates that vouch for it.
    pub(crate) ca_pem: Vec<u8>,
    /// Where they were read, for messages.
    pub(crate) ca_path: PathBuf,
    /// The bearer token, when there is one.
    pub(crate) token: Option<String>,
}

impl ServerArgs {
    /// Puts flags, variables and the config file together, and reads the files they name.
    pub(crate) fn connection(&self) -> Result<Connection, Failure> {
        let path = config_path()?;
        let remembered = if self.server.is_some() && self.ca.is_some() {
            None
        } else {
            read_config(&path)?.pick(self.context.as_deref())?
        };
        let server = self.server.clone().or_else(|| remembered.as_ref().map(|context| context.server.clone()));
        // The files of a context belong to its server: they are not lent to another one.
        let same = remembered.filter(|context| Some(&context.server) == server.as_ref());
        let ca = self.ca.clone().or_else(|| same.as_ref().map(|context| context.ca.clone()));
        let token_file = self.token_file.clone().or_else(|| same.and_then(|context| context.token_file));
        let (server, ca_path) = match (server, ca) {
            (Some(server), Some(ca_path)) => (server, ca_path),
            (server, _) => return Err(unconfigured(server.as_deref())),
        };
        let (host, port) = address_of(&server)?;
        let ca_pem = fs::read(&ca_path).map_err(|error| {
            Failure::usage(format_args!("cannot read {}: {error}", ca_path.display()))
                .hint("--ca names the control plane's STATE-DIR/ca.pem")
        })?;
        let token = token_file.map(|file| read_token(&file)).transpose()?;
        Ok(Connection { host, port, ca_pem, ca_path, token })
    }

    /// `equerry context ...`
    pub(crate) fn run_context(&self, command: &ContextCommand) -> Result<(), Failure> {
        let path = config_path()?;
        let mut config = read_config(&path)?;
        match command {
            ContextCommand::Add { url, name, replace } => {
                let (host, _) = address_of(url)?;
                let Some(ca) = &self.ca else {
                    return Err(Failure::usage("--ca FILE is missing")
                        .hint("copy STATE-DIR/ca.pem from the control plane's machine and name it with --ca"));
                };
                let token_file = self.token_file.as_deref().map(absolute).transpose()?;
                let name = name.clone().unwrap_or(host);
                let context = Context { server: url.clone(), ca: absolute(ca)?, token_file };
                let done = config.add(&name, context, *replace)?;
                write_config(&path, &config)?;
                out::data(format_args!("context {name} {done} {} and made the current one", path.display()));
            }
            ContextCommand::Use { name } => {
                config.pick(Some(name))?;
                config.current = Some(name.clone());
                write_config(&path, &config)?;
                out::data(format_args!("context {name} is the current one"));
            }
            ContextCommand::List { output } => list(&config, output.output),
        }
        Ok(())
    }
}

/// What is missing before a control plane can be asked.
fn unconfigured(server: Option<&str>) -> Failure {
    match server {
        // The files of another server's context would not prove who this one is.
        Some(server) => Failure::usage(format_args!("nothing says how {server} proves who it is: --ca FILE is missing"))
            .hint("copy STATE-DIR/ca.pem from that control plane's machine and name it with --ca (EQUERRY_CA); the files of a context serve the server of that context only"),
        None => Failure::usage("no control plane is configured").hint(
            "run `equerry context add https://HOST:15014 --ca STATE-DIR/ca.pem --token-file STATE-DIR/admin.token`, or give --server, --ca and --token-file",
        ),
    }
}

fn list(config: &ConfigFile, output: Output) {
    let is_current = |name: &String| config.current.as_ref() == Some(name);
    let items = config.contexts.iter().map(|(name, context)| Listed { name, current: is_current(name), context });
    match output {
        output if plain(output, &serde_json::json!({"items": items.clone().collect::<Vec<_>>()})) => {}
        Output::Name => items.for_each(|item| out::data(item.name)),
        _ if config.contexts.is_empty() => out::say("no context is remembered: `equerry context add` adds one"),
        _ => {
            let rows = items.map(|Listed { name, current, context }| {
                let star = if current { "*" } else { "" };
                let token =
                    context.token_file.as_ref().map_or_else(|| "-".to_owned(), |file| file.display().to_string());
                vec![star.to_owned(), name.clone(), context.server.clone(), context.ca.display().to_string(), token]
            });
            out::data(out::table(&["CURRENT", "NAME", "SERVER", "CA", "TOKEN FILE"], &rows.collect::<Vec<_>>()));
        }
    }
}

/// A context in a list.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    name: &'a String,
    current: bool,
    #[serde(flatten)]
    context: &'a Context,
}

impl ConfigFile {
    /// Remembers a control plane and makes it the current one; says what was done. Another one that has the name already is
    /// written over only by whoever says so.
    fn add(&mut self, name: &str, context: Context, replace: bool) -> Result<&'static str, Failure> {
        let before = self.contexts.get(name);
        if let Some(before) = before.filter(|before| **before != context && !replace) {
            return Err(Failure::usage(format_args!("there is a context {name} already, of {}", before.server))
                .hint("give this one another name with --name NAME, or write over that one with --replace"));
        }
        let done = match before {
            Some(before) if *before == context => "stands in",
            Some(_) => "replaced in",
            None => "added to",
        };
        self.contexts.insert(name.to_owned(), context);
        self.current = Some(name.to_owned());
        Ok(done)
    }

    /// The named context, or the current one.
    fn pick(&self, name: Option<&str>) -> Result<Option<Context>, Failure> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        let Some(context) = self.contexts.get(name) else {
            let near = equerry_policies::names::nearest(name, self.contexts.keys().map(String::as_str));
            let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
            return Err(Failure::usage(format_args!("there is no context {name}{near}"))
                .hint("`equerry context list` shows what there is"));
        };
        Ok(Some(context.clone()))
    }
}

fn config_path() -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("EQUERRY_CONFIG")
        .or_else(|| set("XDG_CONFIG_HOME").map(|home| home.join("equerry/config.json")))
        .or_else(|| set("HOME").map(|home| home.join(".config/equerry/config.json")))
        .ok_or_else(|| {
            Failure::usage("neither HOME nor EQUERRY_CONFIG is set, so there is no place for the config file")
        })
}

fn read_config(path: &Path) -> Result<ConfigFile, Failure> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(error) => return Err(Failure::usage(format_args!("cannot read {}: {error}", path.display()))),
    };
    serde_json::from_slice(&text).map_err(|error| {
        Failure::usage(format_args!("{} is not a config file: {error}", path.display()))
            .hint("correct it, or delete it and run `equerry context add` again")
    })
}

/// Written beside and renamed, so that a crash leaves the old file or the new one.
fn write_config(path: &Path, config: &ConfigFile) -> Result<(), Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::usage(format_args!("cannot write {}: {error}", path.display()));
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| failed(&error))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|error| failed(&error))?;
    serde_json::to_writer_pretty(&mut file, config).map_err(|error| failed(&error))?;
    file.persist(path).map_err(|error| failed(&error))?;
    Ok(())
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let failed = |error| {
        Failure::usage(format_args!("cannot read the token file {}: {error}", path.display()))
            .hint("--token-file names the control plane's STATE-DIR/admin.token")
    };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Failure::usage(format_args!(
            "others than its owner can open the token file {} (mode {:o})",
            path.display(),
            mode & 0o777
        ))
        .hint(format_args!("chmod 600 {}", path.display())));
    }
    Ok(fs::read_to_string(path).map_err(failed)?.trim().to_owned())
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(path).map_err(|error| Failure::usage(format_args!("cannot find {}: {error}", path.display())))
}

/// Host and port of `https://HOST[:PORT][/]`.
fn address_of(url: &str) -> Result<(String, u16), Failure> {
    let wrong = |why: &str| {
        Failure::usage(format_args!("{url:?} is not the address of a control plane: {why}"))
            .hint("write it as https://HOST:15014")
    };
    let uri: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong("it must begin with https://"));
    }
    if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
        return Err(wrong("it must end after the port"));
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), uri.port_u16().unwrap_or(15014)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_host_and_port_only() {
        assert_eq!(address_of("https://mesh.example.com"), Ok(("mesh.example.com".to_owned(), 15014)));
        assert_eq!(address_of("https://[::1]:99/"), Ok(("::1".to_owned(), 99)));
        for wrong in ["http://127.0.0.1:15014", "127.0.0.1:15014", "https://x/api", "not a url"] {
            assert!(address_of(wrong).unwrap_err().hint.unwrap().contains("https://HOST:15014"), "{wrong}");
        }
    }

    #[test]
    fn a_context_that_is_not_there_is_named_with_its_nearest() {
        let context = Context { server: "https://a:1".to_owned(), ca: "/ca.pem".into(), token_file: None };
        let config = ConfigFile {
            current: Some("staging".to_owned()),
            contexts: BTreeMap::from([("staging".to_owned(), context.clone())]),
        };
        assert_eq!(config.pick(None).unwrap(), Some(context));
        assert_eq!(
            config.pick(Some("stagin")).unwrap_err().message,
            "there is no context stagin; did you mean staging?"
        );
    }

    #[test]
    fn a_second_control_plane_takes_the_place_of_the_first_only_when_told_to() {
        let context = |server: &str| Context { server: server.to_owned(), ca: "/ca.pem".into(), token_file: None };
        let mut config = ConfigFile::default();
        assert_eq!(config.add("10.0.0.1", context("https://10.0.0.1"), false), Ok("added to"));
        assert_eq!(config.add("staging", context("https://10.0.0.1:25014"), false), Ok("added to"));
        assert_eq!(config.current.as_deref(), Some("staging"));
        assert_eq!(config.add("10.0.0.1", context("https://10.0.0.1"), false), Ok("stands in"), "the same again");

        let failure = config.add("10.0.0.1", context("https://10.0.0.1:25014"), false).unwrap_err();
        assert_eq!(failure.message, "there is a context 10.0.0.1 already, of https://10.0.0.1");
        assert!(failure.hint.unwrap().contains("--name NAME, or write over that one with --replace"));
        assert_eq!(config.contexts["10.0.0.1"], context("https://10.0.0.1"), "it was written over all the same");

        assert_eq!(config.add("10.0.0.1", context("https://10.0.0.1:25014"), true), Ok("replaced in"));
        assert_eq!(config.contexts["10.0.0.1"].server, "https://10.0.0.1:25014");
    }

    #[test]
    fn a_server_without_the_file_that_vouches_for_it_is_not_called_unconfigured() {
        let failure = unconfigured(Some("https://10.0.0.9:15014"));
        assert_eq!(failure.message, "nothing says how https://10.0.0.9:15014 proves who it is: --ca FILE is missing");
        assert!(unconfigured(None).hint.unwrap().contains("context add"));
    }

    #[test]
    fn a_token_file_open_to_others_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "secret\n").unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_token(file.path()).unwrap_err().message.contains("mode 644"));
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_token(file.path()).unwrap(), "secret");
    }

    #[test]
    fn the_config_file_survives_a_round_trip_and_unknown_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/config.json");
        assert_eq!(read_config(&path).unwrap(), ConfigFile::default());
        let context = Context { server: "https://a:1".to_owned(), ca: "/ca.pem".into(), token_file: Some("/t".into()) };
        let config =
            ConfigFile { current: Some("a".to_owned()), contexts: BTreeMap::from([("a".to_owned(), context)]) };
        write_config(&path, &config).unwrap();
        assert_eq!(read_config(&path).unwrap(), config);
        fs::write(&path, r#"{"curent": "a"}"#).unwrap();
        assert!(read_config(&path).unwrap_err().message.contains("curent"));
    }
}

//! The command line, as `--help` shows it.

use std::ffi::OsString;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::audit::AuditCommand;
use crate::certs::CertsArgs;
use crate::context::{ContextCommand, ServerArgs};
use crate::explain::{ExplainArgs, TestArgs};
use crate::files::FileArgs;
use crate::tap::TapArgs;
use crate::token::TokenCommand;
use crate::top::TopArgs;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Start here:
  equerry demo                               a whole mesh on this machine, with things to try
  equerry context add https://127.0.0.1:15014 --ca STATE/ca.pem --token-file STATE/admin.token
  equerry validate -f policies/              is it right? (needs no control plane)
  equerry test policies/                     do its own tests come out as expected?
  equerry apply -f policies/ --wait          make it so, and prove that every proxy has it
  equerry explain http://orders/ --from shop/frontend --policies policies/

Exit codes:
  0  done                                    4  apply --wait: a proxy refused the change
  1  refused, invalid or not found           5  explain: the request would be refused
  2  the command line is wrong               6  the control plane cannot be reached or trusted
  3  --wait: not every proxy in time

Settings: flag, then EQUERRY_* variable, then the current context of the config file
(EQUERRY_CONFIG, default ~/.config/equerry/config.json). NO_COLOR turns colour off.";

/// A sidecar service mesh that a small team can run: policy in YAML, its effect provable before and after.
#[derive(Debug, Parser)]
#[command(name = "equerry", version, styles = STYLES, after_help = AFTER_HELP, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole mesh on this machine, with live traffic and things to try
    Demo(crate::demo::DemoArgs),
    /// Make documents true: all of them or none
    Apply(ApplyArgs),
    /// Show documents, services, instances, proxies or epochs; watch them
    Get(GetArgs),
    /// Show one thing with all that has to do with it, and why it gets no traffic
    Describe(DescribeArgs),
    /// Show what an apply would change; exits with 0 for nothing, 1 for something, 2 when it cannot be told
    Diff(DiffArgs),
    /// Take documents away
    Delete(DeleteArgs),
    /// Check documents without a control plane; every mistake with file, line and column
    Validate(ValidateArgs),
    /// Show proxies, what they have acknowledged, services, and whatever is amiss with its reason
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say what would happen to a request, and which line of which file decides it
    Explain(Box<ExplainArgs>),
    /// Run the tests that policies carry, offline: what must become of a request, and which rule decides
    Test(TestArgs),
    /// Show certificates and when they end; rotate the root, revoke identities
    Certs(CertsArgs),
    /// Show what tenants have spent of their quotas, and which sidecars hold the rest
    Quota(QuotaArgs),
    /// Show who calls whom now: rates, failures, latency; live in a terminal
    Top(TopArgs),
    /// Show single calls as they end, with the reason of each that did not end well
    Tap(Box<TapArgs>),
    /// Make tokens that let a workload or a person in
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Show who changed what, prove that nobody edited the log, deliver it
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Remember where control planes are
    Context {
        #[command(subcommand)]
        command: ContextCommand,
    },
    /// Print a script that completes this command in a shell
    #[command(
        after_help = "Examples:\n  equerry completion bash > /etc/bash_completion.d/equerry\n  equerry completion zsh > ~/.zfunc/_equerry\n  equerry completion fish > ~/.config/fish/completions/equerry.fish"
    )]
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Show the version of this program, and of the control plane where one is configured
    Version,
    /// Run the sidecar: the same program as `equerry-proxy`
    #[command(disable_help_flag = true)]
    Proxy(PassThrough),
    /// Run the control plane: the same program as `equerry-control-plane`
    #[command(disable_help_flag = true)]
    ControlPlane(PassThrough),
    /// Run one of the demo's applications
    #[command(hide = true)]
    DemoApp(crate::demo::AppArgs),
}

/// Arguments of another program, handed on untouched.
#[derive(Debug, Args)]
pub(crate) struct PassThrough {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub(crate) arguments: Vec<OsString>,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// For people with a wide terminal: more columns
    Wide,
    /// As documents are written
    Yaml,
    /// For programs
    Json,
    /// KIND/NAME, one a line
    Name,
}

/// `-o`
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
}

/// `equerry apply`
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// Say what would change, and change nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Return when every proxy that was connected has acknowledged the change
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait, such as 30s or 2m
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION", requires = "wait")]
    pub(crate) timeout: Duration,
    /// Apply even where tests that policies carry would fail, and do not run them
    #[arg(long)]
    pub(crate) skip_tests: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `equerry get`
#[derive(Debug, Args)]
#[command(
    after_help = "Kinds in every spelling: HTTPRoute, httproute, httproutes; and services, instances, proxies, epochs.\n\nExamples:\n  equerry get services -A\n  equerry get instances -n shop -l app=orders -o wide\n  equerry get proxies -A -w\n  equerry get httproute orders -n shop -o yaml\n  equerry get proxies\n  equerry get epoch 7"
)]
pub(crate) struct GetArgs {
    /// Kind of document, services, instances, proxies, epochs, or all
    pub(crate) kind: String,
    /// Name; everything of the kind by default
    pub(crate) name: Option<String>,
    /// Namespace
    #[arg(short, long, default_value = "default", env = "EQUERRY_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) namespace: String,
    /// Every namespace
    #[arg(short = 'A', long, conflicts_with = "name")]
    pub(crate) all_namespaces: bool,
    /// Only what carries these labels: a=b, a!=b, 'a in (b,c)', a, '!a', joined by commas
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "name")]
    pub(crate) selector: Option<String>,
    /// Show what is there, then each change of it, until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `equerry describe`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  equerry describe service orders -n shop\n  equerry describe instance orders-1 -n shop\n  equerry describe proxy orders-1 -n shop\n  equerry describe httproute orders -n shop"
)]
pub(crate) struct DescribeArgs {
    /// Kind of document, service, instance or proxy
    pub(crate) kind: String,
    /// Name
    pub(crate) name: String,
    /// Namespace
    #[arg(short, long, default_value = "default", env = "EQUERRY_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) namespace: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `equerry diff`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing would change, 1 something would, 2 it cannot be told (the files are wrong, say), 6 the control plane cannot be reached."
)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `equerry quota`
#[derive(Debug, Args)]
pub(crate) struct QuotaArgs {
    /// Only this tenant
    pub(crate) tenant: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `equerry delete`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  equerry delete httproute orders -n shop\n  equerry delete -f policies/")]
pub(crate) struct DeleteArgs {
    /// Kind of document
    #[arg(required_unless_present = "files", requires = "names")]
    pub(crate) kind: Option<String>,
    /// Names
    pub(crate) names: Vec<String>,
    /// Namespace
    #[arg(short, long, default_value = "default", env = "EQUERRY_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) namespace: String,
    /// Delete every document of a file, a directory, or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-", conflicts_with = "kind")]
    pub(crate) files: Vec<std::path::PathBuf>,
    /// Say nothing of documents that are not there
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

/// `equerry validate`
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// A duration as people write it: `500ms`, `30s`, `10m`, `24h`, or several together, `1m30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write 500ms, 30s, 10m, 24h or 1m30s");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[letters..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_declared_without_contradictions() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_read_as_people_write_them() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "5", "s", "5 s", "-5s", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_programs_get_their_arguments_untouched() {
        let parsed = Arguments::try_parse_from(["equerry", "proxy", "run", "--instance", "a", "--help"]).unwrap();
        let Command::Proxy(pass) = parsed.command else { panic!("not the proxy") };
        assert_eq!(pass.arguments, ["run", "--instance", "a", "--help"]);
    }

    #[test]
    fn a_timeout_without_wait_and_a_dry_run_with_it_are_refused() {
        assert!(Arguments::try_parse_from(["equerry", "apply", "-f", "x", "--timeout", "3s"]).is_err());
        assert!(Arguments::try_parse_from(["equerry", "apply", "-f", "x", "--dry-run", "--wait"]).is_err());
        assert!(Arguments::try_parse_from(["equerry", "delete"]).is_err());
    }
}

//! The `equerry` command: applies policy, shows what is, explains what would be, runs the demo.
//!
//! [`run`] is the whole program; the sidecar and the control plane are the same mains under `equerry proxy` and
//! `equerry control-plane`, so that one binary can run everything.

mod apply;
mod args;
mod audit;
mod certs;
mod client;
mod complaints;
mod context;
mod delete;
pub mod demo;
mod describe;
mod diff;
mod events;
mod explain;
mod failure;
mod files;
mod get;
#[cfg(test)]
mod online_tests;
mod out;
mod quota;
mod rows;
mod status;
mod tap;
mod token;
mod top;
mod validate;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Arguments, Command, PassThrough};
use client::Client;
use context::ServerArgs;
use failure::Failure;

/// Runs the command; `args` begin with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    demo::exit_with_stdin_if_asked();
    let arguments = match Arguments::try_parse_from(args.into_iter().collect::<Vec<_>>()) {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed pipe is all that can go wrong with printing help.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::Code::Usage as u8 } else { 0 });
        }
    };
    let server = arguments.server;
    let done = match arguments.command {
        Command::Demo(args) => return demo::run(&args),
        Command::DemoApp(args) => return demo::run_app(args),
        Command::Proxy(pass) => return equerry_proxy::run(renamed("equerry proxy", pass)),
        Command::ControlPlane(pass) => return equerry_control_plane::run(renamed("equerry control-plane", pass)),
        Command::Validate(args) => validate::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Test(args) => explain::run_tests(&args),
        Command::Audit { command: audit::AuditCommand::Verify(args) } if args.offline => audit::verify_offline(&args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "equerry", &mut std::io::stdout());
            Ok(())
        }
        Command::Context { command } => server.run_context(&command),
        command => online(&server, &command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

fn renamed(program: &str, pass: PassThrough) -> impl Iterator<Item = OsString> {
    std::iter::once(OsString::from(program)).chain(pass.arguments)
}

/// The commands that talk to a control plane.
fn online(server: &ServerArgs, command: &Command) -> Result<(), Failure> {
    if matches!(command, Command::Version) {
        out::data(format_args!("equerry {}", env!("CARGO_PKG_VERSION")));
    }
    let connection = match (server.connection(), command) {
        (Err(_), Command::Version) => return Ok(()),
        (connection, _) => connection?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::refused(format_args!("cannot start: {error}")))?;
    runtime.block_on(async {
        let mut client = Client::new(connection)?;
        match command {
            Command::Apply(args) => apply::run(args, &mut client).await,
            Command::Get(args) => get::run(args, &mut client).await,
            Command::Describe(args) => describe::run(args, &mut client).await,
            Command::Diff(args) => diff::run(args, &mut client).await,
            Command::Delete(args) => delete::run(args, &mut client).await,
            Command::Status { output } => status::run(output.output, &mut client).await,
            Command::Certs(args) => certs::run(args, &mut client).await,
            Command::Quota(args) => quota::run(args, &mut client).await,
            Command::Top(args) => top::run(args, &mut client).await,
            Command::Tap(args) => tap::run(args, &mut client).await,
            Command::Token { command } => token::run(command, &mut client).await,
            Command::Audit { command } => audit::run(command, &mut client).await,
            Command::Version => status::version(&mut client).await,
            _ => Err(Failure::usage("this command needs no control plane")),
        }
    })
}

//! How a command ends badly: what happened, what to do next, and the exit code that scripts rely on.

use std::fmt;
use std::process::ExitCode;

use crate::out;

/// Exit codes, part of the command's contract; `equerry --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Documents or a request were refused, or something was not found.
    Refused = 1,
    /// The command line is wrong, or no control plane is configured.
    Usage = 2,
    /// `apply --wait` timed out.
    Timeout = 3,
    /// A proxy refused the change.
    Nacked = 4,
    /// `explain`: the request would be refused.
    WouldBeRefused = 5,
    /// The control plane cannot be reached, or does not prove who it is.
    Unreachable = 6,
}

/// The end of a command that did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For scripts.
    pub(crate) code: Code,
    /// What happened; may have several lines. Empty: everything has been said.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Something was refused or not found.
    pub(crate) fn refused(message: impl fmt::Display) -> Self {
        Self { code: Code::Refused, message: message.to_string(), hint: None }
    }

    /// The command line is wrong.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { code: Code::Usage, message: message.to_string(), hint: None }
    }

    /// An end of which everything has been said already.
    pub(crate) fn silent(code: Code) -> Self {
        Self { code, message: String::new(), hint: None }
    }

    /// The same with another code.
    pub(crate) fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    /// The same with what to do next.
    pub(crate) fn hint(self, hint: impl fmt::Display) -> Self {
        Self { hint: Some(hint.to_string()), ..self }
    }

    /// Tells the person, and gives the exit code.
    pub(crate) fn tell(&self) -> ExitCode {
        if !self.message.is_empty() {
            out::say(format_args!("{}: {}", out::styled(out::BAD, "error"), self.message));
        }
        if let Some(hint) = &self.hint {
            out::say(format_args!("{}: {hint}", out::styled(out::HEAD, "next")));
        }
        ExitCode::from(self.code as u8)
    }
}

//! Delivers entries, each at least once: a cursor is moved on only when what it passes was taken.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use equerry_control_plane::audit::{Entry, Outcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{PAGE, page, read};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::out;

/// How long a receiver may take to be reached, and to take what it is sent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for new entries.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// RFC 5424's facility 13, log audit.
const FACILITY: u8 = 13;

/// `equerry audit export`
#[derive(Debug, Args)]
#[command(
    after_help = "Entries are delivered at least once: after a failure, run it again with the same --cursor.\n\nExamples:\n  \
    equerry audit export > audit.jsonl\n  equerry audit export --to siem.example.com:601 --format rfc5424 --cursor siem.cursor --follow"
)]
pub(crate) struct ExportArgs {
    /// As they are kept (JSON, one a line), or as syslog messages
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Send them here over TCP, instead of printing them; syslog messages are framed as RFC 6587 counts octets
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,
    /// Only entries after this one
    #[arg(long, value_name = "SEQ", conflicts_with = "cursor")]
    after: Option<u64>,
    /// Remember in this file how far delivery has come, and go on from there
    #[arg(long, value_name = "FILE", requires = "to")]
    cursor: Option<PathBuf>,
    /// Go on with new entries as they are written; an unreachable receiver is tried again
    #[arg(long)]
    follow: bool,
}

/// How an entry is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One entry a line, as it is kept: `equerry audit verify -f` reads it
    #[default]
    Jsonl,
    /// Syslog messages
    Rfc5424,
}

pub(super) async fn run(args: &ExportArgs, client: &mut Client) -> Result<(), Failure> {
    let mut after = match &args.cursor {
        Some(file) => read_cursor(file)?,
        None => args.after.unwrap_or_default(),
    };
    loop {
        match pass(args, client, after).await {
            Ok(delivered) => after = delivered,
            Err(failure) if args.follow && failure.code == Code::Unreachable => {
                out::say(format_args!("{}; trying again", failure.message));
            }
            Err(failure) => return Err(failure),
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Delivers what there is after an entry. Returns the last one delivered.
async fn pass(args: &ExportArgs, client: &mut Client, mut after: u64) -> Result<u64, Failure> {
    while let Some(page) = page(client, after, PAGE).await? {
        let mut text = Vec::new();
        let mut last = after;
        for line in page.lines() {
            let entry = read(line)?;
            match args.format {
                Format::Jsonl => text.extend_from_slice(format!("{line}\n").as_bytes()),
                Format::Rfc5424 => {
                    let message = syslog(&entry, line);
                    let framed =
                        if args.to.is_some() { format!("{} {message}", message.len()) } else { message + "\n" };
                    text.extend_from_slice(framed.as_bytes());
                }
            }
            last = entry.seq;
        }
        match &args.to {
            Some(to) => send(to, &text, after).await?,
            None => std::io::stdout()
                .write_all(&text)
                .map_err(|error| Failure::refused(format_args!("standard output: {error}")))?,
        }
        if let Some(file) = &args.cursor {
            keep_cursor(file, last)?;
        }
        after = last;
    }
    Ok(after)
}

/// One connection for each page: that the receiver closes it in order after we did proves that it took what we sent.
async fn send(to: &str, text: &[u8], after: u64) -> Result<(), Failure> {
    let sending = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(text).await?;
        stream.shutdown().await?;
        let mut said = Vec::new();
        stream.take(1024).read_to_end(&mut said).await
    };
    let failed = |why: String| {
        Failure::refused(format_args!("{to} did not take the entries after {after}: {why}"))
            .with_code(Code::Unreachable)
            .hint("nothing is lost: when it can be reached again, run the same command; with --cursor it goes on where it stopped")
    };
    match tokio::time::timeout(PATIENCE, sending).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("not within {} s", PATIENCE.as_secs()))),
    }
}

/// RFC 5424: what was refused is a warning, what was done a notice.
fn syslog(entry: &Entry, line: &str) -> String {
    let severity = if entry.outcome == Outcome::Refused { 4 } else { 5 };
    let priority = FACILITY * 8 + severity;
    let data: String =
        [("seq", entry.seq.to_string()), ("action", entry.action.clone()), ("by", entry.by.name.clone())]
            .iter()
            .map(|(name, value)| format!(" {name}=\"{}\"", escaped(value)))
            .collect();
    format!("<{priority}>1 {} - equerry - audit [equerry@32473{data}] {line}", entry.time)
}

/// Values in structured data: `"`, `\` and `]` are escaped (section 6.3.3).
fn escaped(value: &str) -> String {
    value.chars().flat_map(|c| matches!(c, '"' | '\\' | ']').then_some('\\').into_iter().chain([c])).collect()
}

fn read_cursor(file: &Path) -> Result<u64, Failure> {
    match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map_err(|_| {
            Failure::usage(format_args!("{}: found {:?}, expected the number of an entry", file.display(), text.trim()))
                .hint("remove the file to deliver everything again")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Failure::usage(format_args!("{}: {error}", file.display()))),
    }
}

/// Whole or not at all: a cursor that was half written would lose entries.
fn keep_cursor(file: &Path, seq: u64) -> Result<(), Failure> {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let write = || {
        let mut kept = std::fs::File::create(&new)?;
        writeln!(kept, "{seq}")?;
        kept.sync_all()?;
        std::fs::rename(&new, file)
    };
    write().map_err(|error: std::io::Error| Failure::usage(format_args!("{}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use equerry_control_plane::audit::{By, Head, Note};

    use super::*;

    #[test]
    fn a_message_is_syslogs_with_the_entry_as_it_is_kept() {
        let note = Note::refused(By::name("a\"b]c"), "admin", Vec::new(), "permission_missing", "no");
        let entry = note.after(&Head::beginning(), std::time::SystemTime::UNIX_EPOCH);
        let line = entry.line();
        let message = syslog(&entry, &line);
        let start = "<108>1 1970-01-01T00:00:00Z - equerry - audit [equerry@32473 seq=\"1\" action=\"admin\" by=\"a\\\"b\\]c\"] {";
        assert!(message.starts_with(start) && message.ends_with(&line), "{message}");
    }

    #[test]
    fn a_cursor_is_kept_whole_and_a_broken_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("siem.cursor");
        assert_eq!(read_cursor(&file), Ok(0));
        keep_cursor(&file, 42).unwrap();
        assert_eq!(read_cursor(&file), Ok(42));
        std::fs::write(&file, "4 2").unwrap();
        let failure = read_cursor(&file).unwrap_err();
        assert!(
            failure.message.contains("siem.cursor") && failure.hint.unwrap().contains("remove"),
            "{}",
            failure.message
        );
    }
}

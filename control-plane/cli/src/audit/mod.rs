//! `equerry audit`: who changed what, proof that nobody edited the answer, and delivery to whoever collects logs.

mod deliver;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use equerry_certs::VerifyingKey;
use equerry_control_plane::audit::{Entry, Head, Outcome, Proved, Tampered, Verifier};
use equerry_control_plane::serve::admin::shapes::AuditHead;
use http::Method;

use crate::args::OutputArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::get::plain;
use crate::out;

/// Lines asked for at once.
const PAGE: usize = 1_000;

/// `equerry audit`
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Show the newest entries: who did what, and who was refused
    List {
        /// How many
        #[arg(long, default_value_t = 50, value_name = "N")]
        last: u64,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Prove that no entry was edited, removed or cut off; exit code 1 and which one when one was
    Verify(VerifyArgs),
    /// Give entries to whoever collects logs: to standard output, or by syslog
    Export(deliver::ExportArgs),
}

/// `equerry audit verify`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  equerry audit verify                       the log of the control plane, against its own head\n  \
    equerry audit verify -f audit.jsonl        a copy, against that head: a copy that was cut off is found\n  \
    equerry audit verify -f audit.jsonl --offline --key HEX    without a control plane"
)]
pub(crate) struct VerifyArgs {
    /// A copy made with `equerry audit export`, instead of the control plane's own log
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Ask no control plane: entries after the last checkpoint are proved by nothing but the chain
    #[arg(long, requires = "file")]
    pub(crate) offline: bool,
    /// The public key that checkpoints must be signed with [default: the control plane's, or the first that signed]
    #[arg(long, value_name = "HEX", value_parser = key)]
    key: Option<VerifyingKey>,
}

fn key(text: &str) -> Result<VerifyingKey, String> {
    VerifyingKey::parse(text)
        .ok_or_else(|| "expected 64 hexadecimal digits, as `equerry audit verify` prints them".to_owned())
}

/// Those that ask a control plane.
pub(crate) async fn run(command: &AuditCommand, client: &mut Client) -> Result<(), Failure> {
    match command {
        AuditCommand::List { last, output } => list(*last, output, client).await,
        AuditCommand::Verify(args) => verify(args, client).await,
        AuditCommand::Export(args) => deliver::run(args, client).await,
    }
}

async fn list(last: u64, output: &OutputArgs, client: &mut Client) -> Result<(), Failure> {
    let head: AuditHead = client.get("/api/v1/audit/head").await?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut after = head.head.seq.saturating_sub(last);
    while let Some(page) = page(client, after, PAGE).await? {
        for line in page.lines() {
            entries.push(read(line)?);
        }
        after = entries.last().map_or(after, |entry| entry.seq);
    }
    if !plain(output.output, &entries) {
        let rows: Vec<_> = entries.iter().map(row).collect();
        out::data(out::table(&["SEQ", "TIME", "BY", "ACTION", "OUTCOME", "ABOUT", "WHY"], &rows));
    }
    Ok(())
}

fn row(entry: &Entry) -> Vec<String> {
    let by = match &entry.by.role {
        Some(role) => format!("{} ({role})", entry.by.name),
        None => entry.by.name.clone(),
    };
    let outcome = match entry.outcome {
        Outcome::Done => out::styled(out::GOOD, "done"),
        Outcome::Refused => {
            out::styled(out::BAD, format_args!("refused: {}", entry.reason.as_deref().unwrap_or("for no reason told")))
        }
    };
    let about = match entry.epoch {
        Some(epoch) => format!("{} (epoch {epoch})", entry.about.join(", ")),
        None => entry.about.join(", "),
    };
    let why = entry.detail.clone().unwrap_or_default();
    vec![entry.seq.to_string(), entry.time.clone(), by, entry.action.clone(), outcome, about, why]
}

/// Lines after an entry; `None` when there are none.
async fn page(client: &mut Client, after: u64, limit: usize) -> Result<Option<String>, Failure> {
    let answer = client.ask(Method::GET, &format!("/api/v1/audit?after={after}&limit={limit}"), None::<&()>).await?;
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    let text = String::from_utf8(answer.body.to_vec());
    let text = text.map_err(|_| Failure::refused("the control plane answered with something that is not text"))?;
    Ok((!text.is_empty()).then_some(text))
}

fn read(line: &str) -> Result<Entry, Failure> {
    let odd = |error| Failure::refused(format_args!("an entry of the audit log cannot be read: {error}"));
    serde_json::from_str(line).map_err(odd)
}

async fn verify(args: &VerifyArgs, client: &mut Client) -> Result<(), Failure> {
    let head: AuditHead = client.get("/api/v1/audit/head").await?;
    let key = args.key.clone().or_else(|| VerifyingKey::parse(&head.key));
    let mut verifier = Verifier::new(key.as_ref(), Some(head.head));
    if let Some(file) = &args.file {
        return of_file(verifier, file);
    }
    let mut after = 0;
    while let Some(page) = page(client, after, PAGE).await? {
        for line in page.lines() {
            verifier.line(line).map_err(|tampered| found(&tampered))?;
            after = read(line)?.seq;
        }
    }
    tell(verifier.finish())
}

/// `equerry audit verify --offline`
pub(crate) fn verify_offline(args: &VerifyArgs) -> Result<(), Failure> {
    let file = args.file.as_ref().ok_or_else(|| Failure::usage("--offline needs --file"))?;
    of_file(Verifier::new(args.key.as_ref(), None::<Head>), file)
}

fn of_file(mut verifier: Verifier, file: &PathBuf) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| Failure::usage(format_args!("{}: {error}", file.display()));
    let lines = BufReader::new(std::fs::File::open(file).map_err(unreadable)?).lines();
    for line in lines {
        verifier.line(&line.map_err(unreadable)?).map_err(|tampered| found(&tampered))?;
    }
    tell(verifier.finish())
}

fn tell(proved: Result<Proved, Tampered>) -> Result<(), Failure> {
    let Proved { first, head, signed, key } = proved.map_err(|tampered| found(&tampered))?;
    out::data(format_args!(
        "{}: entries {first} to {} follow from each other, {}",
        out::styled(out::GOOD, "unchanged"),
        head.seq,
        match key {
            Some(key) => format!("those to {signed} are signed with key {key}"),
            None => "none is signed yet (a checkpoint is written every minute)".to_owned(),
        }
    ));
    Ok(())
}

fn found(tampered: &Tampered) -> Failure {
    Failure::refused(tampered).hint(
        "compare with a copy that was exported earlier (`equerry audit verify -f FILE`); what was written up to the entry before still holds",
    )
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use equerry_control_plane::audit::{By, Note};

    use super::*;

    #[test]
    fn a_refusal_is_listed_with_what_was_said() {
        let detail = "permission documents:write is missing";
        let by = By::name("ada");
        let note = Note::refused(by, "admin", vec!["POST /api/v1/apply".into()], "permission_missing", detail);
        let row = row(&note.after(&Head::beginning(), SystemTime::UNIX_EPOCH));
        let told: Vec<String> = row.iter().map(|cell| anstream::adapter::strip_str(cell).to_string()).collect();
        assert_eq!(told[2..], ["ada", "admin", "refused: permission_missing", "POST /api/v1/apply", detail]);
    }
}

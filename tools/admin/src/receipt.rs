//! `clairvio receipt`: checking receipts of deletions, offline.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use engine::receipt::read;
use schemas::SessionId;
use schemas::deletion::{RECEIPT_BYTES_MAX, Receipt, RemainsIn};
use serde_json::Value;
use service_kit::keys;
use service_kit::keys::receipts::ReceiptPublic;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::output::{moment, say};
use crate::settings::{RECEIPT_PUBLIC_FILE, variable};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check that a receipt was signed by this deployment and says what it said then, and show what that is. Exits with 1 otherwise.
    ///
    /// Needs no service and no network: a receipt, and the public keys that `clairvio keys make` wrote to receipt-public.json. Give
    /// that file to whoever is to check receipts.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The receipt, or the answer of GET /v1/deletions/{id} as it came. `-` for standard input.
    #[arg(value_name = "FILE")]
    receipt: PathBuf,
    /// The file with the public keys. [default: CLAIRVIO_RECEIPT_PUBLIC_FILE]
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Ask whether this session is in it; exits with 1 when it is not. Can be given more than once.
    #[arg(long, value_name = "ID")]
    session: Vec<Uuid>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Verify(verify) => verify.run(),
    }
}

impl Verify {
    fn run(self) -> anyhow::Result<ExitCode> {
        let path = self.keys.or_else(|| variable(RECEIPT_PUBLIC_FILE).map(PathBuf::from));
        let path = path.with_context(|| {
            format!("find the public keys of receipts: neither --keys nor {RECEIPT_PUBLIC_FILE} says where they are")
        })?;
        let public: ReceiptPublic = keys::read(&path)?;
        let text = text_of(&fetch(&self.receipt)?)?;
        let receipt = read(&text, |kid| public.verifying(kid)).context("verify receipt")?;
        let mut asked = Vec::new();
        for session in &self.session {
            let is_in = receipt.scope.covers(receipt.workspace_id, SessionId(*session));
            asked.push((*session, is_in.context("read receipt's scope: its key is none")?));
        }
        let is_all = asked.iter().all(|(_, is_in)| *is_in);
        if self.json {
            say(&format!("{:#}\n", serde_json::to_value(&receipt)?))?;
        } else {
            say(&describe(&receipt, &asked))?;
        }
        Ok(if is_all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// No answer that holds a receipt has many more bytes than that.
const FILE_BYTES_MAX: u64 = 2 * RECEIPT_BYTES_MAX as u64;

fn fetch(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
    };
    read.with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}

/// The receipt itself, or the one in an answer of the API.
fn text_of(given: &str) -> anyhow::Result<String> {
    let given = given.trim();
    if !given.starts_with('{') {
        return Ok(given.to_owned());
    }
    let answer: Value = serde_json::from_str(given).context("read answer: it is no JSON")?;
    match answer.get("receipt") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) => {
            bail!("read answer: the deletion has no receipt yet\n  hint: ask again once its state is erased")
        }
        _ => bail!("read answer: it has no receipt\n  hint: give what GET /v1/deletions/{{id}} answered"),
    }
}

fn objects(receipt: &Receipt) -> String {
    match (receipt.objects, receipt.bytes, receipt.shared_objects) {
        (Some(objects), Some(bytes), Some(shared)) => {
            format!("{objects} ({bytes} bytes), and {shared} shared ones that may have held some of it")
        }
        _ => "not noted".to_owned(),
    }
}

fn describe(receipt: &Receipt, asked: &[(Uuid, bool)]) -> String {
    let at = |when: Option<OffsetDateTime>| when.map_or_else(|| "not noted".to_owned(), moment);
    let mut said = format!(
        "the signature verifies\n\
         deletion     {}{}\n\
         workspace    {}\n\
         cause        {}\n\
         sessions     {}\n\
         objects      {}\n\
         requested    {}\n\
         unreadable   {}\n\
         shredded     {}\n\
         erased       {}\n\
         verified     {}\n",
        receipt.deletion_id,
        if receipt.parts > 1 { format!(", receipt {} of {}", receipt.part, receipt.parts) } else { String::new() },
        receipt.workspace_id,
        receipt.cause.as_str(),
        receipt.sessions,
        objects(receipt),
        moment(receipt.requested_at),
        at(receipt.unreadable_at),
        moment(receipt.shredded_at),
        at(receipt.erased_at),
        moment(receipt.verified_at),
    );
    for remains in &receipt.remains {
        let what = match remains.what {
            RemainsIn::Log => "sealed records in the log",
            RemainsIn::KeyStoreBackups => "destroyed keys, wrapped, in backups of the key store",
            RemainsIn::IndexBackups => "times, numbers and pages in backups of the index",
        };
        said += &format!("until        {}: {what}\n", moment(remains.until));
    }
    for (session, is_in) in asked {
        said += &format!("session      {session} is {}in it\n", if *is_in { "" } else { "NOT " });
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_taken_by_itself_and_from_an_answer() {
        assert_eq!(text_of(" a.b.c\n").unwrap(), "a.b.c");
        assert_eq!(text_of(r#"{"id": "x", "receipt": "a.b.c"}"#).unwrap(), "a.b.c");
        assert!(text_of(r#"{"receipt": null}"#).unwrap_err().to_string().contains("no receipt yet"));
        assert!(text_of("{}").unwrap_err().to_string().contains("hint"));
        assert!(text_of("{").is_err());
    }

    /// What docs/deletion.md shows: whoever has the sample gets the same.
    #[test]
    fn the_sample_of_the_docs_verifies() {
        let sample = |file: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/samples").join(file);
        let public: ReceiptPublic = keys::read(&sample("receipt-public.json")).unwrap();
        let receipt = read(&fetch(&sample("receipt.jws")).unwrap(), |kid| public.verifying(kid)).unwrap();
        let session = Uuid::from_u128(0x0193_9e1c_7d2f_7c31_9a52_3b6f_0f5d_8e21);
        let is_in = receipt.scope.covers(receipt.workspace_id, SessionId(session)).unwrap();
        let page = std::fs::read_to_string(sample("../deletion.md")).unwrap();
        let shown = describe(&receipt, &[(session, is_in)]);
        for line in shown.lines() {
            assert!(page.lines().any(|other| other.trim() == line), "docs/deletion.md does not show: {line}");
        }
    }
}

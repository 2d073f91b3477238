//! `clairvio keys`: making, listing, rotating, retiring and destroying keys.
//!
//! A key file is read, changed and replaced as a whole, one command at a time per folder: of two that change it at once one
//! would undo what the other did, and a key that was used by then would be lost. No command shows a secret.

mod keyring;
mod list;
mod receipts;
mod tokens;
mod transport;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use service_kit::keys;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make fresh keys of a deployment: edge-keys.json and transport-keys.json for edges, transport-keys.json and keyring.json
    /// for batchers, keyring.json for compactors, control-keys.json and keyring.json for control planes, receipt-keys.json and keyring.json
    /// for retention workers. receipt-public.json is for everybody: receipts of deletions are checked with it.
    ///
    /// Once, before the first start. Files that are there already are kept.
    Make {
        /// The folder to write them to. Existing files are never overwritten.
        #[arg(long)]
        folder: PathBuf,
    },
    /// Show which keys there are, which are in use, and what still needs them. Never a secret.
    ///
    /// Before and after each rotation, and to see what can be retired or destroyed. Reads the files that are given, by flag or
    /// by CLAIRVIO_TRANSPORT_KEYS_FILE, CLAIRVIO_KEYRING_FILE, CLAIRVIO_EDGE_KEYS_FILE and CLAIRVIO_CONTROL_KEYS_FILE. With
    /// DATABASE_URL (and KEYSTORE_DATABASE_URL) it also counts what each version of the keyring wraps and seals.
    List(list::List),
    /// Take a new key into use; the old one still opens what it sealed.
    #[command(subcommand)]
    Rotate(Rotate),
    /// Wrap all session keys under the keyring's current version that are wrapped under others.
    ///
    /// After `rotate keyring --use` was cut short, or --no-rewrap was given, and once more when every process has the file:
    /// until then some wrap new keys under the version before. Objects are not touched. It can be ended at any time, and goes on
    /// where it was when run again.
    Rewrap(KeyringFile),
    /// Remove a key that nothing needs any more. For ever.
    #[command(subcommand)]
    Retire(Retire),
    /// Destroy an epoch of the transport that has ended. For ever: what the log, or a copy of it, still holds of the epoch opens
    /// for nobody.
    ///
    /// `destroy --due` belongs into a daily job: deleted sessions are gone from the log, and from whatever copied its disks,
    /// once their epochs are destroyed.
    Destroy(transport::Destroy),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rotate {
    /// End the transport's current epoch: the one that stands ready becomes current, and a new one stands ready.
    ///
    /// Regularly, a few times a month: the shorter an epoch, the sooner what was deleted is gone from the log for certain. At
    /// once, when a transport key may have leaked.
    Transport(TransportFile),
    /// Have the keys sign session tokens and links that stand ready, and put new ones beside them.
    ///
    /// Regularly, and at once when edge-keys.json or control-keys.json may have leaked: twice then, since what stood ready has leaked
    /// too. What the old keys signed is taken until they are retired.
    Tokens(tokens::Files),
    /// Have a new key sign receipts of deletions. What the old ones signed is valid still.
    ///
    /// Yearly, and at once when receipt-keys.json may have leaked: whoever has it can sign receipts for what was never deleted.
    Receipts(receipts::Files),
    /// Add a version to the keyring, or take the newest into use.
    ///
    /// Yearly, and at once when the keyring may have leaked. In two steps, since a process that lacks a version cannot open what
    /// others wrap under it: first without --use, then bring the file to every process that has a keyring, then with --use.
    Keyring(keyring::RotateKeyring),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Retire {
    /// Remove a version from the keyring. For ever: what it wraps or seals is lost.
    ///
    /// Refused while anything needs it: session keys in the key store, shared or quarantine objects in the index, young entries
    /// of the journal in the bucket. Do it once every process has had a file with a newer current version for an hour.
    Keyring(keyring::RetireKeyring),
    /// Take nothing any more that this key of tokens signed. Session tokens that it signed still take consent back.
    ///
    /// Sessions that run by its tokens stop, and its links open nothing. `clairvio keys list` shows the keys that there are.
    Token(tokens::RetireToken),
}

#[derive(Debug, Args)]
pub(crate) struct TransportFile {
    /// The file with the transport's keys. [default: CLAIRVIO_TRANSPORT_KEYS_FILE]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyringFile {
    /// The file with the keyring. [default: CLAIRVIO_KEYRING_FILE]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Make { folder } => make(&folder),
        Command::List(list) => list.run().await,
        Command::Rotate(Rotate::Transport(file)) => transport::rotate(file),
        Command::Rotate(Rotate::Keyring(rotate)) => rotate.run().await,
        Command::Rotate(Rotate::Tokens(files)) => tokens::rotate(files),
        Command::Rotate(Rotate::Receipts(files)) => receipts::rotate(files),
        Command::Retire(Retire::Token(retire)) => tokens::retire(retire),
        Command::Rewrap(file) => keyring::rewrap(file).await,
        Command::Retire(Retire::Keyring(retire)) => retire.run().await,
        Command::Destroy(destroy) => destroy.run(),
    }
}

fn make(folder: &Path) -> anyhow::Result<()> {
    let (made, kept) = keys::make(folder)?;
    for path in made {
        println!("made {}", path.display());
    }
    for path in kept {
        println!("kept {}", path.display());
    }
    Ok(())
}

/// Keeps others from changing key files in the same folder, until it is dropped. The folder is locked and not the file, since
/// a file that is replaced takes its lock along.
fn lock(path: &Path) -> anyhow::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let opened = File::open(folder).with_context(|| format!("open folder {}", folder.display()))?;
    match opened.try_lock() {
        Ok(()) => Ok(opened),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("change keys in {}: another command does so right now\n  hint: try again", folder.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock folder {}", folder.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_changed_by_one_command_at_a_time() {
        let folder = std::env::temp_dir().join(format!("clairvio-admin-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("keyring.json");
        let held = lock(&path).unwrap();
        assert!(lock(&path).unwrap_err().to_string().contains("another command"));
        drop(held);
        drop(lock(&path).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

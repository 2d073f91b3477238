//! Keys of receipts: rotating them.

use std::path::{Path, PathBuf};

use clap::Args;
use service_kit::keys;
use service_kit::keys::receipts::{ReceiptKeys, ReceiptPublic};

use super::lock;
use crate::settings;

/// Both files change together.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// The file with the key that signs receipts. [default: CLAIRVIO_RECEIPT_KEYS_FILE]
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// The file with the public keys of receipts. [default: CLAIRVIO_RECEIPT_PUBLIC_FILE]
    #[arg(long, value_name = "FILE")]
    public: Option<PathBuf>,
}

pub(super) fn rotate(files: Files) -> anyhow::Result<()> {
    let (keys, public) = settings::receipt_files(files.keys, files.public)?;
    print!("{}", rotate_at(&keys, &public)?);
    Ok(())
}

fn rotate_at(keys_path: &Path, public_path: &Path) -> anyhow::Result<String> {
    let _turn = lock(keys_path)?;
    let (mut receipt_keys, mut public): (ReceiptKeys, ReceiptPublic) =
        (keys::read(keys_path)?, keys::read(public_path)?);
    keys::receipts::rotate(&mut receipt_keys, &mut public)?;
    // The public half first: were this cut short here, a key would be known that signs nothing, and never the other way round.
    keys::replace(public_path, &public)?;
    keys::replace(keys_path, &receipt_keys)?;
    Ok(format!(
        "{} signs receipts\nnext: bring {} to every retention worker, and {} to whoever checks receipts\n",
        receipt_keys.signing.kid,
        keys_path.display(),
        public_path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::folder;
    use super::*;

    #[test]
    fn the_key_that_signs_is_known_to_whoever_checks() {
        let folder = folder();
        keys::make(&folder).unwrap();
        let (keys_path, public_path) = (folder.join(keys::RECEIPT_FILE), folder.join(keys::RECEIPT_PUBLIC_FILE));
        let before: ReceiptKeys = keys::read(&keys_path).unwrap();
        rotate_at(&keys_path, &public_path).unwrap();
        let (after, public): (ReceiptKeys, ReceiptPublic) =
            (keys::read(&keys_path).unwrap(), keys::read(&public_path).unwrap());
        assert_ne!(before.signing.kid, after.signing.kid);
        assert!([&before, &after].into_iter().all(|keys| public.verifying(&keys.signing.kid).is_some()));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

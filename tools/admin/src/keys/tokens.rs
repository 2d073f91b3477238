//! Keys of tokens: rotating and retiring them.

use std::path::{Path, PathBuf};

use clap::Args;
use service_kit::keys;
use service_kit::keys::tokens::{ControlKeys, EdgeKeys, Leaked};

use super::lock;
use crate::settings;

/// Both files change together: edges know what the control plane signs with.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// The file with an edge's keys of tokens. [default: CLAIRVIO_EDGE_KEYS_FILE]
    #[arg(long, value_name = "FILE")]
    edge: Option<PathBuf>,
    /// The file with a control plane's keys of tokens. [default: CLAIRVIO_CONTROL_KEYS_FILE]
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RetireToken {
    /// The key's id, as `clairvio keys list` shows it.
    kid: String,
    /// Somebody else may have the key. Then its session tokens cannot take consent back either: whoever has it could delete any
    /// session. Also for one that was retired before.
    #[arg(long)]
    leaked: bool,
    #[command(flatten)]
    files: Files,
}

impl Files {
    fn paths(self) -> anyhow::Result<(PathBuf, PathBuf)> {
        Ok((settings::edge_file(self.edge)?, settings::control_file(self.control)?))
    }
}

pub(super) fn rotate(files: Files) -> anyhow::Result<()> {
    let (edge, control) = files.paths()?;
    print!("{}", rotate_at(&edge, &control)?);
    Ok(())
}

fn rotate_at(edge_path: &Path, control_path: &Path) -> anyhow::Result<String> {
    let _turn = lock(edge_path)?;
    let (mut edge, mut control): (EdgeKeys, ControlKeys) = (keys::read(edge_path)?, keys::read(control_path)?);
    let rotated = keys::tokens::rotate(&mut edge, &mut control)?;
    // Edges first: were this cut short here, they would know keys that sign nothing yet, and never the other way round.
    keys::replace(edge_path, &edge)?;
    keys::replace(control_path, &control)?;
    let said = if rotated { "signs" } else { "signs still: none stood ready, and one does now" };
    Ok(format!(
        "{} {said} session tokens\n{} {said} links\nnext: bring {} to every edge, all of them before the next rotation, and then {} \
         to every control plane\n",
        edge.session_signing.kid,
        control.link_signing.kid,
        edge_path.display(),
        control_path.display()
    ))
}

pub(super) fn retire(retire: RetireToken) -> anyhow::Result<()> {
    let (edge, control) = retire.files.paths()?;
    let leaked = if retire.leaked { Leaked::Yes } else { Leaked::No };
    print!("{}", retire_at(&edge, &control, &retire.kid, leaked)?);
    Ok(())
}

fn retire_at(edge_path: &Path, control_path: &Path, kid: &str, leaked: Leaked) -> anyhow::Result<String> {
    let _turn = lock(edge_path)?;
    let mut edge: EdgeKeys = keys::read(edge_path)?;
    keys::tokens::retire(&mut edge, &keys::read(control_path)?, kid, leaked)?;
    keys::replace(edge_path, &edge)?;
    Ok(format!(
        "{kid} is retired: what it signed is refused within seconds of an edge having the file\nnext: bring {} to every edge\n",
        edge_path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::folder;
    use super::*;

    #[test]
    fn files_are_rotated_together_and_a_key_in_use_is_not_retired() {
        let folder = folder();
        keys::make(&folder).unwrap();
        let (edge, control) = (folder.join(keys::EDGE_FILE), folder.join(keys::CONTROL_FILE));
        let before: EdgeKeys = keys::read(&edge).unwrap();
        let old = before.session_signing.kid;
        assert!(retire_at(&edge, &control, &old, Leaked::No).unwrap_err().to_string().contains("rotate tokens"));
        let said = rotate_at(&edge, &control).unwrap();
        let (after, signs): (EdgeKeys, ControlKeys) = (keys::read(&edge).unwrap(), keys::read(&control).unwrap());
        assert!(said.contains(&format!("{} signs session tokens", after.session_signing.kid)));
        assert!(after.link_keys.iter().any(|key| key.kid == signs.link_signing.kid));
        retire_at(&edge, &control, &old, Leaked::No).unwrap();
        let retired: EdgeKeys = keys::read(&edge).unwrap();
        assert_eq!(retired.retired.len(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

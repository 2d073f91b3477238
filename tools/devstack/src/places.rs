//! Where things are: the workspace, the default home, downloaded programs, our own binaries, free ports.

use std::collections::HashSet;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::until;

/// Ports are drawn from here, below the range from which systems take the source ports of outgoing connections. Were a server's
/// port in that range, a client that keeps trying to reach it while it is down would at some time be given the very port as its
/// source, connect to itself, and keep the server from coming back.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
const PORT_TRIES: u32 = 1_000;
/// For somebody else's download or build to end.
const CACHE_TURN: Duration = Duration::from_secs(20 * 60);

/// The folder of the workspace that this program was built in, else of the one around the current folder.
pub fn workspace_root() -> Option<PathBuf> {
    let around = |start: PathBuf| start.ancestors().find(|folder| is_workspace(folder)).map(Path::to_path_buf);
    let by_program = std::env::current_exe().ok().and_then(around);
    by_program.or_else(|| std::env::current_dir().ok().and_then(around))
}

fn is_workspace(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|manifest| manifest.contains("[workspace]"))
}

/// `DEVSTACK_HOME`, else `.devstack` in the workspace or, without one, in the current folder.
pub fn default_home() -> anyhow::Result<PathBuf> {
    if let Some(home) = variable("DEVSTACK_HOME") {
        return Ok(PathBuf::from(home));
    }
    let base = match workspace_root() {
        Some(root) => root,
        None => std::env::current_dir().context("find current folder: set DEVSTACK_HOME instead")?,
    };
    Ok(base.join(".devstack"))
}

/// Where downloaded programs are kept for all stacks of this workspace: `DEVSTACK_CACHE`, else `target/devstack`.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    if let Some(cache) = variable("DEVSTACK_CACHE") {
        return std::path::absolute(cache).context("find cache folder");
    }
    if let Some(root) = workspace_root() {
        return Ok(root.join("target/devstack"));
    }
    let home = variable("HOME").context("find cache folder: set DEVSTACK_CACHE")?;
    Ok(Path::new(&home).join(".cache/clairvio-devstack"))
}

/// Waits for the turn to change `name` in the cache, and makes the cache if need be. The turn ends when the file is dropped.
pub(crate) async fn lock_cache(cache: &Path, name: &str) -> anyhow::Result<File> {
    std::fs::create_dir_all(cache).with_context(|| format!("make cache folder: {}", cache.display()))?;
    let path = cache.join(format!("{name}.lock"));
    let lock = File::create(&path).with_context(|| format!("open lock: {}", path.display()))?;
    until(&format!("wait for another process to get {name} into {}", cache.display()), CACHE_TURN, async || {
        lock.try_lock().context("lock cache")
    })
    .await?;
    Ok(lock)
}

/// Gives a finished folder its final name. Somebody who was faster has made the same.
pub(crate) fn publish_folder(made: &Path, name: &Path) -> anyhow::Result<()> {
    match std::fs::rename(made, name) {
        Err(error) if !name.is_dir() => Err(error).with_context(|| format!("move into place: {}", name.display())),
        _ => Ok(()),
    }
}

/// One of this workspace's binaries: next to the running program, or one folder up when that is a test in `deps/` or a program
/// in `examples/`.
pub fn find_binary(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("find running program")?;
    let folder = program.parent().context("find folder of running program")?;
    let is_below = folder.ends_with("deps") || folder.ends_with("examples");
    let folder = if is_below { folder.parent().unwrap_or(folder) } else { folder };
    let binary = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !binary.is_file() {
        bail!("find binary {name}: {} does not exist\n  build it: cargo build --workspace", binary.display());
    }
    Ok(binary)
}

/// A program in one of `folders`, else in `PATH`.
pub(crate) fn find_program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.iter().chain(&in_path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// An environment variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A port on 127.0.0.1 that nobody listens on and that this process has not given out before.
pub fn free_port() -> anyhow::Result<u16> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..PORT_TRIES {
        let draw = u16::try_from(getrandom::u32().context("draw port")? % u32::from(PORTS.end - PORTS.start))
            .unwrap_or_default();
        let port = PORTS.start + draw;
        if is_free(port) && given.insert(port) {
            return Ok(port);
        }
    }
    bail!(
        "find free port: {PORT_TRIES} ports from {} to {} were taken; stop what listens on them",
        PORTS.start,
        PORTS.end
    )
}

pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_out_once() {
        let ports: HashSet<u16> = (0..50).map(|_| free_port().expect("there are free ports")).collect();
        assert_eq!(ports.len(), 50);
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port 0 can be bound");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        assert!(!is_free(port));
        drop(listener);
        assert!(is_free(port));
    }
}

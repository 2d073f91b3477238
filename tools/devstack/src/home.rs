//! A stack's folder: its lock, and what must stay the same from one start to the next.
//!
//! ```text
//! home/lock             held by the stack and its guard; the pid of the holder
//!      stack.json       ports, passwords, ids (private)
//!      endpoints.json   where everything is (private)
//!      logs/            one file per process
//!      kafka/  s3/  postgres/
//!      postgres.elsewhere   where the data of Postgres lies when it cannot lie here (`parts/postgres.rs`)
//! ```
//!
//! Ports are kept so that addresses survive a restart of the whole stack; one that was taken in the meantime is drawn anew.

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use schemas::codec::hex;
use serde::{Deserialize, Serialize};

use crate::endpoints::write_private;
use crate::{free_port, places, process_table, until};

/// For the guard of a stack that just died to put its processes away; more than the guard's own limits.
const GUARD_CLEARS: Duration = Duration::from_secs(15);

/// A locked folder.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) path: PathBuf,
    pub(crate) lock: File,
}

impl Home {
    /// Makes the folder if need be and locks it.
    pub(crate) async fn open(path: &Path) -> anyhow::Result<Home> {
        std::fs::create_dir_all(path.join("logs")).with_context(|| format!("make home: {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("find home: {}", path.display()))?;
        let lock_path = path.join("lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("open lock: {}", lock_path.display()))?;
        // When the holder is dead, it is its guard that still puts things away.
        let holder = until(
            &format!("wait for the previous stack in {} to be put away", path.display()),
            GUARD_CLEARS,
            async || {
                if try_lock(&lock)? {
                    return Ok(None);
                }
                let holder = Holder::read(&lock_path).filter(Holder::is_alive);
                holder.map(Some).context("its lock is still held")
            },
        )
        .await?;
        if let Some(holder) = holder {
            bail!(
                "lock home {}: the stack of process {} lives there\n  stop that one, or choose another folder with --home",
                path.display(),
                holder.pid
            );
        }
        lock.set_len(0).context("write lock")?;
        lock.seek(SeekFrom::Start(0)).context("write lock")?;
        lock.write_all(Holder::this().text().as_bytes()).context("write lock")?;
        Ok(Home { path, lock })
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }
}

fn try_lock(lock: &File) -> anyhow::Result<bool> {
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error).context("lock home: does its file system know locks?"),
    }
}

/// Who holds a home: pid and start time.
struct Holder {
    pid: u32,
    started: String,
}

impl Holder {
    fn this() -> Holder {
        let pid = std::process::id();
        Holder { pid, started: process_table::entry(pid).map(|entry| entry.started).unwrap_or_default() }
    }

    fn read(lock: &Path) -> Option<Holder> {
        let text = std::fs::read_to_string(lock).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        Some(Holder { pid: pid.parse().ok()?, started: started.to_owned() })
    }

    fn text(&self) -> String {
        format!("{} {}\n", self.pid, self.started)
    }

    fn is_alive(&self) -> bool {
        process_table::entry(self.pid).is_some_and(|entry| entry.is_alive() && entry.started == self.started)
    }
}

/// What a home's stack keeps from start to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Names this stack; folders outside the home carry it, so that a new home never takes over an old one's data.
    pub(crate) id: String,
    pub(crate) kafka_port: u16,
    pub(crate) kafka_controller_port: u16,
    pub(crate) kafka_cluster_id: String,
    pub(crate) postgres_port: u16,
    pub(crate) postgres_password: String,
    pub(crate) s3_port: u16,
    pub(crate) s3_access_key: String,
    pub(crate) s3_secret_key: String,
}

impl Kept {
    const FILE: &str = "stack.json";

    /// Reads what was kept, or draws it, and replaces ports that are taken.
    pub(crate) fn load(home: &Path) -> anyhow::Result<Kept> {
        let path = home.join(Kept::FILE);
        let mut kept = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("decode {}: remove the home and start anew", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::draw()?,
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        for port in [&mut kept.kafka_port, &mut kept.kafka_controller_port, &mut kept.postgres_port, &mut kept.s3_port]
        {
            if !places::is_free(*port) {
                *port = free_port()?;
            }
        }
        let text = serde_json::to_vec_pretty(&kept).context("encode what the stack keeps")?;
        write_private(&path, &text)?;
        Ok(kept)
    }

    fn draw() -> anyhow::Result<Kept> {
        Ok(Kept {
            id: hex(&random::<16>()?),
            kafka_port: free_port()?,
            kafka_controller_port: free_port()?,
            // Kafka's form of a UUID; the letter in front keeps it from looking like an option.
            kafka_cluster_id: format!("K{}", &BASE64_URL_SAFE_NO_PAD.encode(random::<16>()?)[1..]),
            postgres_port: free_port()?,
            postgres_password: hex(&random::<16>()?),
            s3_port: free_port()?,
            s3_access_key: format!("DEVSTACK{}", hex(&random::<6>()?).to_uppercase()),
            s3_secret_key: hex(&random::<20>()?),
        })
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("draw random bytes")?;
    Ok(bytes)
}

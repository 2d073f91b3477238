//! The keyring behind a program: a key service without its weight in the services.
//!
//! This process starts the program that its configuration names and asks it over its standard input and output, in the
//! lines of [`protocol`]; `keyring-kms` is such a program. One task, the [`keeper`], has the program: it starts it, matches
//! answers to questions, asks for the versions every minute, and replaces a program that has ended, does not answer in time
//! or answers nonsense. A program that is out of reach is an error of each question, never of the start. Its answers are kept for
//! minutes, so that it is asked once for many sessions.
//!
//! Keys are wiped when they go and never logged; nothing that the program said instead of an answer is logged either.

mod keeper;
pub mod protocol;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemas::limits::{KEYRING_ANSWER_MS_MAX, KEYRING_QUESTIONS_MAX};
use sealing::Key;
use sealing::keyring::{KeyFuture, KeyVersion, Keyring, KeyringError, Owner};
use tokio::sync::{mpsc, oneshot, watch};

use self::keeper::{Asked, Keeper};
use super::KeysError;
use super::cache::KeyCache;

/// Workspaces' keys in memory: beyond it those go first that were fetched first.
const KEYS_CACHED_MAX: usize = 4_096;

/// How long things take.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// A question is answered within this time, or the program is replaced.
    answer: Duration,
    /// The versions are asked for this often.
    look: Duration,
    /// A key is kept this long after it was asked for.
    kept: Duration,
    /// The first wait before a program is started again; it doubles with each failure.
    restart_min: Duration,
    /// The longest.
    restart_max: Duration,
}

const TIMES: Times = Times {
    answer: Duration::from_millis(KEYRING_ANSWER_MS_MAX),
    look: Duration::from_secs(60),
    kept: Duration::from_secs(300),
    restart_min: Duration::from_millis(200),
    restart_max: Duration::from_secs(5),
};

/// What the program said of its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Versions {
    current: KeyVersion,
    all: BTreeSet<KeyVersion>,
}

/// What the keeper learns, and whoever asks sees at once.
#[derive(Debug)]
struct Known {
    /// As of the last answer; an error until there was one.
    versions: watch::Sender<Result<Versions, KeyringError>>,
    keys: Mutex<KeyCache<(Owner, KeyVersion)>>,
}

impl Known {
    fn keys(&self) -> MutexGuard<'_, KeyCache<(Owner, KeyVersion)>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A keyring that a program has. The program ends with it.
#[derive(Debug)]
pub struct ProgramKeyring {
    known: Arc<Known>,
    questions: mpsc::Sender<Asked>,
    answer_within: Duration,
}

impl ProgramKeyring {
    /// Starts the program and asks it for its versions, without waiting for them. A path where no program can be is an
    /// error; one that cannot be started or does not answer is not: it is tried again, and each question says so.
    pub fn start(path: &Path) -> Result<Self, KeysError> {
        Self::with(path, TIMES)
    }

    fn with(path: &Path, times: Times) -> Result<Self, KeysError> {
        let program =
            executable(path).map_err(|source| KeysError::Program { path: path.display().to_string(), source })?;
        let known = Arc::new(Known {
            versions: watch::Sender::new(Err(KeyringError::Unavailable("the program has not answered yet".into()))),
            keys: Mutex::new(KeyCache::new(times.kept, KEYS_CACHED_MAX)),
        });
        let (questions, asked) = mpsc::channel(KEYRING_QUESTIONS_MAX);
        tokio::spawn(Keeper::new(program, times, Arc::clone(&known), asked).run());
        Ok(Self { known, questions, answer_within: times.answer })
    }

    async fn ask(&self, owner: Owner, version: KeyVersion) -> Result<Key, KeyringError> {
        let ended = || KeyringError::Unavailable("this process is stopping".into());
        let (answer, answered) = oneshot::channel();
        self.questions.send(Asked { owner, version, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

impl Keyring for ProgramKeyring {
    fn current(&self) -> Result<KeyVersion, KeyringError> {
        self.known.versions.borrow().as_ref().map(|versions| versions.current).map_err(Clone::clone)
    }

    fn versions(&self) -> Result<Vec<KeyVersion>, KeyringError> {
        let versions = self.known.versions.borrow();
        versions.as_ref().map(|versions| versions.all.iter().copied().collect()).map_err(Clone::clone)
    }

    fn key(&self, owner: Owner, version: KeyVersion) -> KeyFuture<'_> {
        Box::pin(async move {
            if let Some(key) = self.known.keys().get(&(owner, version), Instant::now()) {
                return Ok(key);
            }
            // The keeper's own time begins when the program is asked: whoever waits behind others waits no longer for it.
            let late = || KeyringError::Unavailable(keeper::late(self.answer_within));
            tokio::time::timeout(self.answer_within, self.ask(owner, version)).await.unwrap_or_else(|_| Err(late()))
        })
    }
}

/// The program's path, whatever the current folder and the search path become.
fn executable(path: &Path) -> std::io::Result<PathBuf> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
        return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, "it is not an executable file"));
    }
    std::path::absolute(path)
}

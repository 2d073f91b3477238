//! The task that has the program.
//!
//! Questions come in over a channel and are written as the program takes them, at most [`KEYRING_QUESTIONS_MAX`] before an
//! answer; each has a time of its own. Whatever is wrong with the program has one remedy: all open questions are answered
//! with the reason, the program is given up, and another one is started after a wait that grows from failure to failure.
//! Until then questions are answered with the reason at once: those who ask have waits of their own.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::limits::KEYRING_QUESTIONS_MAX;
use sealing::Key;
use sealing::keyring::{KeyVersion, KeyringError, Owner};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::protocol::{Answer, Ask, Lines, Question, Says};
use super::{Known, Times, Versions};
use crate::retry::Backoff;

/// A program that was given up has this long to end before it is killed. Its standard input has ended by then.
const END_WITHIN: Duration = Duration::from_secs(1);

const ENDED: &str = "the program has ended";

/// A question for a key.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) owner: Owner,
    pub(super) version: KeyVersion,
    pub(super) answer: oneshot::Sender<Result<Key, KeyringError>>,
}

/// What is wrong with a program that did not answer.
pub(super) fn late(within: Duration) -> String {
    format!("the program did not answer within {within:?}")
}

#[derive(Debug)]
pub(super) struct Keeper {
    program: PathBuf,
    times: Times,
    known: Arc<Known>,
    questions: mpsc::Receiver<Asked>,
    running: Option<Running>,
    open: BTreeMap<u64, Open>,
    last_id: u64,
    backoff: Backoff,
    /// No program is started before this time.
    start_at: Instant,
    /// The versions are asked for at this time.
    look_at: Instant,
    /// Why there is no program, or no answer.
    down: String,
    /// The last reason that was logged; empty when all was well since.
    told: String,
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
    answers: Lines<ChildStdout>,
    /// Questions that the program has not taken yet.
    unsent: Vec<u8>,
}

/// A question without its answer.
#[derive(Debug)]
struct Open {
    since: Instant,
    whose: Whose,
}

#[derive(Debug)]
enum Whose {
    Versions,
    Key(Asked),
}

impl Keeper {
    pub(super) fn new(program: PathBuf, times: Times, known: Arc<Known>, questions: mpsc::Receiver<Asked>) -> Self {
        let now = Instant::now();
        Self {
            program,
            times,
            known,
            questions,
            running: None,
            open: BTreeMap::new(),
            last_id: 0,
            backoff: Backoff::new(times.restart_min, times.restart_max),
            start_at: now,
            look_at: now,
            down: String::new(),
            told: String::new(),
        }
    }

    /// Until the keyring is dropped. Also while the process drains: what is flushed then needs keys.
    pub(super) async fn run(mut self) {
        loop {
            self.look(Instant::now());
            let (has_room, wake) = (self.open.len() < KEYRING_QUESTIONS_MAX, self.wake());
            tokio::select! {
                asked = self.questions.recv(), if has_room => match asked {
                    Some(asked) => self.ask(Whose::Key(asked), Instant::now()),
                    None => return,
                },
                heard = hear(&mut self.running) => match heard {
                    Ok(Some(line)) => self.answered(&line),
                    Ok(None) => {}
                    Err(reason) => self.give_up(reason),
                },
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// What is due.
    fn look(&mut self, now: Instant) {
        if self.open.values().any(|open| self.late_at(open) <= now) {
            self.give_up(late(self.times.answer));
        }
        if self.look_at <= now && !self.is_looking() {
            self.ask(Whose::Versions, now);
        }
        // Looking says nothing of a key that is past its time; sweeping wipes it.
        self.known.keys().sweep(now);
    }

    /// When something is due again.
    fn wake(&self) -> Instant {
        const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
        let mut wake = Instant::now() + SWEEP_INTERVAL;
        if !self.is_looking() {
            wake = wake.min(self.look_at);
        }
        self.open.values().map(|open| self.late_at(open)).fold(wake, Instant::min)
    }

    fn late_at(&self, open: &Open) -> Instant {
        open.since + self.times.answer
    }

    fn is_looking(&self) -> bool {
        self.open.values().any(|open| matches!(open.whose, Whose::Versions))
    }

    /// Asks the program, which is started where there is none.
    fn ask(&mut self, whose: Whose, now: Instant) {
        if let Whose::Key(asked) = &whose
            && asked.answer.is_closed()
        {
            return;
        }
        if self.running.is_none() {
            if now < self.start_at {
                return self.refuse(whose, &self.down.clone());
            }
            match start(&self.program) {
                Ok(running) => {
                    tracing::info!(program = %self.program.display(), "keyring program started");
                    self.running = Some(running);
                    // It may have other versions than the one before it.
                    self.look_at = now;
                }
                Err(error) => {
                    self.give_up(format!("start the program: {error}"));
                    return self.refuse(whose, &self.down.clone());
                }
            }
        }
        let Some(running) = &mut self.running else { return };
        self.last_id += 1;
        let ask = match &whose {
            Whose::Versions => Ask::Versions,
            Whose::Key(asked) => Ask::Key { owner: asked.owner, version: asked.version.0 },
        };
        running.unsent.extend(Question { id: self.last_id, ask }.to_line());
        self.open.insert(self.last_id, Open { since: now, whose });
    }

    fn answered(&mut self, line: &[u8]) {
        let Some(answer) = Answer::parse(line) else {
            return self.give_up("the program wrote a line that is no answer".into());
        };
        let Some(open) = self.open.remove(&answer.id) else {
            return self.give_up("the program answered a question that is not open".into());
        };
        match (open.whose, answer.says) {
            (Whose::Versions, Says::Versions { current, versions }) => {
                self.is_well();
                self.look_at = open.since + self.times.look;
                self.learn(Versions { current, all: versions.into_iter().collect() });
            }
            (Whose::Versions, Says::Unavailable(reason)) => {
                self.look_at = Instant::now() + self.times.restart_max;
                self.refuse(Whose::Versions, &reason);
                self.tell(reason);
            }
            (Whose::Key(asked), Says::Key(key)) => {
                self.is_well();
                self.known.keys().insert((asked.owner, asked.version), key.clone(), open.since);
                // Whoever asked may be gone.
                let _ = asked.answer.send(Ok(key));
            }
            (Whose::Key(asked), Says::Missing) => {
                self.is_well();
                let _ = asked.answer.send(Err(KeyringError::Missing(asked.version)));
            }
            (whose @ Whose::Key(_), Says::Unavailable(reason)) => self.refuse(whose, &reason),
            (whose, _) => {
                let reason = "the program answered another question than was asked";
                self.refuse(whose, reason);
                self.give_up(reason.into());
            }
        }
    }

    /// Keeps what the program said of its versions.
    fn learn(&self, versions: Versions) {
        self.known.versions.send_if_modified(|known| {
            let is_new = known.as_ref() != Ok(&versions);
            if is_new {
                tracing::info!(current = %versions.current, versions = versions.all.len(), "keyring's versions");
                *known = Ok(versions);
            }
            is_new
        });
    }

    /// Answers that there is no answer.
    fn refuse(&self, whose: Whose, reason: &str) {
        let error = KeyringError::Unavailable(reason.to_owned());
        match whose {
            Whose::Key(asked) => drop(asked.answer.send(Err(error))),
            // Versions that are known stay known.
            Whose::Versions => drop(self.known.versions.send_if_modified(|known| {
                let is_new = known.as_ref().is_err_and(|before| *before != error);
                if is_new {
                    *known = Err(error);
                }
                is_new
            })),
        }
    }

    fn is_well(&mut self) {
        self.backoff.reset();
        if !self.told.is_empty() {
            tracing::info!("keyring program answers again");
            self.told.clear();
        }
    }

    /// The remedy for everything: the program goes, whoever waits for it hears why, and another one is started later.
    fn give_up(&mut self, reason: String) {
        if let Some(Running { child, stdin, answers, .. }) = self.running.take() {
            drop((stdin, answers));
            tokio::spawn(end(child));
        }
        for (_, open) in std::mem::take(&mut self.open) {
            self.refuse(open.whose, &reason);
        }
        self.start_at = Instant::now() + self.backoff.wait();
        self.look_at = self.start_at;
        self.down.clone_from(&reason);
        self.tell(reason);
    }

    /// Logs a reason once.
    fn tell(&mut self, reason: String) {
        if reason != self.told {
            tracing::warn!(program = %self.program.display(), "ask the keyring: {reason}; trying again");
            self.told = reason;
        }
    }
}

fn start(program: &PathBuf) -> std::io::Result<Running> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A signal from the terminal is this process's to answer: what it flushes then still needs keys.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let pipes = child.stdin.take().zip(child.stdout.take());
    let (stdin, stdout) = pipes.expect("a child that was started with pipes has them");
    Ok(Running { child, stdin, answers: Lines::new(stdout), unsent: Vec::new() })
}

/// Writes what is unsent and reads a line, whichever can be done first. Never ready while there is no program.
async fn hear(running: &mut Option<Running>) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    let Some(Running { stdin, answers, unsent, .. }) = running else { return std::future::pending().await };
    tokio::select! {
        written = stdin.write(unsent), if !unsent.is_empty() => {
            match written {
                Ok(written) => drop(unsent.drain(..written)),
                // Whether this or the end of its answers is seen first is chance.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Err(ENDED.into()),
                Err(error) => return Err(format!("write to the program: {error}")),
            }
            Ok(None)
        }
        line = answers.next() => match line {
            Ok(Some(line)) => Ok(Some(line)),
            Ok(None) => Err(ENDED.into()),
            Err(error) => Err(format!("read from the program: {error}")),
        },
    }
}

/// Waits for a program that was given up, so that it does not stay behind as a zombie; kills it when it goes on.
async fn end(mut child: Child) {
    let ended = tokio::time::timeout(END_WITHIN, child.wait()).await;
    match ended {
        Ok(Ok(status)) => tracing::info!(%status, "keyring program ended"),
        Ok(Err(error)) => tracing::warn!(%error, "wait for the keyring program's end"),
        Err(_) => {
            tracing::info!("keyring program goes on, killing it");
            if let Err(error) = child.kill().await {
                tracing::warn!(%error, "kill the keyring program");
            }
        }
    }
}

//! The guard: a process that outlives its parent by a few seconds, to leave nothing running.
//!
//! A destructor does not run when a process is killed, and a group that Ctrl-C reaches is not all there is. So every stack has a
//! guard in a process group of its own. It reads its standard input, a pipe that only the parent writes to; when that ends, for
//! whatever reason, the parent is gone and all that it named goes too.
//!
//! | line                   | means                                                                       |
//! | ---------------------- | --------------------------------------------------------------------------- |
//! | `add <pid> term\|int`  | watch this process (it leads its own group); end it with TERM or INT first  |
//! | `remove <pid>`         | it ended and was collected                                                  |
//! | `cleanup <folder>`     | remove this folder at the end                                               |
//! | `keep`                 | remove no folder after all                                                  |
//!
//! Invariants: a process is named before it runs its program (`process.rs` holds it back until then), so there is no moment in
//! which it could be missed; a pid is signalled only while it still is the process that was named; the guard's standard output is
//! the parent's lock file, so that a home stays locked until the guard is done with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::signal::unix::{SignalKind, signal};

use crate::process_table::{self, Entry};

/// Longer than a JVM needs to leave its group and shorter than a person's patience.
const GRACE: Duration = Duration::from_secs(6);
/// For what was killed to be gone.
const AFTER_KILL: Duration = Duration::from_secs(5);
/// Between two looks at a process that is ending.
const LOOK: Duration = Duration::from_millis(20);

/// How a process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM, what most servers want.
    Terminate,
    /// SIGINT: Postgres ends its connections at once (a fast shutdown); at SIGTERM it would wait for them.
    Interrupt,
}

impl StopSignal {
    pub(crate) fn signal(self) -> Signal {
        match self {
            StopSignal::Terminate => Signal::TERM,
            StopSignal::Interrupt => Signal::INT,
        }
    }

    fn word(self) -> &'static str {
        match self {
            StopSignal::Terminate => "term",
            StopSignal::Interrupt => "int",
        }
    }
}

/// The parent's end: clones share one guard process.
#[derive(Clone, Debug)]
pub struct Guard {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    child: Child,
    /// None once closed.
    lines: Option<ChildStdin>,
}

impl Guard {
    /// Starts a guard. `held` is a file whose lock it holds on to until it has ended everything; `log` is where it complains.
    pub fn start(log: &Path, held: File) -> anyhow::Result<Guard> {
        let binary = crate::find_binary("devstack")?;
        let log_file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open log: {}", log.display()))?;
        let mut child = Command::new(&binary)
            .arg("guard")
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(held)
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("start guard: {}", binary.display()))?;
        let lines = child.stdin.take();
        Ok(Guard { inner: Arc::new(Mutex::new(Inner { child, lines })) })
    }

    pub(crate) fn add(&self, pid: u32, stop: StopSignal) -> anyhow::Result<()> {
        self.tell(&format!("add {pid} {}\n", stop.word()))
    }

    /// That a process ended need not reach a guard that is closing: it sees it itself.
    pub(crate) fn remove(&self, pid: u32) {
        drop(self.tell(&format!("remove {pid}\n")));
    }

    pub(crate) fn clean_up(&self, folder: &Path) -> anyhow::Result<()> {
        let folder = folder.to_str().context("remove folder at the end: its path is not UTF-8")?;
        anyhow::ensure!(!folder.contains('\n'), "remove folder at the end: its path holds a line break: {folder:?}");
        self.tell(&format!("cleanup {folder}\n"))
    }

    pub(crate) fn keep(&self) -> anyhow::Result<()> {
        self.tell("keep\n")
    }

    /// Ends everything that is still running, and waits for it. Blocks, for at most the guard's own limits.
    pub fn close(&self) {
        let mut inner = self.lock();
        if inner.lines.take().is_some() {
            // The guard's own limits bound this; there is nobody to tell that it failed.
            drop(inner.child.wait());
        }
    }

    fn tell(&self, line: &str) -> anyhow::Result<()> {
        let mut inner = self.lock();
        let lines = inner.lines.as_mut().context("name process to the guard: the stack is stopping")?;
        lines.write_all(line.as_bytes()).context(
            "name process to the guard: the guard is gone, and without it nothing is started; start the stack anew",
        )
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Watched {
    entry: Entry,
    stop: Signal,
}

impl Watched {
    /// None when it ended, or when its pid means another process by now.
    fn pid(&self) -> Option<Pid> {
        let now = process_table::entry(self.entry.pid)?;
        let is_same = now.is_alive() && now.started == self.entry.started;
        if is_same { raw_pid(now.pid) } else { None }
    }
}

/// The body of `devstack guard`.
pub async fn run() -> anyhow::Result<()> {
    // A guard ends when its parent has, and for no other reason: these are taken and not answered.
    let mut ignored = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        ignored.push(signal(kind).context("ignore signals in the guard")?);
    }

    tokio::task::spawn_blocking(serve).await.context("run the guard")
}

fn serve() {
    let mut watched: BTreeMap<u32, Watched> = BTreeMap::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    for line in std::io::stdin().lines() {
        // A pipe that cannot be read any more says as much about the parent as one that ended.
        let Ok(line) = line else { break };
        match line.split_once(' ') {
            Some(("add", rest)) => {
                let Some(found) = watch(rest) else { continue };
                watched.insert(found.entry.pid, found);
            }
            Some(("remove", pid)) => {
                if let Ok(pid) = pid.parse() {
                    watched.remove(&pid);
                }
            }
            Some(("cleanup", folder)) => folders.push(PathBuf::from(folder)),
            _ if line == "keep" => folders.clear(),
            _ => eprintln!("guard: ignore unknown line: {line:?}"),
        }
    }

    end_all(watched.values());
    for folder in folders {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                eprintln!("guard: remove folder {}: {error}", folder.display());
            }
            _ => {}
        }
    }
}

fn watch(line: &str) -> Option<Watched> {
    let (pid, word) = line.split_once(' ')?;
    let entry = process_table::entry(pid.parse().ok()?)?;
    let stop = if word == StopSignal::Interrupt.word() { Signal::INT } else { Signal::TERM };
    Some(Watched { entry, stop })
}

fn end_all<'a>(watched: impl Iterator<Item = &'a Watched>) {
    let watched: Vec<&Watched> = watched.collect();
    for process in &watched {
        let Some(pid) = process.pid() else { continue };
        send_group(pid, process.stop);
        // A paused process would take the signal only after it was resumed.
        for child in process_table::descendants(process.entry.pid) {
            if let Some(child) = raw_pid(child.pid) {
                send(child, Signal::CONT);
            }
        }
        send_group(pid, Signal::CONT);
    }
    if wait_gone(&watched, GRACE) {
        return;
    }
    for process in &watched {
        let Some(pid) = process.pid() else { continue };
        eprintln!("guard: kill process that did not end in {} s: {}", GRACE.as_secs(), process.entry.pid);
        kill_family(pid);
    }
    if !wait_gone(&watched, AFTER_KILL) {
        eprintln!("guard: give up on processes that do not die");
    }
}

fn wait_gone(watched: &[&Watched], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if watched.iter().all(|process| process.pid().is_none()) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// Kills a process and all that descend from it. It is stopped before they are listed: a stopped parent neither makes new children
/// nor collects dead ones, so the list stays true until the last of them is killed.
pub(crate) fn kill_family(pid: Pid) {
    send_group(pid, Signal::STOP);
    for child in process_table::descendants(pid.as_raw_nonzero().get().unsigned_abs()) {
        if let Some(child) = raw_pid(child.pid) {
            send(child, Signal::KILL);
        }
    }
    send_group(pid, Signal::KILL);
}

pub(crate) fn raw_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// A process that ended in this moment is what the signal was to bring about.
pub(crate) fn send(pid: Pid, which: Signal) {
    let _ = kill_process(pid, which);
}

pub(crate) fn send_group(pid: Pid, which: Signal) {
    let _ = kill_process_group(pid, which);
}

//! One child process of the stack: a part, a service, or a tool that a part needs once.
//!
//! Every child leads a process group of its own (Ctrl-C in a terminal reaches devstack alone, which then stops them in order), has
//! its output appended to a log file, and is known to the guard before it runs its program: a shell holds the place until the
//! guard has been told, then becomes the program under the same pid.
//!
//! Invariant: a signal is sent only while the child has not been collected, so its pid cannot mean anybody else. A thread waits
//! for its end without collecting, then collects under the lock that signals take.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::sync::watch;

use crate::guard::{self, Guard, StopSignal};
use crate::process_table::{self, Entry};
use crate::until;

/// For a signal that needs no cooperation (KILL, STOP, CONT) to show its effect.
const SIGNAL_EFFECT: Duration = Duration::from_secs(10);
/// Lines of a log that an error carries.
const TAIL_LINES: usize = 20;
/// Bytes of a log that are looked through for them.
const TAIL_BYTES: u64 = 16 * 1024;

/// What to start and how.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What messages call it.
    pub name: String,
    /// The program's path, or a name to be looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables added to (or replacing those of) this process's environment.
    pub env: Vec<(String, String)>,
    /// Variables that it must not inherit.
    pub env_remove: Vec<String>,
    /// Where its output is appended.
    pub log: PathBuf,
    /// The user that it runs as, instead of this process's.
    pub user: Option<User>,
    /// How it is asked to end.
    pub stop: StopSignal,
}

impl Launch {
    /// A program with nothing special about it; the fields can be changed afterwards.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Launch {
        Launch {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            env_remove: Vec::new(),
            log: log.into(),
            user: None,
            stop: StopSignal::Terminate,
        }
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Launch {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Launch {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// A user and its group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub uid: u32,
    /// Its group's id.
    pub gid: u32,
}

/// A running, or ended, child process. Dropping it leaves the process running, for the guard to end.
#[derive(Debug)]
pub struct Managed {
    name: String,
    pid: u32,
    log: PathBuf,
    /// Where this run's output begins in the log.
    log_start: u64,
    stop: StopSignal,
    child: Arc<Mutex<Collectable>>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

#[derive(Debug)]
struct Collectable {
    child: Child,
    is_collected: bool,
}

impl Managed {
    /// Starts a process. That it was started does not mean that it is ready.
    pub fn spawn(guard: &Guard, launch: &Launch) -> anyhow::Result<Managed> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&launch.log)
            .with_context(|| format!("open log of {}: {}", launch.name, launch.log.display()))?;
        let log_start = log.metadata().context("read size of log")?.len();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "read -r go && exec \"$@\" </dev/null"])
            .arg(&launch.name)
            .arg(&launch.program)
            .args(&launch.args)
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("share log")?)
            .stderr(log);
        for name in &launch.env_remove {
            command.env_remove(name);
        }
        if let Some(user) = launch.user {
            // That user may not be able to enter the folder that this process is in.
            command.uid(user.uid).gid(user.gid).current_dir("/");
        }
        let mut child =
            command.spawn().with_context(|| format!("start {}: {}", launch.name, launch.program.display()))?;
        let pid = child.id();
        let go = child.stdin.take();
        let told = guard.add(pid, launch.stop).and_then(|()| {
            let mut go = go.context("release process: it has no standard input")?;
            go.write_all(b"go\n").context("release process")
        });
        if let Err(error) = told {
            // Its standard input is closed by now, so the shell ends without having become the program.
            drop(child.kill());
            drop(child.wait());
            return Err(error.context(format!("start {}", launch.name)));
        }

        let (ended_sender, ended) = watch::channel(None);
        let child = Arc::new(Mutex::new(Collectable { child, is_collected: false }));
        let collector = {
            let child = Arc::clone(&child);
            let guard = guard.clone();
            move || collect(pid, &child, &guard, &ended_sender)
        };
        std::thread::Builder::new()
            .name(format!("wait-{}", launch.name))
            .stack_size(128 * 1024)
            .spawn(collector)
            .context("start thread that waits for a process")?;
        Ok(Managed {
            name: launch.name.clone(),
            pid,
            log: launch.log.clone(),
            log_start,
            stop: launch.stop,
            child,
            ended,
        })
    }

    /// Runs a tool to its end. Its failure carries the last lines of its output.
    pub async fn run(guard: &Guard, launch: &Launch, timeout: Duration) -> anyhow::Result<()> {
        let tool = Managed::spawn(guard, launch)?;
        let Ok(status) = tokio::time::timeout(timeout, tool.wait()).await else {
            tool.kill().await?;
            bail!("run {}: it did not end in {} s\n{}", tool.name, timeout.as_secs(), tool.log_tail());
        };
        if !status.success() {
            bail!("run {} ({}): {status}\n{}", tool.name, launch.program.display(), tool.log_tail());
        }
        Ok(())
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which also is its group's.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended; None while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Whether it has not ended yet. A paused process runs.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Waits until it has ended and was collected.
    pub async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            // The waiting thread is gone without a word, which only a panic of it could bring about.
            Err(_) => ExitStatus::default(),
        }
    }

    /// Asks it to end and waits; after `grace` it is killed.
    pub async fn terminate(&self, grace: Duration) -> anyhow::Result<()> {
        let children = process_table::descendants(self.pid);
        self.signal_alive(|pid| {
            guard::send_group(pid, self.stop.signal());
            // A paused process would take the signal only after it was resumed.
            send_each(&children, Signal::CONT);
            guard::send_group(pid, Signal::CONT);
        });
        if tokio::time::timeout(grace, self.wait()).await.is_err() {
            return self.kill().await;
        }
        self.wait_gone(&children).await
    }

    /// Kills it and all that descend from it (SIGKILL), and waits until they are gone.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let children = process_table::descendants(self.pid);
        self.signal_alive(guard::kill_family);
        if tokio::time::timeout(SIGNAL_EFFECT, self.wait()).await.is_err() {
            bail!("kill {}: process {} did not go in {} s", self.name, self.pid, SIGNAL_EFFECT.as_secs());
        }
        self.wait_gone(&children).await
    }

    /// Stops it and all that descend from it in their tracks (SIGSTOP), and waits until they stand still.
    pub async fn pause(&self) -> anyhow::Result<()> {
        self.signal_running(|pid| guard::send_group(pid, Signal::STOP))?;
        self.wait_each(&[self.pid], "stop", Entry::is_stopped).await?;
        // Only now: the stopped one makes no new children.
        let children = process_table::descendants(self.pid);
        self.signal_running(|_| send_each(&children, Signal::STOP))?;
        let pids: Vec<u32> = children.iter().map(|child| child.pid).collect();
        self.wait_each(&pids, "stop", Entry::is_stopped).await
    }

    /// Lets it go on (SIGCONT), and waits until it does.
    pub async fn resume(&self) -> anyhow::Result<()> {
        let children = process_table::descendants(self.pid);
        self.signal_running(|pid| {
            send_each(&children, Signal::CONT);
            guard::send_group(pid, Signal::CONT);
        })?;
        self.wait_each(&[self.pid], "go on", |entry| !entry.is_stopped()).await
    }

    /// The last lines that this run wrote, with the place of the whole log.
    pub fn log_tail(&self) -> String {
        tail(&self.log, self.log_start)
    }

    fn lock(&self) -> MutexGuard<'_, Collectable> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `action` while the process cannot be collected; does nothing when it was.
    fn signal_alive(&self, action: impl FnOnce(Pid)) -> bool {
        let collectable = self.lock();
        if collectable.is_collected {
            return false;
        }
        if let Some(pid) = guard::raw_pid(self.pid) {
            action(pid);
        }
        true
    }

    fn signal_running(&self, action: impl FnOnce(Pid)) -> anyhow::Result<()> {
        if !self.signal_alive(action) {
            bail!("signal {}: process {} has ended; start it first\n{}", self.name, self.pid, self.log_tail());
        }
        Ok(())
    }

    async fn wait_each(&self, pids: &[u32], effect: &str, condition: fn(&Entry) -> bool) -> anyhow::Result<()> {
        let what = format!("wait for {} to {effect}", self.name);
        until(&what, SIGNAL_EFFECT, async || {
            let holds = pids
                .iter()
                .all(|pid| process_table::entry(*pid).is_none_or(|entry| !entry.is_alive() || condition(&entry)));
            anyhow::ensure!(holds, "not all of its processes did");
            Ok(())
        })
        .await
    }

    async fn wait_gone(&self, children: &[Entry]) -> anyhow::Result<()> {
        let what = format!("wait for the children of {} to end", self.name);
        until(&what, SIGNAL_EFFECT, async || {
            for child in children {
                let now = process_table::entry(child.pid);
                let is_gone = now.is_none_or(|entry| !entry.is_alive() || entry.started != child.started);
                anyhow::ensure!(is_gone, "process {} is still there", child.pid);
            }
            Ok(())
        })
        .await
    }
}

fn send_each(children: &[Entry], which: Signal) {
    for child in children {
        if let Some(pid) = guard::raw_pid(child.pid) {
            guard::send(pid, which);
        }
    }
}

fn collect(pid: u32, child: &Mutex<Collectable>, guard: &Guard, ended: &watch::Sender<Option<ExitStatus>>) {
    if let Some(raw) = guard::raw_pid(pid) {
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(raw), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {
        }
    }
    let mut collectable = child.lock().unwrap_or_else(PoisonError::into_inner);
    let status = collectable.child.wait().unwrap_or_default();
    collectable.is_collected = true;
    drop(collectable);
    guard.remove(pid);
    ended.send_replace(Some(status));
}

/// The last lines of a log from `start` on.
fn tail(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) => return format!("its log {} cannot be read: {error}", path.display()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return format!("it wrote nothing to its log {}", path.display());
    }
    let last = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
    format!("last lines of its log {}:\n  {last}", path.display())
}

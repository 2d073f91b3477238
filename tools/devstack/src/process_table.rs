//! What the operating system says about processes: who descends from whom, who is stopped, and whether a pid still means the
//! process that it meant when it was noted.
//!
//! A pid alone names nobody for long: it is given out again. Together with its start time it names one process, and only such
//! pairs are ever signalled by somebody who is not the process's parent.

use std::collections::HashSet;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// The letter that `ps` shows: R, S, D, T (stopped), Z (dead, not yet collected), …
    pub state: char,
    /// When it started, in whatever form the system tells it; compared, never read.
    pub started: String,
}

impl Entry {
    /// Whether it has not ended. One that ended and was not collected yet is not alive.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    /// Whether a signal stopped it in its tracks.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

/// All that descend from `pid`, nearest first, without itself.
pub fn descendants(pid: u32) -> Vec<Entry> {
    let all = entries();
    let mut family = HashSet::from([pid]);
    let mut found: Vec<Entry> = Vec::new();
    loop {
        let before = found.len();
        for entry in &all {
            if family.contains(&entry.parent) && family.insert(entry.pid) {
                found.push(entry.clone());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// The process of that id, if there is one.
#[cfg(target_os = "linux")]
pub fn entry(pid: u32) -> Option<Entry> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(pid, &stat)
}

#[cfg(target_os = "linux")]
fn entries() -> Vec<Entry> {
    let Ok(folder) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    folder.flatten().filter_map(|file| entry(file.file_name().to_str()?.parse().ok()?)).collect()
}

/// `pid (name) state parent …`; the name may hold spaces and brackets, the start time is the 22nd field.
#[cfg(target_os = "linux")]
fn parse_stat(pid: u32, stat: &str) -> Option<Entry> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.to_owned();
    Some(Entry { pid, parent, state, started })
}

/// The process of that id, if there is one.
#[cfg(not(target_os = "linux"))]
pub fn entry(pid: u32) -> Option<Entry> {
    ps(&["-p", &pid.to_string()]).pop()
}

#[cfg(not(target_os = "linux"))]
fn entries() -> Vec<Entry> {
    ps(&["-ax"])
}

#[cfg(not(target_os = "linux"))]
fn ps(which: &[&str]) -> Vec<Entry> {
    let output = std::process::Command::new("ps")
        .args(which)
        .args(["-o", "pid=,ppid=,state=,lstart="])
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output();
    let Ok(output) = output else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let pid = fields.next()?.parse().ok()?;
            let parent = fields.next()?.parse().ok()?;
            let state = fields.next()?.chars().next()?;
            Some(Entry { pid, parent, state, started: fields.collect::<Vec<_>>().join(" ") })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_and_descends_from_its_parent() {
        let me = entry(std::process::id()).expect("a process finds itself");
        assert!(me.is_alive());
        assert!(descendants(me.parent).iter().any(|child| child.pid == me.pid && child.started == me.started));
        assert!(descendants(me.pid).iter().all(|child| child.pid != me.pid));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) T 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1";
        let expect = Entry { pid: 42, parent: 7, state: 'T', started: "98765".to_owned() };
        assert_eq!(parse_stat(42, stat), Some(expect));
    }
}

//! Facts of the machine, and what the services used of it. Read from `/proc`; what is not there is left out.

use std::collections::BTreeMap;

use devstack::ServiceEndpoint;
use serde::Serialize;

/// The kernel's unit of processor time in `/proc`, fixed for user space on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the benchmark ran on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: Option<String>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) kernel: Option<String>,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).ok();
        let processor = read("/proc/cpuinfo").and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let memory_bytes = read("/proc/meminfo").and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
        });
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor,
            memory_bytes,
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
        }
    }
}

/// Processor seconds that each service used so far.
pub(crate) fn service_cpu(services: &[ServiceEndpoint]) -> BTreeMap<String, f64> {
    services.iter().filter_map(|service| Some((service.name.clone(), cpu_seconds(service.pid)?))).collect()
}

/// Processor seconds between two looks, of services that were there at both.
pub(crate) fn difference(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    after.iter().filter_map(|(name, after)| Some((name.clone(), (after - before.get(name)?).max(0.0)))).collect()
}

/// Processor seconds of the calling thread so far.
pub(crate) fn thread_cpu_seconds() -> Option<f64> {
    parse_cpu_seconds(&std::fs::read_to_string("/proc/thread-self/stat").ok()?)
}

/// The most memory that a process had at any time, in bytes.
pub(crate) fn peak_bytes(pid: u32) -> Option<u64> {
    parse_peak_bytes(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_peak_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn cpu_seconds(pid: u32) -> Option<f64> {
    parse_cpu_seconds(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_cpu_seconds(stat: &str) -> Option<f64> {
    // The name, in parentheses, may hold anything; after it come state and numbers. User time is field 14, system 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let user: f64 = times.next()?.parse().ok()?;
    let system: f64 = times.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 10";
        assert_eq!(parse_cpu_seconds(stat), Some(3.0));
        assert_eq!(parse_cpu_seconds("7 (a) S 1"), None);
        assert!(cpu_seconds(std::process::id()).is_some());
        assert!(thread_cpu_seconds().is_some());
    }

    #[test]
    fn the_peak_of_memory_is_not_what_there_is_now() {
        assert_eq!(parse_peak_bytes("VmPeak:\t 9 kB\nVmHWM:\t  250 kB\nVmRSS:\t 7 kB\n"), Some(256_000));
        assert_eq!(parse_peak_bytes("VmRSS:\t 7 kB\n"), None);
        assert!(peak_bytes(std::process::id()).is_some());
    }
}

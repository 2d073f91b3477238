//! Batchers, compactors, retention workers, exporters and readers in a world in which everything fails, in virtual time.
//!
//! One seed derives every choice. In the *safety* phase processes crash, freeze, and are asked to stop; operations are slow,
//! fail, are done without an answer, or long after they were given up; transactions stay open; partitions move, are added, lose
//! records, are made anew; clocks jump; keys come late or do not open; bytes rot; clients send a batch again with other bytes.
//! Sessions are deleted by hand, by reference, by withdrawal, by plan, with their workspace, while they are written, merged and
//! read; the bucket keeps versions in some seeds, deletes some keys of a request, and has uploads that nobody ends; backups of
//! index and key store are restored, and the journal replayed. All the time sessions are read, object after object, while
//! compactors swap beneath, and exporters make archives of them, which end with the first of their sessions, in time, or by hand,
//! while others fetch them. Then all is healed, and in the *liveness* phase everything has to get in order: no lag, nothing
//! staged, nothing in the bucket for nothing, nothing shared, every session final or erased, every deletion with its receipt,
//! every archive whole or gone. At every step the invariants B1 to B12, C1 to C3, C6 and R1 to R11 are checked, and in the end
//! the clients' ledger is compared with what readers find, and who asked for what with what is gone. The checker is tested by
//! mutants: protocols broken on purpose, each of which it has to find.
//!
//! `SIMULATE_SEEDS` says how many seeds are run (6,000), `SIMULATE_FIRST` with which to begin (0), `SIMULATE_MUTANT` breaks
//! the protocol by name. A failing seed prints the command that repeats it.

mod faults;
mod log;
mod mutants;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use faults::Happened;
use mutants::Mutant;

const SEEDS: u64 = 6_000;
/// A mutant that so many seeds do not find is one that the checker is blind to.
const MUTANT_SEEDS: u64 = 4_000;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// Runs a seed; what panics is a violation as well.
fn violation(seed: u64, mutant: Option<Mutant>) -> (Option<String>, Happened) {
    match catch_unwind(AssertUnwindSafe(|| world::run(seed, mutant))) {
        Ok(ended) => (ended.violation, ended.happened),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            (Some(format!("panic: {}", text.unwrap_or_default())), Happened::default())
        }
    }
}

/// Runs seeds on all cores until one is violated: the least such, and what happened in all.
fn search(first: u64, count: u64, mutant: Option<Mutant>) -> (Option<(u64, String)>, Happened) {
    let next = AtomicU64::new(first);
    let found: Mutex<(Option<(u64, String)>, Happened)> = Mutex::default();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let (violation, happened) = violation(seed, mutant);
                    let mut found = found.lock().expect("no holder of it panics");
                    found.1.add(&happened);
                    if let Some(violation) = violation {
                        next.store(first + count, Ordering::Relaxed);
                        if found.0.as_ref().is_none_or(|(least, _)| seed < *least) {
                            found.0 = Some((seed, violation));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().expect("no holder of it panics")
}

/// Goal: whatever fails, nothing acknowledged is lost, doubled or changed, and the invariants hold. Method: thousands of seeds.
#[test]
fn every_event_once_whatever_fails() {
    let (first, count) = (number("SIMULATE_FIRST", 0), number("SIMULATE_SEEDS", SEEDS));
    let wanted = std::env::var("SIMULATE_MUTANT").ok();
    let mutant = wanted.map(|name| {
        let found = mutants::ALL.iter().find(|mutant| format!("{mutant:?}") == name);
        *found.unwrap_or_else(|| panic!("SIMULATE_MUTANT={name} is none of {:?}", mutants::ALL))
    });
    #[expect(clippy::disallowed_methods, reason = "how fast seeds run is told to a person; nothing depends on it")]
    let begun = Instant::now();
    let (found, happened) = search(first, count, mutant);
    if let Some((seed, violation)) = found {
        let mutant = mutant.map_or_else(String::new, |mutant| format!("SIMULATE_MUTANT={mutant:?} "));
        panic!("seed {seed}: {violation}\n  repeat it: {mutant}make simulate FIRST={seed} SEEDS=1");
    }
    let took = begun.elapsed();
    println!("{count} seeds in {:.1} s, {:.0} a second", took.as_secs_f32(), count as f32 / took.as_secs_f32());
    for (what, times) in happened.list() {
        println!("{times:>10} {what}");
        // A fault that never came was not tried.
        assert!(times > 0 || count < 1_000, "no seed had any {what}");
    }
}

/// Goal: the checker finds what is broken. Method: each mutant is run until a seed finds it; without a mutant the same seeds
/// find nothing, which the test above shows.
#[test]
fn every_mutant_is_caught() {
    // What panics in here is a finding, not a failure.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for mutant in mutants::ALL {
        match search(0, MUTANT_SEEDS, Some(*mutant)).0 {
            Some((seed, violation)) => println!("{mutant:?} by seed {seed}: {violation}"),
            None => missed.push(*mutant),
        }
    }
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "{MUTANT_SEEDS} seeds do not find {missed:?}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in 0..20 {
        let (one, other) = (world::run(seed, None), world::run(seed, None));
        assert_eq!((one.trace, one.happened), (other.trace, other.happened), "seed {seed}");
    }
}

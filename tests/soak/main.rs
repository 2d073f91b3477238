//! Every fault of `system/`, round after round, for as many minutes as `SOAK_MINUTES` says (60 without it), on one stack.
//!
//! At the end a table says what was sent over all rounds, and how much of it was lost or doubled: figures of the comparisons
//! with the ledger. A round that fails keeps its logs, is counted, and stops nothing; the program fails if one did, or if
//! anything was lost or doubled.

#[path = "../system/check.rs"]
mod check;
#[path = "../system/faults/mod.rs"]
mod faults;
#[expect(dead_code, reason = "tests need more of it than rounds do")]
#[path = "../system/harness.rs"]
mod harness;
#[expect(dead_code, reason = "tests need more of it than rounds do")]
#[path = "../system/load.rs"]
mod load;
#[path = "../system/proxy/mod.rs"]
mod proxy;
#[expect(dead_code, reason = "tests need more of it than rounds do")]
#[path = "../system/readings.rs"]
mod readings;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use devstack::Stack;
use faults::Fault;

const MINUTES_DEFAULT: u64 = 60;

/// What all rounds of a fault came to.
#[derive(Default)]
struct Sum {
    rounds: u64,
    failed: u64,
    sent: u64,
    lost: u64,
    doubled: u64,
}

fn main() -> Result<ExitCode> {
    let minutes = match std::env::var("SOAK_MINUTES") {
        Ok(text) if !text.is_empty() => text.parse().context("read SOAK_MINUTES: it is a number of minutes")?,
        _ => MINUTES_DEFAULT,
    };
    harness::runtime()?.block_on(async {
        let stack = harness::start_stack().await?;
        let sums = soak(&stack, Duration::from_secs(minutes * 60)).await;
        stack.stop().await?;
        Ok(if report(&sums) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// Goes over all faults until the time is up, each once at least.
async fn soak(stack: &Stack, time: Duration) -> Vec<(&'static Fault, Sum)> {
    let begun = Instant::now();
    let mut sums: Vec<_> = faults::ALL.iter().map(|fault| (fault, Sum::default())).collect();
    loop {
        for (fault, sum) in &mut sums {
            if sum.rounds > 0 && begun.elapsed() >= time {
                return sums;
            }
            sum.rounds += 1;
            let name = format!("{}{}", fault.name, sum.rounds);
            match (fault.round)(stack, &name).await {
                Ok(comparison) => {
                    println!("{name}: {comparison}");
                    sum.sent += comparison.expected;
                    sum.lost += comparison.lost;
                    sum.doubled += comparison.doubled;
                    sum.failed += u64::from(!comparison.is_exact() || comparison.expected == 0);
                }
                Err(error) => {
                    println!("{name}: {error:?}");
                    sum.failed += 1;
                }
            }
        }
    }
}

/// Prints the table. `false` when anything in it must not be.
fn report(sums: &[(&'static Fault, Sum)]) -> bool {
    println!("\n{:<10} | rounds | failed | events sent | lost | doubled", "fault");
    println!("---------- | ------ | ------ | ----------- | ---- | -------");
    for (fault, Sum { rounds, failed, sent, lost, doubled }) in sums {
        println!("{:<10} | {rounds:>6} | {failed:>6} | {sent:>11} | {lost:>4} | {doubled:>7}", fault.name);
    }
    sums.iter().all(|(_, sum)| sum.failed + sum.lost + sum.doubled == 0)
}

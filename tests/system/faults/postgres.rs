//! Postgres going wrong before the batcher.

use anyhow::{Context, Result, ensure};
use devstack::Stack;
use virtual_sdk::{Comparison, Seen, until};

use super::{quick, under_load};
use crate::harness::{LATER, metric, run_on};
use crate::proxy::postgres::{CommitFault, PostgresProxy};

const EXPECTED: &[&str] = &["part is down", "testing the connection"];

/// Publishing commits that each fault must have hit.
const HITS_MIN: u64 = 8;

/// Commits of publishing transactions are dropped, answered to nobody, or answered late, by turns.
pub(super) async fn commits_go_wrong(stack: &Stack, name: &str) -> Result<Comparison> {
    // postgres://user:password@host:port/database
    let url = &stack.parts().database_url;
    let (access, rest) = url.rsplit_once('@').context("DATABASE_URL has a password")?;
    let (address, _) = rest.split_once('/').context("DATABASE_URL has a database")?;
    let proxy = PostgresProxy::start(address).await?;
    let url = format!("{access}@{}/clairvio_{name}", proxy.address());
    let options = quick(name).with("batcher", "DATABASE_URL", url).with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 100);
    run_on(stack, options, EXPECTED, async |system| {
        let faults = async {
            proxy.set_faulty(true);
            until("each fault has hit commits", LATER, || async {
                let hits = CommitFault::ALL.map(|fault| proxy.hits(fault));
                if hits.iter().all(|hits| *hits >= HITS_MIN) {
                    Seen::Done(())
                } else {
                    Seen::not_yet(format_args!("{hits:?}"))
                }
            })
            .await?;
            proxy.set_faulty(false);
            Ok(())
        };
        let comparison = under_load(system, 4, 40, faults).await?;
        let unanswered = proxy.hits(CommitFault::ReplyLost) + proxy.hits(CommitFault::Cut);
        let admin = system.admin_url("batcher", 1)?;
        let failed = metric(&admin, r#"batcher_failures_total{step="publish"}"#).await;
        ensure!(failed >= unanswered, "{unanswered} commits had no answer, and the batcher saw {failed} fail");
        // Whoever guesses instead of looking it up loses the swap that follows, and begins anew: nothing is lost by that, only
        // work. Nobody else swaps here.
        let lost_swaps = metric(&admin, "batcher_lost_swaps_total").await;
        ensure!(lost_swaps == 0, "{lost_swaps} swaps were lost, so commits were not looked up but guessed");
        Ok(comparison)
    })
    .await
}

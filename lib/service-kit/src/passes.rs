//! The loop of a worker: one pass after the other, until the shutdown.

use std::time::Duration;

use crate::health::Part;
use crate::shutdown::Shutdown;

/// Calls `pass` again and again. It says whether more work may be waiting: then the next pass follows at once, else after
/// `interval`. A failed pass is logged here, counted under `failures`, shown as the part's reason, and made up for by the
/// next. A pass under way when the shutdown begins is finished.
pub async fn run(
    shutdown: &Shutdown,
    interval: Duration,
    part: &Part,
    failures: &'static str,
    mut pass: impl AsyncFnMut() -> anyhow::Result<bool>,
) {
    loop {
        let more = match pass().await {
            Ok(more) => {
                part.up();
                more
            }
            Err(error) => {
                metrics::counter!(failures).increment(1);
                tracing::warn!("pass failed: {error:#}");
                part.down(format!("{error:#}"));
                false
            }
        };
        if shutdown.has_begun() || (!more && !shutdown.sleep(interval).await) {
            return;
        }
    }
}

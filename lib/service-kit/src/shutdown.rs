//! Shutdown: asked for once, by a signal or by a caller; stop accepting, drain within a grace, exit.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Tells everybody in a process to stop, and how long stopping may take.
#[derive(Debug, Clone)]
pub struct Shutdown {
    token: CancellationToken,
    /// How long draining may take.
    pub grace: Duration,
}

impl Shutdown {
    /// A shutdown that nobody has asked for.
    pub fn new(grace: Duration) -> Self {
        Self { token: CancellationToken::new(), grace }
    }

    /// Asks for it.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Whether it was asked for.
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until it is asked for.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// Sleeps, but not beyond the beginning of the shutdown; `false` when it began.
    pub async fn sleep(&self, duration: Duration) -> bool {
        tokio::select! {
            () = self.begun() => false,
            () = tokio::time::sleep(duration) => true,
        }
    }

    /// Begins on SIGTERM or SIGINT. A second signal ends the process at once.
    pub(crate) fn begin_on_signal(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            for _ in 0..2 {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if shutdown.has_begun() {
                    tracing::warn!("second signal, stopping at once");
                    std::process::exit(130);
                }
                tracing::info!("stopping");
                shutdown.begin();
            }
        });
        Ok(())
    }
}
